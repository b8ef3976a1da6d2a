"""The reward `ocr` against RapidOCR's own calls, in process and served."""

import asyncio
import difflib
import re
import sys

import pytest
import torch

from helpers.drawn_words import drawn
from helpers.serving import listening
from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import encode_png
from htgrpo_ext.rewards.batching import Batcher
from htgrpo_ext.rewards.client import RewardClient
from htgrpo_ext.rewards.mix import load_scorer
from htgrpo_ext.rewards.server import Metrics, make_app
from htgrpo_ext.rewards.settings import RewardTerm

rapidocr = pytest.importorskip(
    "rapidocr_onnxruntime", reason="RapidOCR is not there; make setup installs it", exc_type=ImportError
)
CPU = torch.device("cpu")
# What is drawn, and what is asked for. Some are right, some a letter or more wrong, one is empty.
LINES = [
    (drawn("river"), "river"),
    (drawn("river", ink="#ff0000", paper="#00b0ff"), "rivet"),
    (drawn("Stone", ink="white", paper="#224466", height=16), "stone"),
    (drawn("cloud", size=(120, 30)), "clouds"),
    (drawn(), "light"),
    (drawn("music", paper="#999"), "table"),
]
PAGES = [
    (drawn("GRAND", "hotel", size=(160, 160), height=30), "Grand hotel"),
    (drawn("open", size=(160, 160), height=30, paper="khaki"), "often"),
]


@pytest.fixture(scope="module")
def engine():
    return rapidocr.RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def expected(engine, pairs, detection: bool) -> tuple[list[str], list[float]]:
    """Readings and scores by RapidOCR alone, each picture as a PNG of its own; distances by another rule.

    Of two texts without repeated edits the distance is what difflib's matching leaves on the longer side.
    """
    texts, scores = [], []
    for image, wanted in pairs:
        lines, _ = engine(encode_png(image), use_det=detection, use_cls=False)
        text = "".join(line[1 if detection else 0] for line in lines or [])
        texts.append(re.sub(r"\s", "", text).lower())
        wanted = re.sub(r"\s", "", wanted).lower()
        blocks = difflib.SequenceMatcher(None, texts[-1], wanted, autojunk=False).get_opcodes()
        distance = sum(max(a2 - a1, b2 - b1) for kind, a1, a2, b1, b2 in blocks if kind != "equal")
        scores.append(1 - min(distance, len(wanted)) / len(wanted))
    return texts, scores


@pytest.mark.parametrize(("pairs", "detection"), [(LINES, False), (PAGES, True)], ids=["line", "page"])
def test_scores_are_those_of_rapidocr_in_process_and_served(engine, pairs, detection):
    texts, scores = expected(engine, pairs, detection)
    assert texts[0] == ("grandhotel" if detection else "river") and len(set(scores)) > 1, texts
    prompts = [{"prompt": "a sign", "text": wanted} for _, wanted in pairs]
    term = RewardTerm(name="ocr", weight=1.0, options={"detection": detection})
    scorer = load_scorer(term, CPU)
    images = [image for image, _ in pairs]
    own = scorer.score(prompts, images)
    assert own["ocr"] == scores
    assert own["ocr-exact"] == [float(score == 1) for score in scores]

    batcher = Batcher([scorer], batch_size=4, wait=0.0)
    health = {"name": "ocr", "rewards": list(scorer.rewards), "devices": ["cpu"]}
    with listening(make_app(batcher, Metrics(), health, 2**20, None)) as url:
        client = RewardClient(RewardTerm(name="ocr", weight=1.0, url=url), retries=0)
        served = asyncio.run(client.score(prompts, [encode_png(image) for image in images]))
    assert served == scores


def test_threads_and_neighbours_do_not_change_a_reading():
    images = [image for image, _ in LINES]
    prompts = [{"prompt": f'"{wanted}"'} for _, wanted in LINES]
    one, two = (
        load_scorer(RewardTerm(name="ocr", weight=1.0, options=o), CPU)
        for o in ({"detection": False, "threads": 1}, {"detection": False, "threads": 2})
    )
    alone = [one.score([prompt], [image])["ocr"][0] for prompt, image in zip(prompts, images, strict=True)]
    assert alone == two.score(prompts, images)["ocr"] == one.score(prompts[::-1], images[::-1])["ocr"][::-1]


def test_options_that_cannot_be_are_one_line():
    for options, says in (
        ({"threads": 0}, "option `threads` is 0, not a number from 1"),
        ({"threads": "two"}, "option `threads`: input should be a valid integer"),
        ({"detect": True}, "unknown option `detect` (one of detection, threads)"),
    ):
        with pytest.raises(UserError, match=re.escape(says)) as raised:
            load_scorer(RewardTerm(name="ocr", weight=1.0, options=options), CPU)
        assert "\n" not in str(raised.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(UserError, match="^reward ocr: rapidocr_onnxruntime cannot be imported .* pip install"):
        load_scorer(RewardTerm(name="ocr", weight=1.0), CPU)
