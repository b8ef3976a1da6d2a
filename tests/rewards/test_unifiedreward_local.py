"""UnifiedReward's model through transformers, on tiny checkpoints in the published format.

It needs an environment of its own: launch/rewards/unifiedreward.sh --setup-only makes it, and
UNIFIEDREWARD_PYTHON=/path/to/its/python runs the tests that need it; without, they are skipped.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import qwen_vl_checkpoints
from helpers.paths import HELPERS
from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import encode_png
from htgrpo_ext.rewards.client import RewardClient
from htgrpo_ext.rewards.scorers.unifiedreward import Scorer
from htgrpo_ext.rewards.settings import RewardTerm

PYTHON = os.environ.get("UNIFIEDREWARD_PYTHON")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
IM_END = 151645
needs_environment = pytest.mark.skipif(
    PYTHON is None, reason="no UnifiedReward environment named (UNIFIEDREWARD_PYTHON=/path/to/python)"
)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return qwen_vl_checkpoints.qwen2_5_vl(tmp_path / "qwen")


@pytest.fixture
def prompt_file(tmp_path) -> Path:
    file = tmp_path / "prompt.txt"
    file.write_text("Rate it after 'Final Score:'. [{caption}]")
    return file


def run(*arguments) -> subprocess.CompletedProcess:
    command = [PYTHON, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def serving(checkpoint, prompt_file) -> list[str]:
    options = [f"model={checkpoint}", f"prompt_file={prompt_file}", "dtype=float32"]
    start = ["-m", "htgrpo_ext.cli", "serve-reward", "unifiedreward", "--port", "0", "--device", "cpu"]
    return start + [word for option in options for word in ("--set", option)]


def teach(checkpoint: Path, answer: str) -> None:
    """Make the model give this answer to every input: each token leads to the next, so none may occur twice.

    The blocks add nothing. The head's row of a token is the embedding of the token before; other rows are zero.
    """
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if name.startswith("model.") and ("o_proj" in name or "down_proj" in name):
            weights[name].zero_()
    weights["model.norm.weight"].fill_(1.0)
    alphabet = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    spelt = {"\n": "Ċ", " ": "Ġ"}  # how this tokenizer writes them
    chain = [alphabet[spelt.get(letter, letter)] for letter in "\n" + answer] + [IM_END]
    assert len(set(chain)) == len(chain)
    head = weights["lm_head.weight"].zero_()
    for before, after in zip(chain, chain[1:], strict=False):
        head[after] = torch.nn.functional.normalize(weights["model.embed_tokens.weight"][before], dim=0)
    qwen_vl_checkpoints.save(weights, file)


@needs_environment
def test_a_padded_batch_gives_the_answers_of_single_pictures(checkpoint):
    done = run(HELPERS / "run_unifiedreward.py", checkpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["ours"] == answers["theirs"]
    assert len({*answers["theirs"]} - {None}) >= 2 and None in answers["theirs"]


@needs_environment
def test_a_client_gets_the_score_that_the_model_states(checkpoint, prompt_file):
    teach(checkpoint, "Final Score:4")
    images = [torch.full((3, height, 60), 9 * height % 256, dtype=torch.uint8) for height in (40, 60, 100)]

    async def ask(url):
        client = RewardClient(RewardTerm(name="unifiedreward", weight=1.0, url=url), retries=0)
        return await client.score([{"prompt": text} for text in ("a", "bb", "c d")], [*map(encode_png, images)])

    command = [PYTHON, *serving(checkpoint, prompt_file)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        try:
            assert ready.startswith("unifiedreward: unifiedreward at http://127.0.0.1:"), ready
            assert asyncio.run(ask(ready.split(" at ")[1].split(",")[0])) == [4.0, 4.0, 4.0]
        finally:
            process.terminate()


@needs_environment
@pytest.mark.parametrize("wrong", ["absent", "weights", "rows"])
def test_an_unsuitable_checkpoint_is_one_line(checkpoint, prompt_file, wrong):
    file = checkpoint / "model.safetensors"
    if wrong == "absent":
        checkpoint = checkpoint / "nowhere"
    else:
        weights = load_file(file)
        if wrong == "weights":
            del weights["visual.merger.mlp.2.weight"]
        else:
            weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
        qwen_vl_checkpoints.save(weights, file)
    done = run(*serving(checkpoint, prompt_file))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert f"{checkpoint}" in errors[0]


def test_without_the_package_the_error_names_the_launch_script(monkeypatch, prompt_file):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="launch/rewards/unifiedreward.sh makes the environment it needs$"):
        Scorer(torch.device("cpu"), str(prompt_file))


def test_an_unknown_dtype_is_one_line(prompt_file):
    with pytest.raises(UserError, match="unknown dtype `int8`"):
        Scorer(torch.device("cpu"), str(prompt_file), dtype="int8")
