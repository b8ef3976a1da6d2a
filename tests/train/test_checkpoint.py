"""Checkpoints of the native loop: damage to any file is refused by name, shards are read whole."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.micro_runs import tiny_checkpoint
from htgrpo_ext.backbones.micro.model import MicroModel
from htgrpo_ext.errors import UserError
from htgrpo_ext.train import checkpoint as checkpoints
from htgrpo_ext.train.checkpoint import complete_checkpoints, read_checkpoint, restore, save_checkpoint


def stepped(folder: Path) -> tuple[MicroModel, torch.optim.AdamW]:
    """A model whose optimizer has moments."""
    model = MicroModel.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return save_checkpoint(folder / "checkpoints", 7, *stepped(tiny_checkpoint(folder / "tiny")))


FILES = ("state.json", "optimizer.pt", "model/model.safetensors", "model/config.json")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FILES), st.sampled_from(["delete", "truncate", "empty", "flip", "replace"]), st.data())
def test_a_damaged_file_is_refused_by_name(whole, tmp_path_factory, file, damage, data):
    copy = tmp_path_factory.mktemp("copy") / whole.name
    shutil.copytree(whole, copy)
    content = bytearray((copy / file).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if damage == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = {"truncate": bytes(content[:place]), "empty": b"", "flip": bytes(content), "replace": b"[1, 2]"}
    (copy / file).unlink()
    if damage != "delete":
        (copy / file).write_bytes(damaged[damage])
    with pytest.raises(UserError, match=f"^{copy}: .*; remove this checkpoint, and --resume goes on") as error:
        read_checkpoint(copy)
    assert len(str(error.value).splitlines()) == 1
    assert file in str(error.value) or file == "state.json"  # a flipped digest there names the file it is of


def test_a_file_that_was_added_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / whole.name)
    (tmp_path / whole.name / "model" / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model/other.safetensors was changed after it was written"):
        read_checkpoint(tmp_path / whole.name)


def test_weights_in_several_files_are_read_whole(tmp_path, monkeypatch):
    model, optimizer = stepped(tiny_checkpoint(tmp_path / "tiny"))
    monkeypatch.setattr(checkpoints, "save_weights", lambda m, folder: m.save_pretrained(folder, max_shard_size="20KB"))
    path = save_checkpoint(tmp_path / "checkpoints", 1, model, optimizer)
    assert len(list((path / "model").glob("*.safetensors"))) > 2
    fresh = MicroModel.from_pretrained(tmp_path / "tiny")
    other = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    restore(read_checkpoint(path), fresh, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    moments = [state["exp_avg"] for state in other.state.values()]
    assert all(torch.equal(a["exp_avg"], b) for a, b in zip(optimizer.state.values(), moments, strict=True))


def test_the_newest_two_are_kept_and_other_names_left_alone(tmp_path):
    model, optimizer = stepped(tiny_checkpoint(tmp_path / "tiny"))
    (tmp_path / "c" / "cycle-backup").mkdir(parents=True)
    for cycle in (1, 2, 3):
        save_checkpoint(tmp_path / "c", cycle, model, optimizer)
    assert [(cycle, path.name) for cycle, path in complete_checkpoints(tmp_path / "c")] == [
        (2, "cycle-000002"),
        (3, "cycle-000003"),
    ]
    assert (tmp_path / "c" / "cycle-backup").exists()
