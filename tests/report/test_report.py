"""summary.json, report.html and their pictures, from a made-up run."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.fabricated import FORWARDS, SECONDS, STAGES, fabricate, settings_of
from htgrpo_ext.micro.world import TASKS
from htgrpo_ext.report.curves import running_mean
from htgrpo_ext.report.figures import contact_sheet, first_of_each_task, write_before_after
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import write_summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, summary) of a run with summary and report written."""
    folder = tmp_path_factory.mktemp("micro-htgrpo-s0")
    summary = write_summary(fabricate(folder), settings_of(folder), 3 * 2**20, {"evaluation": 5.0, "update": 0.5})
    write_report(folder)
    return folder, summary


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str, **having: str) -> list[dict]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in having.items())]


@pytest.fixture(scope="module")
def page(run):
    return Page((run[0] / "report.html").read_text())


def test_summary_counts_what_the_folder_holds(run):
    folder, summary = run
    assert json.loads((folder / "summary.json").read_text()) == summary
    with np.load(folder / "eval/base.npz") as base, np.load(folder / "eval/trained.npz") as trained:
        before, after = base["correct"], trained["correct"]
    by_task = after.reshape(6, 2 * 4).mean(axis=1)  # two prompts a task, four images each
    assert summary["trained"]["overall"] == pytest.approx(after.mean())  # tasks of one size
    assert [t["score"] for t in summary["trained"]["tasks"].values()] == pytest.approx(list(by_task))
    assert list(summary["trained"]["tasks"]) == list(TASKS)
    assert summary["gain"] == pytest.approx(after.mean() - before.mean())
    assert summary["gain_interval"][0] <= summary["gain"] <= summary["gain_interval"][1]
    assert (summary["prompts"], summary["images"], summary["cycles"]) == (12, 48, 3)
    assert summary["forwards"] == {kind: 3 * count for kind, count in FORWARDS.items()}
    assert summary["seconds"] == {part: 3 * s + (part == "update") * 0.5 for part, s in SECONDS.items()} | {
        "evaluation": 5.0
    }
    assert (summary["name"], summary["method"], summary["label"]) == ("micro-htgrpo-s0", "htgrpo", "htgrpo")
    assert (summary["seed"], summary["peak_memory_bytes"]) == (0, 3 * 2**20)


def test_nothing_half_written_is_left(run):
    assert not list(run[0].rglob("*.partial"))


def test_report_asks_for_nothing_outside_itself(run, page):
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    text = (run[0] / "report.html").read_text()
    assert all(address.startswith("data:") for address in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text and not page.open


def test_every_data_uri_decodes(run):
    text = (run[0] / "report.html").read_text()
    uris = re.findall(r"data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)", text)
    kinds = [kind for kind, _ in uris]
    assert (kinds.count("png"), kinds.count("svg+xml")) == (12 * 2 * 4 + 1, 9)
    for kind, encoded in uris:
        content = base64.b64decode(encoded, validate=True)
        if kind == "png":
            assert Image.open(io.BytesIO(content)).size == (128, 128)
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
            assert b'href="http' not in content


def test_report_marks_each_image_with_its_verdict(run, page):
    with np.load(run[0] / "eval/base.npz") as base, np.load(run[0] / "eval/trained.npz") as trained:
        right = int(base["correct"].sum() + trained["correct"].sum())
        reasons = set(base["reasons"].ravel()) | set(trained["reasons"].ravel())
    assert len(page.all("figure", **{"class": "image right"})) == right
    assert len(page.all("figure", **{"class": "image"})) == 96 - right
    assert all(reason in "".join(page.words) for reason in reasons)


def test_report_shows_the_numbers_and_the_supports(run, page):
    words, summary = "".join(page.words), run[1]
    for score in (summary["base"]["overall"], summary["trained"]["overall"]):
        assert f"{score:.2f}" in words
    with np.load(run[0] / "rollout.npz") as shown:
        sizes = shown["supports"].sum(axis=1)
    labels = [f"{stage} {STAGES[:k].count(stage) + 1}/{STAGES.count(stage)}" for k, stage in enumerate(STAGES)]
    for label, size in zip(labels, sizes, strict=True):
        assert f"{label}{size} tokens" in words
    assert "the first 19 are structure" in words and "gamma_max" in words and "864" in words


def test_report_does_not_take_prompts_for_markup(tmp_path):
    folder = fabricate(tmp_path / "run")
    (folder / "rollout.json").write_text(json.dumps({"prompt": "<b>a & b</b>", "reward": 0.5}))
    write_summary(folder, settings_of(folder), 0, {})
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in write_report(folder).read_text()


def test_prompts_are_shown_by_place_not_by_outcome():
    prompts = [{"tag": tag} for tag in "abaabb"]
    assert first_of_each_task(prompts, 2) == {"a": [0, 2], "b": [1, 4]}


def test_running_mean_looks_back_only():
    assert running_mean([1, 2, 6, 0], width=2) == [1, 1.5, 4, 3]


def test_before_after_is_a_wide_png(run):
    out = run[0] / "docs" / "before-after.png"
    write_before_after(run[0], out)
    picture = Image.open(out)
    assert picture.width == 1200 and picture.height < 1200


def test_contact_sheet_keeps_captions_within_their_cell():
    images = [Image.new("RGB", (128, 128), "blue")] * 3
    captions = ["a striped purple diamond left of a dotted yellow triangle by the sea", "short", ""]
    sheet = contact_sheet(images, 2, captions, ["#00ff00", "#ff0000", "#00ff00"])
    pixels = torch.tensor(list(sheet.tobytes())).view(sheet.height, sheet.width, 3)
    middle = sheet.width // 2  # the gap between the two columns
    assert (pixels[:, middle] == 255).all() and (pixels[:, -3:] == 255).all()
    below_first = pixels[6 + 134 : 6 + 134 + 30, :middle]
    assert (below_first < 128).any(dim=2).any()  # there is a caption

    def count(color):
        return (pixels == torch.tensor(color)).all(dim=2).sum().item()

    ring = 134 * 134 - 128 * 128  # a border three pixels wide
    assert (count((0, 0, 255)), count((0, 255, 0)), count((255, 0, 0))) == (3 * 128 * 128, 2 * ring, ring)


def test_contact_sheet_grows_with_its_scale():
    images = [Image.new("RGB", (128, 128))] * 2
    assert contact_sheet(images, 1, scale=2).width == 2 * contact_sheet(images, 1).width
