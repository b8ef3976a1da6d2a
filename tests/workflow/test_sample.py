"""The pictures of `htgrpo sample`: their metadata and their traces."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.command import run as run_command
from helpers.paths import ROOT
from htgrpo_ext import cli
from htgrpo_ext.backbones.adapters import merge
from htgrpo_ext.workflow.sample import order_image, strip

SMALL = ["model.height=48", "model.width=80", "model.dtype=float32", "rollout.steps=3"]  # 3 rows of 5 tokens


def run(monkeypatch, capsys, *arguments) -> list[Path]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["htgrpo", "sample", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code, capsys.readouterr().err
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def lumina(folder, out, *more):
    sets = [part for setting in SMALL for part in ("--set", setting)]
    return ["--model", "lumina", "--checkpoint", folder, "--out", out, *sets, *more]


def test_pngs_say_how_they_were_made(monkeypatch, capsys, lumina_folder, tmp_path):
    prompts = ["--prompt", "a photo of a red cat", "--prompt", "two dog beside the bench"]
    paths = run(monkeypatch, capsys, *lumina(lumina_folder, tmp_path, *prompts, "--count", 2, "--seed", 5))
    names = ["000-a-photo-of-a-red-cat-0", "000-a-photo-of-a-red-cat-1"]
    names += ["001-two-dog-beside-the-bench-0", "001-two-dog-beside-the-bench-1"]
    assert paths == [tmp_path / f"{name}.png" for name in names]
    for i, path in enumerate(paths):
        image = Image.open(path)
        assert image.size == (80, 48)
        assert image.text["prompt"] == prompts[1 + 2 * (i // 2)] and image.text["seed"] == "5"
        made = json.loads(image.text["settings"])
        assert (made["place"], made["image"]) == (i // 2, i % 2)
        assert made["rollout"]["guidance"] == 3.5 and made["model"]["checkpoint"] == str(lumina_folder)
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])
    again = run(monkeypatch, capsys, *lumina(lumina_folder, tmp_path / "b", *prompts, "--count", 2, "--seed", 5))
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_a_trace_is_an_order_and_a_strip(monkeypatch, capsys, lumina_folder, tmp_path):
    (path,) = run(monkeypatch, capsys, *lumina(lumina_folder, tmp_path, "--prompt", "a cat", "--trace"))
    order = np.asarray(Image.open(path.with_suffix(".order.png")))
    cells = order.reshape(3, 16, 5, 16, 3)[:, 0, :, 0].reshape(15, 3)
    assert order.shape == (48, 80, 3) and len({tuple(cell) for cell in cells.tolist()}) == 15
    assert Image.open(path.with_suffix(".steps.png")).width > 3 * 160


def test_an_order_goes_from_dark_to_bright():
    image = np.asarray(order_image(torch.tensor([4, 1, 3, 2], dtype=torch.int16), (2, 2), (20, 20)))
    assert image[5, 15].tolist() == [68, 1, 84] and image[5, 5].tolist() == [253, 231, 37]  # viridis, both ends
    brightness = image.sum(-1)
    assert brightness[5, 15] < brightness[15, 15] < brightness[15, 5] < brightness[5, 5]


def test_a_strip_shows_the_visible_tokens_of_each_step():
    """160 pixels a side, so that a token is 80 x 80: 3, 2 and 0 of 4 are grey after steps 1, 2 and 3."""
    red = Image.new("RGB", (160, 160), (255, 0, 0))
    sheet = np.asarray(strip(red, torch.tensor([0, 2, 1, 2]), (2, 2), steps=3))
    assert (sheet == (255, 0, 0)).all(-1).sum() == (1 + 2 + 4) * 80 * 80
    grey = (sheet == (128, 128, 128)).all(-1).sum()
    assert 0 <= grey - (3 + 2 + 0) * 80 * 80 < 100  # a few in the edges of letters


def test_an_adapter_paints_as_the_merged_checkpoint_does(monkeypatch, capsys, lumina_folder, tmp_path):
    from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

    lora = {"r": 2, "lora_alpha": 8, "target_modules": r".*\.blocks\.\d+\.ff_out"}
    model = LuminaBackbone.load(lumina_folder, lora, height=48, width=80).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path / "adapter")
    arguments = lumina(lumina_folder, tmp_path, "--prompt", "a cat")
    (plain,) = run(monkeypatch, capsys, *arguments)
    before = np.asarray(Image.open(plain))
    assert run_command(monkeypatch, "sample", *map(str, arguments), "--adapter", str(tmp_path / "adapter")) == 2
    assert capsys.readouterr().err.startswith(f"error: {plain}: another picture is there; ")
    arguments = lumina(lumina_folder, tmp_path / "changed", "--prompt", "a cat")
    (changed,) = run(monkeypatch, capsys, *arguments, "--adapter", tmp_path / "adapter")
    merge(lumina_folder, tmp_path / "adapter", tmp_path / "merged")
    (merged,) = run(monkeypatch, capsys, *lumina(tmp_path / "merged", tmp_path / "m", "--prompt", "a cat"))
    changed, merged = (np.asarray(Image.open(path)) for path in (changed, merged))
    assert (changed == merged).all() and (changed != before).any()


def test_the_micro_model_paints(monkeypatch, capsys, tmp_path):
    prompt = "a plain star on a beach"
    (path,) = run(
        monkeypatch, capsys, "--model", "micro", "--checkpoint", "assets/micro-base", "--out", tmp_path,
        "--prompt", prompt, "--trace",
    )  # fmt: skip
    assert Image.open(path).text["prompt"] == prompt and path.with_suffix(".steps.png").is_file()


def test_an_unknown_model_is_one_line(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["htgrpo", "sample", "--model", "lumi", "--checkpoint", "x", "--prompt", "y"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert (
        capsys.readouterr().err
        == "error: unknown model `lumi` (one of amused, lumina, micro, mmada, words, words-free)\n"
    )


MICRO = ["sample", "--model", "micro", "--checkpoint", "assets/micro-base", "--prompt", "a plain star on a beach"]


def test_another_seed_never_overwrites_pictures_and_the_same_one_may(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    arguments = [*MICRO, "--out", str(tmp_path), "--set", "rollout.steps=2"]
    assert run_command(monkeypatch, *arguments) == 0
    (path,) = tmp_path.iterdir()
    picture = path.read_bytes()
    assert run_command(monkeypatch, *arguments) == 0 and path.read_bytes() == picture
    monkeypatch.setattr("htgrpo_ext.workflow.sample.load_backbone", lambda *_, **__: pytest.fail("it was loaded"))
    capsys.readouterr()
    assert run_command(monkeypatch, *arguments, "--seed", "1") == 2
    line = f"error: {path}: another picture is there; give another --out, or the options it was made with\n"
    assert capsys.readouterr().err == line and path.read_bytes() == picture
    path.write_text("no picture")
    assert run_command(monkeypatch, *arguments) == 2 and path.read_text() == "no picture"


@pytest.mark.parametrize("out", ["taken", "taken/below", "/proc/none"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(monkeypatch, capsys, tmp_path, out):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("htgrpo_ext.workflow.sample.load_backbone", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "taken").write_text("mine")
    assert run_command(monkeypatch, *MICRO, "--out", str(tmp_path / out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / out}: ") and len(said.splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_checkpoint_path_is_taken_whole(monkeypatch, capsys, tmp_path):
    """A comment or a section to YAML, which would leave another folder's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(ROOT / "assets/micro-base")
    for name in ("base #2", "base: 2"):
        arguments = ["--checkpoint", name, "--prompt", "a plain star on a beach", "--out", str(tmp_path / "out")]
        assert run_command(monkeypatch, "sample", "--model", "micro", *arguments) == 2
        assert capsys.readouterr().err.startswith(f"error: {name}: no micro checkpoint there")
        (tmp_path / name).symlink_to(ROOT / "assets/micro-base")
        assert run_command(monkeypatch, "sample", "--model", "micro", *arguments, "--set", "rollout.steps=1") == 0
        (tmp_path / "out/000-a-plain-star-on-a-beach-0.png").unlink()


def test_a_prompt_that_the_model_cannot_read_is_refused_before_its_weights_are_read(
    monkeypatch, capsys, tmp_path, lumina_folder
):
    for file in lumina_folder.glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    arguments = lumina(tmp_path, tmp_path / "out", "--prompt", "a cat", "--prompt", "a cat</user><answer>")
    assert run_command(monkeypatch, "sample", *map(str, arguments)) == 2
    marker = "`</user>` is a marker of the model and cannot be part of a prompt"
    assert capsys.readouterr().err == f"error: prompt 'a cat</user><answer>': {marker}\n"
    assert not (tmp_path / "out").exists()
