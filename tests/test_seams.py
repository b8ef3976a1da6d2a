"""A method, a backbone, a reward and a benchmark, each added to a copy of the package: its file and its registry entry.

Each then trains two cycles there and is in the report. Nothing else of the copy is edited.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from helpers.micro_runs import tiny_checkpoint, tiny_overrides
from helpers.paths import ROOT

METHOD = '''
    """A made-up method: every update scores all tokens of the fully masked image."""

    from typing import Literal

    from htgrpo_ext.methods.base import Method


    class Everything(Method):
        name: Literal["everything"]

        def updates(self, batch, draws, count):
            from htgrpo_ext.core.views import Update, View

            all_BN = batch.rank_BN > 0
            return [Update((View(~all_BN, all_BN),), batch.plain_weight(), "global") for _ in range(count)]
'''

REWARD = '''
    """A made-up reward: the share of red light."""


    class Scorer:
        rewards = ("redness",)

        def __init__(self, device):
            pass

        def score(self, prompts, images):
            return {"redness": [(image[0].float().mean() / 255).item() for image in images]}
'''

BACKBONE = '''
    """A made-up model of the micro world: the letters of the prompt choose a row of logits for each token."""

    from typing import Literal

    from htgrpo_ext.backbones.settings import ModelSection
    from htgrpo_ext.micro.world import NUM_IMAGE_TOKENS


    class Letters(ModelSection):
        name: Literal["letters"]

        world = "micro"
        on_accelerators = False

        @property
        def num_image_tokens(self):
            return NUM_IMAGE_TOKENS

        def load(self, device, seed, frozen):
            from htgrpo_ext.backbones.letters.model import LettersBackbone, LettersModel

            return LettersBackbone(LettersModel().to(device), LettersModel().to(device))
'''

BENCHMARK = '''
    """A made-up benchmark: pictures have to be red."""

    from typing import Literal

    import numpy as np
    from PIL import Image

    from htgrpo_ext.benchmarks.base import Benchmark, Verdict


    class Reds(Benchmark):
        name: Literal["reds"]

        title = "Reds"
        task_names = {"red": "red skies"}

        def prompts(self):
            return [{"prompt": "a plain star on a beach", "tag": "red"}] * 3

        def judge(self, prompts, codes_BN, pixels):
            red_B = pixels().mean((2, 3))[:, 0]
            return [Verdict(bool(red > 0), float(red > 0), "" if red > 0 else "pale") for red in red_B]

        def keep(self, codes_BN, pixels):
            return ((pixels()[:, :, ::16, ::16].numpy() + 1) * 127.5).astype("uint8")

        def show(self, kept):
            return [Image.fromarray(np.moveaxis(image, 0, -1)) for image in kept]
'''

MODEL = """
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from htgrpo_ext.backbones.policy import Policy
    from htgrpo_ext.core.views import Prompts
    from htgrpo_ext.micro import world
    from htgrpo_ext.micro.decoder import decode_codes


    class LettersModel(nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            self.rows = nn.Embedding(128, world.CODEBOOK_SIZE, _weight=torch.zeros(128, world.CODEBOOK_SIZE))

        def forward(self, ids_BL, wanted_BN):
            return self.rows(ids_BL).mean(1)[:, None].expand(-1, wanted_BN.shape[1], -1)[wanted_BN]

        def save_pretrained(self, folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self.state_dict(), folder / "model.safetensors")


    class LettersBackbone(Policy):
        num_image_tokens, grid = world.NUM_IMAGE_TOKENS, (world.GRID, world.GRID)
        codebook_size, mask_id = world.CODEBOOK_SIZE, 127

        def encode_prompts(self, texts):
            ids = torch.tensor([[min(ord(c), 126) for c in text.ljust(80)[:80]] for text in texts])
            return Prompts(ids, ids > 0, ids > 32)

        def unconditional(self):
            return self.encode_prompts([""])

        def image_logits(self, prompts, codes_UN, wanted_UN):
            return self._policy(prompts.ids_BL, wanted_UN)

        def decode(self, codes_BN):
            return decode_codes(codes_BN)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of what runs."""
    for folder in ("htgrpo_ext", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add(package: Path, file: str, text: str) -> None:
    path = package / "htgrpo_ext" / file
    path.parent.mkdir(exist_ok=True)
    assert not path.exists()
    path.write_text(dedent(text).lstrip())


def register(package: Path, registry: str, begin: str, entry: str, imported: str = "") -> None:
    """Insert `entry` in front of what the registry's collection `begin` has, and the import it needs."""
    path = package / "htgrpo_ext" / registry
    text = path.read_text()
    assert text.count(begin) == 1
    path.write_text(text.replace(begin, f"{imported}\n{begin}{entry}"))


def train(package: Path, *overrides: str, without: str = "nothing") -> str:
    """Two cycles with the copy, from its folder; the report's text. `without` begins overrides that are left out."""
    checkpoint, out = tiny_checkpoint(package / "tiny"), package / "run"
    sets = tiny_overrides(checkpoint, out, "loop.cycles=2", *overrides)
    sets = [one for one in sets if not one.startswith(without)]
    budget = "method.budget={global: 1, structure: 1, refinement: 0}"
    files = ["configs/model/micro.yaml", "configs/method/htgrpo.yaml"]
    arguments = [word for one in (budget, *sets) for word in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-m", "htgrpo_ext.cli", "train", *files, *arguments],
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return (out / "report.html").read_text()


def metrics(package: Path, kind: str) -> list[dict]:
    records = map(json.loads, (package / "run" / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def test_a_method_is_a_file_and_its_place_in_the_registry(package):
    add(package, "methods/everything.py", METHOD)
    imported = "from htgrpo_ext.methods.everything import Everything"
    register(package, "methods/__init__.py", "METHODS: tuple[type[Method], ...] = (", "Everything, ", imported)
    assert "everything" in train(package, "method={name: everything}")
    assert [update["support"] for update in metrics(package, "update")] == [64] * 4


def test_a_reward_is_a_file_and_its_row_in_the_registry(package):
    add(package, "rewards/scorers/redness.py", REWARD)
    register(package, "rewards/registry.py", "REWARDS = {", '"redness": Reward("redness", in_process=True),')
    assert "redness" in train(package, "reward.terms=[{name: redness, weight: 1}]")
    assert all(0 < cycle["redness_mean"] < 1 for cycle in metrics(package, "cycle"))


def test_a_backbone_is_a_folder_and_its_place_in_the_registry(package):
    add(package, "backbones/letters/__init__.py", BACKBONE)
    add(package, "backbones/letters/model.py", MODEL)
    imported = "from htgrpo_ext.backbones.letters import Letters"
    register(package, "backbones/__init__.py", "BACKBONES: tuple[type[ModelSection], ...] = (", "Letters, ", imported)
    assert "letters" in train(package, "model={name: letters, checkpoint: none, tuning: full}")
    assert len(metrics(package, "cycle")) == 2 and (package / "run/model/model.safetensors").is_file()


def test_a_benchmark_is_a_file_and_its_place_in_the_registry(package):
    add(package, "benchmarks/reds.py", BENCHMARK)
    imported = "from htgrpo_ext.benchmarks.reds import Reds"
    register(package, "benchmarks/__init__.py", "BENCHMARKS: tuple[type[Benchmark], ...] = (", "Reds, ", imported)
    section = "eval={name: reds, images_per_prompt: 2, seed: 1}"
    report = train(package, section, without="eval.")
    assert "Reds" in report and "red skies" in report and "MicroEval" not in report
    assert json.loads((package / "run/summary.json").read_text())["images"] == 6
