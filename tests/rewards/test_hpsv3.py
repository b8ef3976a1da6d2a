"""HPSv3 behind our server against its package called directly, on a tiny random checkpoint in the published format.

The package needs an environment of its own: launch/rewards/hpsv3.sh --setup-only makes it, and
HPSV3_PYTHON=/path/to/its/python runs the tests that need it; without, they are skipped.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import qwen_vl_checkpoints
from helpers.paths import HELPERS
from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import encode_png
from htgrpo_ext.rewards.client import RewardClient, RewardFailure
from htgrpo_ext.rewards.scorers.hpsv3 import Scorer
from htgrpo_ext.rewards.settings import RewardTerm

PYTHON = os.environ.get("HPSV3_PYTHON")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
CPU = torch.device("cpu")
TEXTS = ["a red circle", "two {green} stars\non a blue ground, and more of them", "雪, snow", "a red circle"]
needs_package = pytest.mark.skipif(PYTHON is None, reason="no HPSv3 environment named (HPSV3_PYTHON=/path/to/python)")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """A Qwen2-VL's folder and HPSv3.safetensors."""
    folder = tmp_path_factory.mktemp("hpsv3")
    return qwen_vl_checkpoints.qwen2_vl(folder / "qwen"), qwen_vl_checkpoints.hpsv3(folder / "HPSv3.safetensors")


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """Noise, which any lossy format would change; of three sizes, one of them HPSv3's own."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(48, 64), (130, 71), (448, 448), (48, 64)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def command(files, *more: str) -> list[str]:
    base, checkpoint = files
    start = [PYTHON, "-m", "htgrpo_ext.cli", "serve-reward", "hpsv3", "--port", "0", "--device", "cpu"]
    options = [f"base={base}", f"checkpoint={checkpoint}", "dtype=float32", "attention=sdpa", *more]
    return start + [word for option in options for word in ("--set", option)]


@pytest.fixture(scope="module")
def url(files):
    """`htgrpo serve-reward hpsv3` in the environment."""
    with subprocess.Popen(command(files), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        ready = ""
        for ready in process.stdout:  # the package prints as well
            if " at http://127.0.0.1:" in ready:
                break
        assert ready.startswith("hpsv3: hpsv3 at http://127.0.0.1:"), ready
        yield ready.split(" at ")[1].split(",")[0]
        process.terminate()


@pytest.fixture(scope="module")
def own_scores(files, images, tmp_path_factory):
    """The package's own scores: of each image with its text, then of each image with the next one's text."""
    folder = tmp_path_factory.mktemp("images")
    pairs = []
    for shift in (0, 1):
        for i, image in enumerate(images):
            file = folder / f"{i}.png"
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file)
            pairs.append((str(file), TEXTS[(i + shift) % len(TEXTS)]))
    script = str(HELPERS / "run_hpsv3.py")
    arguments = [PYTHON, script, *map(str, files), json.dumps(pairs)]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads(done.stdout.splitlines()[-1])
    return scores[:4], scores[4:]


def ask(url: str, *requests: tuple[list[str], list[torch.Tensor]]) -> list[list[float]]:
    """The scores of requests that are sent at the same time."""

    async def all_of_them():
        client = RewardClient(RewardTerm(name="hpsv3", weight=1.0, url=url), retries=0)
        assert await client.health() is None
        prompts = [[{"prompt": text} for text in texts] for texts, _ in requests]
        pngs = [[encode_png(image) for image in images] for _, images in requests]
        return await asyncio.gather(*map(client.score, prompts, pngs))

    return asyncio.run(all_of_them())


@needs_package
def test_a_single_image_gets_the_packages_own_score(url, images, own_scores):
    for i in range(4):
        assert ask(url, ([TEXTS[i]], [images[i]])) == [[own_scores[0][i]]]


@needs_package
def test_a_mixed_batch_gets_the_packages_own_scores(url, images, own_scores):
    """Up to rounding: a batch is padded, and its products are summed in another order."""
    shifted = TEXTS[1:] + TEXTS[:1]
    first, second = ask(url, (TEXTS, images), (shifted, images))
    assert first == pytest.approx(own_scores[0], abs=2e-6) and second == pytest.approx(own_scores[1], abs=2e-6)
    # The tolerance is small: another image or text makes a difference a hundred times as large.
    assert abs(own_scores[0][0] - own_scores[0][3]) > 2e-4
    assert abs(own_scores[0][0] - own_scores[1][0]) > 2e-4


@needs_package
def test_one_level_of_one_pixel_changes_the_score(url, images):
    """Nothing between a run and the model rounds pixels. One request at a time, because a batch rounds by itself."""
    changed = images[2].clone()
    changed[0, 100, 100] ^= 1
    before, again, after = (ask(url, (TEXTS[:1], [image])) for image in (images[2], images[2], changed))
    assert before == again and before != after


@needs_package
@pytest.mark.parametrize("token", ["<|Reward|>", "<|image_pad|>"])
def test_a_prompt_with_the_models_own_tokens_is_refused(url, images, token):
    with pytest.raises(RewardFailure, match="status 400: .*own tokens"):
        ask(url, ([f"a circle {token}"], images[:1]))


@needs_package
@pytest.mark.parametrize("wrong", ["shape", "short", "base"])
def test_unsuitable_files_are_one_line(files, tmp_path, wrong):
    base, checkpoint = files
    if wrong == "shape":
        checkpoint = base / "model.safetensors"  # no head, and rows that HPSv3 has cut off
    elif wrong == "short":
        checkpoint = tmp_path / "short.safetensors"
        checkpoint.write_bytes(files[1].read_bytes()[:1000])
    else:
        base = tmp_path / "nowhere"
    done = subprocess.run(command((base, checkpoint)), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert errors[0].startswith(f"error: reward hpsv3: cannot load {checkpoint} into {base}: ")


@pytest.mark.parametrize(
    "options, line",
    [
        ({}, "on a CPU the package works in float32 only .--set dtype=float32."),
        ({"dtype": "float16"}, "dtype is bfloat16 or float32, attention auto or sdpa; not float16, auto"),
        ({"dtype": "float32", "attention": "eager"}, "attention auto or sdpa; not float32, eager"),
        ({"dtype": "float32", "checkpoint": "nowhere"}, "no file nowhere .option `checkpoint`."),
    ],
)
def test_an_impossible_option_is_one_line(options, line):
    with pytest.raises(UserError, match=f"^reward hpsv3: .*{line}$"):
        Scorer(CPU, **options)


def test_without_the_package_the_error_names_the_launch_script(monkeypatch):
    monkeypatch.setitem(sys.modules, "hpsv3", None)
    with pytest.raises(UserError, match="launch/rewards/hpsv3.sh makes the environment it needs$"):
        Scorer(CPU, dtype="float32")
