"""summary.json, report.html and their pictures, from made-up runs."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.fabricated import FORWARDS, SECONDS, STAGES, fabricate, save_rollout, settings_of
from htgrpo_ext.micro.world import TASKS
from htgrpo_ext.report import page as page_module
from htgrpo_ext.report.curves import INK, STAGE_COLORS, curves, running_mean
from htgrpo_ext.report.figures import contact_sheet, first_of_each_task, write_before_after
from htgrpo_ext.report.folder import read_metrics
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


def test_text_is_never_taken_for_markup(tmp_path):
    """Prompts come from files, reasons from a benchmark, names from the user."""
    folder, hostile = tmp_path / "run", "<script>alert('a & b')</script>"
    settings = settings_of(folder, name="<script>x & y")  # the settings refuse `/` in a name
    fabricate(folder, settings)
    (folder / "rollout.json").write_text(json.dumps({"prompt": hostile, "reward": 0.5}))
    prompts = json.loads((folder / "eval/prompts.json").read_text())
    (folder / "eval/prompts.json").write_text(json.dumps([prompt | {"prompt": hostile} for prompt in prompts]))
    with np.load(folder / "eval/base.npz") as arrays:
        changed = dict(arrays) | {"reasons": np.full((12, 4), hostile), "correct": np.zeros((12, 4), dtype=bool)}
    np.savez(folder / "eval/base.npz", **changed)
    write_summary(folder, settings, 0, {})
    page = Page(write_report(folder).read_text())
    assert not page.all("script")
    assert "".join(page.words).count(hostile) == 12 + 48 + 1  # prompts, reasons, rollout
    assert "".join(page.words).count("<script>x & y") == 3  # the run's name
    assert len(page.all("img", alt=f"before: {hostile}")) == 48


def reported(folder, settings) -> tuple[dict, Page]:
    summary = write_summary(folder, settings, 2**20, {})
    return summary, Page(write_report(folder).read_text())


def test_a_run_without_a_benchmark_shows_its_rewards(tmp_path):
    folder = tmp_path / "run"
    settings = settings_of(folder, eval=None)
    fabricate(folder, settings, cycles=12)
    rewards = [cycle["reward_mean"] for cycle in read_metrics(folder)[1]]
    summary, page = reported(folder, settings)
    assert all(summary[key] is None for key in ("base", "trained", "gain", "gain_interval", "prompts", "images"))
    assert summary["reward"] == pytest.approx([sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5])
    words = " ".join("".join(page.words).split())
    assert f"{summary['reward'][0]:.2f} → {summary['reward'][1]:.2f}" in words
    assert "first and of the last 5 cycles" in words
    assert "Scores" not in words and "Before and after" not in words
    assert len(page.all("img")) == 9 and "structure 1/4" in words and "gamma_max" in words and "864" in words


def test_records_of_maskgrpo_as_published_are_enough(tmp_path):
    """It records loss, KL, gradient norm and rewards, times nothing, and keeps no rollout."""
    folder = tmp_path / "run"
    settings = settings_of(folder, method={"name": "maskgrpo"}, eval=None)
    fabricate(folder, settings)
    absent = {"support", "ratio_mean", "ratio_max", "clip_low", "clip_high", "forwards"}
    absent |= {"entropy_structure", "entropy_refinement"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in absent} for line in lines]
    lines = [line | ({"seconds": {}} if "seconds" in line else {"stage": "global"}) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("rollout.json", "rollout.npz", "rollout.png"):
        (folder / name).unlink()
    summary, page = reported(folder, settings)
    assert (summary["forwards"], summary["seconds"]) == ({}, {})
    titles = [image["alt"] for image in page.all("img")]
    assert titles == ["Reward", "KL to the base model", "Gradient norm", "Groups without spread"]
    assert "One rollout" not in "".join(page.words) and "Peak memory 1 MiB" in "".join(page.words)


def test_cycles_in_which_no_group_was_scored_are_no_rewards(tmp_path):
    folder = tmp_path / "run"
    settings = settings_of(folder, eval=None)
    fabricate(folder, settings, cycles=2)
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for lost in (1, 2):
        cycles = [line for line in lines if line["kind"] == "cycle"][:lost]
        for cycle in cycles:
            cycle |= {"reward_mean": None, "verdict_mean": None, "partial_mean": None}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary, page = reported(folder, settings)
        assert [reward is None for reward in summary["reward"]] == [True, lost == 2]
        assert "→" not in "".join(page.words)


def test_the_maps_of_a_rollout_have_the_shape_of_its_grid(tmp_path):
    folder = fabricate(tmp_path / "run")
    rng = np.random.default_rng(0)
    save_rollout(folder, "wide", Image.new("RGB", (640, 320)), rng.permutation(512) + 1, (16, 32), rng)
    page = reported(folder, settings_of(folder))[1]
    maps = [svg for svg in page.all("svg") if svg.get("viewbox") == "0 0 512 256"]  # 16 units a token
    assert len(maps) == 3 + 8
    drawn = [path["d"] for path in page.all("path") if path["d"].startswith("M0 0h16v16h-16z")]
    assert drawn and not page.all("text")  # the first token is at the top left; numbers would not be legible
    corners = [re.findall(r"M([\d.]+) ([\d.]+)h16v", path["d"]) for path in page.all("path")]
    assert max(float(x) for each in corners for x, _ in each) == 31 * 16
    assert max(float(y) for each in corners for _, y in each) == 15 * 16


def test_importance_ratios_are_drawn_on_a_logarithmic_axis():
    updates = [{"step": n, "stage": "global", "ratio_max": 10.0**n} for n in range(4)]
    (ratios,) = curves(updates, [])
    marks = ElementTree.fromstring(ratios.svg).iter("{http://www.w3.org/2000/svg}use")
    heights = [float(mark.get("y")) for mark in marks if mark.get("y") and "opacity" in mark.get("style", "")]
    steps = np.diff(heights[:4])  # the last mark is the legend's
    assert len(heights) == 5 and steps == pytest.approx([steps[0]] * 3, rel=1e-3) and steps[0] < 0


def test_curves_have_no_background_of_their_own(page):
    for image in page.all("img"):
        if image["src"].startswith("data:image/svg"):
            drawing = base64.b64decode(image["src"].partition(",")[2]).decode()
            assert "fill: #ffffff" not in drawing


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours given as #rrggbb."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_ink_and_stages_can_be_read_on_both_pages():
    style = Path(page_module.__file__).with_name("page.css").read_text()
    light, dark = re.findall(r"--card: (#\w+)", style)
    for card in (light.replace("#fff", "#ffffff"), dark):
        assert contrast(card, INK) > 4
        assert all(contrast(card, color) > 3 for color in STAGE_COLORS.values())


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
