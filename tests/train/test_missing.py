"""What a run needs and is not there is named with the command that gets it, before any model is loaded."""

import asyncio
from pathlib import Path

import pytest

from helpers.paths import CONFIGS, ROOT
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards.client import RewardClient
from htgrpo_ext.rewards.registry import LAUNCHED, REWARDS, start_command
from htgrpo_ext.rewards.settings import RewardTerm
from htgrpo_ext.train.run import prepare_run, prompt_sources

WEIGHTS = {
    "lumina": [("checkpoint", "checkpoints/none", "Alpha-VLLM/Lumina-DiMOO")],
    "mmada": [
        ("checkpoint", "checkpoints/none", "Gen-Verse/MMaDA-8B-Base"),
        ("vq_checkpoint", "checkpoints/no-vq", "showlab/magvitv2"),
    ],
}


def settings_of(model: str, *overrides: str):
    vq = ["model.vq_checkpoint=checkpoints/no-vq"] if model == "mmada" else []
    files = [CONFIGS / f"model/{model}.yaml", CONFIGS / "method/htgrpo.yaml"]
    return load_settings(files, ["model.checkpoint=checkpoints/none", *vq, *overrides])


@pytest.mark.parametrize("model", WEIGHTS)
def test_missing_weights_are_named_with_the_download(model):
    lines = [
        f"{folder}: no such folder (model.{setting}); get it with: hf download {source} --local-dir {folder}"
        for setting, folder, source in WEIGHTS[model]
    ]
    with pytest.raises(UserError) as caught:
        prepare_run(settings_of(model))
    assert str(caught.value).splitlines() == lines
    with pytest.raises(UserError) as caught:
        load_backbone(settings_of(model).model)  # to sample codes; pixels are decoded later, if at all
    assert str(caught.value) == lines[0]


def test_missing_prompts_of_upstream_are_named_with_the_command():
    settings = settings_of("lumina", "prompts=[{format: geneval, path: nowhere/upstream/set.jsonl}]")
    with pytest.raises(UserError, match=r"set.jsonl: no such file .*`make upstream` brings MaskGRPO's"):
        prompt_sources(settings)


def test_server_that_does_not_answer_is_named_with_the_script_that_starts_it():
    term = RewardTerm(name="hpsv3", weight=1.0, url="http://127.0.0.1:9")
    said = asyncio.run(RewardClient(term, 0).health())
    assert said == (
        "reward hpsv3: no server answers at http://127.0.0.1:9; start it with: launch/rewards/hpsv3.sh --port 9"
    )


def test_every_reward_of_ours_has_a_command_that_is_there():
    assert {Path(path).stem for path in ROOT.glob("launch/rewards/*.sh")} - {"environment"} == set(LAUNCHED)
    for name in REWARDS:
        first = start_command(name, 18090).split()[0]
        assert first == "htgrpo" or (ROOT / first).is_file()
    assert start_command("verdict", 18090) == "htgrpo serve-reward verdict --port 18090"
    assert start_command("somebody's", 18090) == ""
