"""When a set is complete: what is missing, damaged, foreign or mixed is named; records and digests."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.image_sets import dpg_lines, made_set, picture, written
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets import digests
from htgrpo_ext.imagesets.digests import adapter_digest, checkpoint_digest
from htgrpo_ext.imagesets.pngs import save_png
from htgrpo_ext.imagesets.record import Record, differences, read_record, write_record
from htgrpo_ext.imagesets.sets import check_set, describe_set

IMAGE = "images/00040/samples/00002.png"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete set of MicroEval's first two prompts of each task; never written to."""
    folder = tmp_path_factory.mktemp("set") / "set"
    made_set(folder, "microeval", limit=2)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def grey(path):
    Image.open(path).convert("L").save(path)


def text(path):
    path.write_text("no picture, but a text of some length")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "empty"),
        (cut, r"truncated or damaged \(.*\)"),
        (flip, r"truncated or damaged \(.*\)"),
        (text, "no PNG"),
        (lambda path: picture(1, (7, 6)).save(path), "7 x 6 pixels, not 6 x 6"),
        (grey, "its pixels are L, not RGB"),
    ],
)
def test_an_image_that_is_not_whole_is_named(folder, damage, words):
    damage(folder / IMAGE)
    advice = f"remove {folder}/images/00040 and run htgrpo eval generate again"
    with pytest.raises(UserError, match=rf"^{folder}/{IMAGE}: {words}; {advice}$"):
        check_set(folder)


def test_missing_items_are_counted_and_the_first_is_named(folder):
    for key in ("00040", "00201"):
        shutil.rmtree(folder / "images" / key)
    with pytest.raises(UserError) as refused:
        check_set(folder)
    assert str(refused.value) == (
        f"{folder}/images/00040/samples/00003.png: missing, as are the images of 2 of 12 prompts; "
        "go on with htgrpo eval generate"
    )
    shutil.rmtree(folder / "images")
    with pytest.raises(UserError, match="12 of 12 prompts"):
        check_set(folder)


@pytest.mark.parametrize(
    "name", ["images/.DS_Store", "images/00040/grid.png", "images/00300/x", "images/00040/samples/4"]
)
def test_what_does_not_belong_there_is_named(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=rf"^{folder}/images/.*: does not belong to the set; move it away$"):
        check_set(folder)


def test_images_of_another_set_or_prompt_are_found(folder, tmp_path):
    """Another seed's image of the same prompt, and two prompts' images exchanged."""
    made_set(tmp_path / "other", "microeval", limit=2, seed=1)
    before = (folder / IMAGE).read_bytes()
    shutil.copyfile(tmp_path / "other" / IMAGE, folder / IMAGE)
    with pytest.raises(UserError, match=rf"^{folder}/{IMAGE}: another set's image, or another prompt's; remove it"):
        check_set(folder)
    shutil.copyfile(folder / "images/00041/samples/00002.png", folder / IMAGE)
    with pytest.raises(UserError, match="another prompt's"):
        check_set(folder)
    save_png(folder / IMAGE, picture(3), "", "")
    with pytest.raises(UserError, match="the sets are mixed"):
        check_set(folder)
    (folder / IMAGE).write_bytes(before)
    check_set(folder)


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"sampler": {"steps": 4}}, {"weights": "sha256:1"}, {"adapter": "sha256:2"}]
)
def test_images_are_refused_under_another_record(folder, change):
    write_record(folder, replace(read_record(folder), **change))
    with pytest.raises(UserError, match="another set's image"):
        check_set(folder)


def test_the_images_of_another_program_are_a_set_too(tmp_path):
    made_set(tmp_path, "microeval", limit=1, stamped=False)
    check_set(tmp_path)


