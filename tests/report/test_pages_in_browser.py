"""compare.html, summary.html and report.html in headless Chromium: pictures load, sorting and filtering work.

Skipped where there is no Chromium.
"""

import io

import pytest
from rich.console import Console

from helpers.browser import browser, chromium
from helpers.compared_sets import micro_items, write_lines, write_set, write_verdicts
from helpers.fabricated import fabricate, save_evaluation, settings_of
from htgrpo_ext.micro.verifier import Verdict
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.folder import read_prompts
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.set_comparison import write_set_comparison
from htgrpo_ext.report.sets import read_sets
from htgrpo_ext.report.summary import write_summary

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here (in PATH, or named by CHROMIUM)")

ITEMS = micro_items(2)
RIGHT = Verdict(True, 1.0, "", ())
PAGES = ("compare", "summary", "preference", "report")
# What each shown prompt is called, in the order of the page.
SHOWN = "[...document.querySelectorAll('article:not([hidden]) h4')].map(h => h.firstChild.textContent.trim())"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The files of all pages; of `summary` the verdicts on each prompt's images, by prompt and set."""
    root, quiet = tmp_path_factory.mktemp("pages"), Console(file=io.StringIO())
    verdicts = {item.prompt: [] for item in ITEMS}
    sets = {"judged": [], "liked": []}
    for name, wrong in (("base", 0.7), ("trained", 0.2)):
        for kind, folders in sets.items():
            folder, judged = write_set(root / kind / name, ITEMS, wrong, f"sha256:{name}", label=name)
            write_lines(folder, ITEMS, "imagereward", lambda n, name=name: ({"imagereward": n % 3 * len(name)}, ""))
            folders.append(folder)
            if kind == "judged":
                judged[:8] = [RIGHT] * 8  # on the first two prompts, all runs agree
                write_verdicts(folder, ITEMS, judged)
                for place, item in enumerate(ITEMS):
                    verdicts[item.prompt].append([v.correct for v in judged[4 * place : 4 * place + 4]])
    write_set_comparison(read_sets(sets["judged"]), "base", root / "judged", quiet)
    write_set_comparison(read_sets(sets["liked"]), "base", root / "liked", quiet)
    runs = []
    for name in ("htgrpo", "d1"):
        folder = root / "runs" / name
        settings = settings_of(folder, method={"name": name})
        fabricate(folder, settings)
        save_evaluation(folder, read_prompts(folder), 4, {"base": 0.6}, seed=9)
        write_summary(folder, settings, 0, {})
        runs.append(folder)
    write_report(runs[0])
    write_comparison(runs, root / "runs", quiet)
    files = {
        "compare": root / "runs/compare.html",
        "summary": root / "judged/summary.html",
        "preference": root / "liked/summary.html",
        "report": runs[0] / "report.html",
    }
    return files, verdicts


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def choose(tab, name: str, value: str) -> list[str]:
    """Set one of the gallery's controls as a user does; what is shown then."""
    field = f"document.querySelector('.gallery [name={name}]')"
    tab.value(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    return tab.value(SHOWN)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1100])
def test_a_page_is_whole_and_fits_a_phone_and_a_desktop(pages, tab, name, width, dark):
    tab.open(pages[0][name], width, dark=dark)
    sizes = tab.value(
        "Promise.all([...document.images].map(async (image) => {"
        "  image.loading = 'eager'; await image.decode(); return image.naturalWidth * image.clientWidth }))"
    )
    assert sizes and min(sizes) > 0
    assert tab.value("document.documentElement.scrollWidth") <= width
    # Nothing hangs over the edge, but for what scrolls inside its own frame.
    over = "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, pre, svg'))"
    assert tab.value(f"Math.max(...{over}.map((e) => e.getBoundingClientRect().right))") <= width
    assert tab.value("Math.min(...[...document.querySelectorAll('p, td, b')].map("
                     "(e) => parseFloat(getComputedStyle(e).fontSize)))") >= 11  # fmt: skip
    background, ink = tab.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map((color) => color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
    )
    assert (background < ink) == dark and abs(background - ink) > 400
    assert tab.errors == [] and tab.requested == [pages[0][name].as_uri()]


def test_prompts_are_sorted_by_how_many_verdicts_differ(pages, tab):
    files, verdicts = pages
    tab.open(files["summary"], 1100)
    differ = {prompt: sum(a != b for a, b in zip(*rows, strict=True)) for prompt, rows in verdicts.items()}
    assert tab.value(SHOWN) == sorted(differ, key=lambda prompt: -differ[prompt])  # a stable sort
    assert choose(tab, "sort", "place") == [item.prompt for item in ITEMS]
    # Scores are 4 n and 7 n for n = 0, 1, 2, 0, 1, 2, ..: four images in a row differ by 9, 12, 15 or 9, ..
    by_reward = choose(tab, "sort", "1")
    apart = {item.prompt: sum(3 * (n % 3) for n in range(4 * i, 4 * i + 4)) for i, item in enumerate(ITEMS)}
    assert by_reward == sorted(apart, key=lambda prompt: -apart[prompt]) != choose(tab, "sort", "0")


def test_prompts_are_filtered_by_task_text_and_verdict(pages, tab):
    files, verdicts = pages
    tab.open(files["summary"], 400)
    assert set(choose(tab, "task", "counting")) == {item.prompt for item in ITEMS if item.tag == "counting"}
    choose(tab, "task", "")
    word = ITEMS[0].prompt.split()[-1]
    assert set(choose(tab, "text", word.upper())) == {i.prompt for i in ITEMS if word in f"{i.prompt} {i.tag}"}
    assert choose(tab, "text", "no such words") == []
    assert tab.value("document.querySelector('.gallery output').textContent") == f"0 of {len(ITEMS)} prompts"
    choose(tab, "text", "")
    tab.value("document.querySelector('[name=differ]').click()")
    differ = {prompt for prompt, (base, trained) in verdicts.items() if base != trained}
    assert set(tab.value(SHOWN)) == differ and 0 < len(differ) < len(ITEMS)
    assert tab.errors == []


def test_a_page_without_verdicts_sorts_by_scores(pages, tab):
    tab.open(pages[0]["preference"], 1100)
    assert tab.value("document.querySelector('[name=differ]')") is None
    assert tab.value("document.querySelectorAll('.image.right, .image.wrong').length") == 0
    apart = {item.prompt: sum(3 * (n % 3) for n in range(4 * i, 4 * i + 4)) for i, item in enumerate(ITEMS)}
    assert tab.value(SHOWN) == sorted(apart, key=lambda prompt: -apart[prompt])


def test_every_prompt_has_the_images_of_every_run_in_columns_of_one_noise(pages, tab):
    tab.open(pages[0]["compare"], 1100)
    rows = tab.value(
        "[...document.querySelectorAll('article')].map((a) => [...a.querySelectorAll('p b')].map((b) => b.textContent))"
    )
    assert all(row == ["base", "htgrpo", "d1"] for row in rows) and len(rows) == 12
    assert tab.value("[...document.querySelectorAll('.images')].every((row) => row.children.length === 4)")
    assert tab.value("new Set([...document.querySelectorAll('article')[0].querySelectorAll('figure:first-child')]"
                     ".map((f) => f.getBoundingClientRect().left)).size") == 1  # fmt: skip
