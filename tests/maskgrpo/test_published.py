"""METHOD=maskgrpo through the patched tree is MaskGRPO, bit for bit."""

import json
import os
import subprocess

import pytest
import torch

from helpers.micro_runs import CONFIGS, records
from helpers.paths import HELPERS, UPSTREAM
from helpers.upstream_runs import needs_upstream, run_python
from htgrpo_ext.config import load_settings
from htgrpo_ext.maskgrpo.launch import published_config, trainer_config
from htgrpo_ext.maskgrpo.patches.series import Series
from htgrpo_ext.train.run import prompt_sources

pytestmark = needs_upstream
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj"]  # those of MaskGRPO's list that exist
SETTINGS = [
    "model.dtype=float32",
    f"model.lora.targets=[{', '.join(TARGETS)}]",
    "model.lora.rank=4",
    "model.lora.dropout=0.05",
    "model.activation_checkpointing=false",
    "rollout.prompts_per_cycle=2",
    "rollout.rollouts_per_prompt=2",
    "loop.cycles=2",
    "loop.updates_per_rollout=4",
    "loop.learning_rate=1.0e-3",
    "log.tensorboard=false",
    "prompts=[{format: micro}]",
    "reward.terms=[{name: clip, weight: 1.0}]",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The pinned commit's files, as they are without a patch."""
    folder = tmp_path_factory.mktemp("pristine")
    base = Series.load(UPSTREAM.parent / "patches").base
    env = os.environ | {"GIT_INDEX_FILE": str(folder / "index")}
    git = ["git", "-C", str(UPSTREAM)]
    subprocess.run([*git, "read-tree", base], env=env, check=True)
    # A mirror may lack pictures; whatever code is missing shows at once.
    subprocess.run([*git, "checkout-index", "--all", f"--prefix={folder}/"], env=env, stderr=subprocess.DEVNULL)
    return folder


def test_maskgrpo_is_bit_identical_to_the_pristine_commit(pristine, mmada_folder, tmp_path):
    """K = 4, two micro-batches, KL, guidance 3.5, fp32: eight optimizer steps over two rollout batches."""
    sets = [*SETTINGS, f"model.checkpoint={mmada_folder}", f"model.vq_checkpoint={mmada_folder}"]
    files = [CONFIGS / "model" / "mmada.yaml", CONFIGS / "method" / "maskgrpo.yaml"]
    settings = load_settings(files, [*sets, f"out={tmp_path / 'run'}"])
    sources = prompt_sources(settings)
    prompts = [prompt["prompt"] for cycle in range(2) for prompt in sources.cycle(cycle)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    args = trainer_config(settings, 1) | published_config(settings)
    args |= {"output_dir": str(tmp_path / "pristine"), "save_strategy": "no"}
    assert (args["gradient_accumulation_steps"], args["beta"], args["cfg_scale"]) == (2, 0.01, 3.5)
    lora = {"r": 4, "lora_alpha": settings.model.lora.alpha, "lora_dropout": 0.05, "target_modules": TARGETS}
    (tmp_path / "settings.json").write_text(json.dumps({"args": args, "lora": lora}))
    inputs = [pristine, mmada_folder, tmp_path / "prompts.json", tmp_path / "settings.json", tmp_path / "theirs.pt"]
    run_python(HELPERS / "run_pristine.py", *map(str, inputs))
    pairs = [part for each in [*sets, f"out={tmp_path / 'run'}"] for part in ("--set", each)]
    ours = [str(tmp_path / "ours.pt"), *map(str, files), *pairs, "--loop", "upstream"]
    said = run_python(HELPERS / "run_published.py", *ours)
    assert said.count("MaskGRPO as published is not evaluated while it trains: its model class has no backbone") == 1

    theirs, ours = (torch.load(tmp_path / f"{name}.pt") for name in ("theirs", "ours"))
    assert len(theirs["seen"]["loss"]) == 16 and len(theirs["seen"]["advantages"]) == 4
    assert len({loss.item() for loss in theirs["seen"]["loss"]}) > 10  # something was learnt and scored
    for key, values in theirs["seen"].items():
        assert len(values) == len(ours["seen"][key])
        for a, b in zip(values, ours["seen"][key], strict=True):
            assert torch.equal(a, b), key
    assert theirs["weights"].keys() == ours["weights"].keys()
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in theirs["weights"].items())
    assert all(torch.equal(theirs["weights"][name], ours["weights"][name]) for name in theirs["weights"])
    logged = [record["loss"] for record in records(tmp_path / "run", "update")]
    by_step = torch.stack(theirs["seen"]["loss"]).view(8, 2).mean(-1)
    assert logged == pytest.approx(by_step.tolist(), abs=1e-7)