def test_a_changed_line_prompt_or_record_is_refused(folder):
    (folder / "images/00040/metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"00040/metadata.jsonl: not the line of the set's prompts; remove"):
        check_set(folder)
    lines = (folder / "prompts.jsonl").read_text()
    for other in (lines.replace("plain", "other", 1), lines[:40], "", "[1]\n"):
        (folder / "prompts.jsonl").write_text(other)
        with pytest.raises(
            UserError, match=r"prompts.jsonl: not the prompts of the set's record; generate the set again$"
        ):
            check_set(folder)
    (folder / "record.json").write_text('{"bench": "microeval"}')
    with pytest.raises(UserError, match=r"record.json: broken or incomplete"):
        check_set(folder)


def test_a_limited_set_says_that_it_is_not_the_whole(whole):
    _, items, record = check_set(whole)
    assert [item.key for item in items] == [f"{40 * task + i:05d}" for task in range(6) for i in range(2)]
    assert record.limit == 2 and describe_set(whole).endswith(
        "48 images of 6 x 6 pixels (not the whole: 2 prompts of each task)"
    )


def test_the_files_of_a_set_are_the_same_bytes_each_time(tmp_path):
    path = written(tmp_path / "prompts", dpg_lines())
    for name in ("a", "b"):
        made_set(tmp_path / name, "dpg", path, limit=3)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} for name in "ab")
    assert a == b and len(a) == 5


# --- records and digests ---------------------------------------------------------------------------------------

RECORD = Record(
    "geneval", "sha256:a", 553, 4, 0, (512, 512), {"steps": 64}, {"name": "lumina", "checkpoint": "a", "height": 512},
    "sha256:w", None, "base",
)  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD


def test_differences_are_named_but_for_where_weights_lie_and_what_training_reads():
    moved = replace(RECORD, model=RECORD.model | {"checkpoint": "b", "tuning": "lora", "lora": {"rank": 3}})
    assert list(differences(RECORD, moved)) == [] and moved.stamp == RECORD.stamp
    other = replace(RECORD, seed=1, sampler={"steps": 12}, model=RECORD.model | {"height": 1024})
    assert list(differences(RECORD, other)) == [
        "seed 1, not 0",
        "sampler.steps 12, not 64",
        "model.height 1024, not 512",
    ]
    named = replace(RECORD, label="x")
    assert list(differences(RECORD, named)) == ["label x, not base"] and named.stamp == RECORD.stamp
    changes = dict(adapter="sha256:1", prompt_key="long_prompt", limit=3, weights="sha256:2", size=(1, 1))
    assert all(replace(RECORD, **{key: value}).stamp != RECORD.stamp for key, value in changes.items())


def test_a_digest_tells_checkpoints_apart_and_not_where_they_lie(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = rng.bytes(3 * 2**20)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    (tmp_path / "b/readme.md").write_text("not read")
    small = checkpoint_digest([tmp_path / "a"])
    assert small == checkpoint_digest([tmp_path / "b", None]) and small.startswith("sha256:")
    assert checkpoint_digest([tmp_path / "a", tmp_path / "b"]) != small
    monkeypatch.setattr(digests, "WHOLE", 2**20)
    large = checkpoint_digest([tmp_path / "a"])
    assert large.startswith("sha256-sampled:") and large == checkpoint_digest([tmp_path / "b"])
    # One weight in a hundred changes, as little as training ever does.
    trained = np.frombuffer(weights, dtype=np.uint8).copy()
    trained[rng.random(len(trained)) < 0.01] += 1
    (tmp_path / "b/model.safetensors").write_bytes(trained.tobytes())
    assert checkpoint_digest([tmp_path / "b"]) != large
    (tmp_path / "b/model.safetensors").write_bytes(weights + b"\0")
    assert checkpoint_digest([tmp_path / "b"]) != large
    (tmp_path / "b/model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert checkpoint_digest([tmp_path / "b"]) != large  # the last block ends with the file
    with pytest.raises(UserError, match=r"none: no such folder \(model.checkpoint"):
        checkpoint_digest([tmp_path / "none"])


def test_an_adapters_digest_is_of_all_its_bytes(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1}))
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1000))
    before = adapter_digest(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(999) + b"\1")
    assert adapter_digest(tmp_path) != before
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors: No such file or directory \(--adapter\)$"):
        adapter_digest(tmp_path)
