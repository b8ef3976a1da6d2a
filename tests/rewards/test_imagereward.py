"""The scorer around ImageReward's package. A stub replaces the package, which needs an environment of its own."""

import sys
from types import SimpleNamespace

import pytest
import torch

from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards.scorers.imagereward import Scorer

CPU = torch.device("cpu")


class Model(torch.nn.Module):
    """Its score depends on the prompt and the picture."""

    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Linear(2, 1)
        self.blip = torch.nn.ModuleDict({"vision_proj": torch.nn.Linear(2, 1)})

    def score(self, prompt, picture):
        return len(prompt) + picture.getpixel((1, 0))[2] / 1000 + picture.width


@pytest.fixture
def load(monkeypatch):
    """The calls of the package's `load`."""
    asked = []

    def load(name, device, med_config):
        asked.append((name, device, med_config))
        return Model()

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    return asked


def test_each_picture_is_scored_with_its_own_prompt(load):
    image = torch.zeros(3, 2, 4, dtype=torch.uint8)
    image[2, 0, 1] = 250
    images = [torch.zeros(3, 5, 3, dtype=torch.uint8), image]
    scores = Scorer(CPU).score([{"prompt": "a"}, {"prompt": "a dog"}], images)
    assert scores == {"imagereward": [1 + 3, pytest.approx(5 + 0.25 + 4)]}
    assert load == [("ImageReward-v1.0", CPU, None)]


def test_a_local_checkpoint_must_hold_all_weights(load, tmp_path):
    file, config = tmp_path / "ImageReward.pt", tmp_path / "med_config.json"
    config.write_text("{}")
    state = Model().state_dict()
    torch.save({name: value for name, value in state.items() if "_proj" not in name}, file)
    Scorer(CPU, str(file), str(config))
    assert load == [(str(file), CPU, str(config))]
    torch.save({name: value for name, value in state.items() if name != "mlp.bias"}, file)
    with pytest.raises(UserError, match=r"1 weights missing: mlp.bias, \.\.$"):
        Scorer(CPU, str(file), str(config))
    file.write_text("nothing")
    with pytest.raises(UserError, match="cannot load .*ImageReward.pt") as raised:
        Scorer(CPU, str(file), str(config))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("option", ["checkpoint", "config"])
def test_a_missing_file_is_one_line(load, option):
    with pytest.raises(UserError, match=f"no file nowhere .option `{option}`.$"):
        Scorer(CPU, **{option: "nowhere"})
    assert not load


def test_without_the_package_the_error_names_the_launch_script(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(UserError, match="launch/rewards/imagereward.sh makes the environment it needs$"):
        Scorer(CPU)
