"""README and docs hold together: what they link to and name is there."""

import re
import tomllib

import pytest
import yaml

from helpers.paths import ROOT
from htgrpo_ext import __version__

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = "assets|benchmarks|configs|docs|htgrpo_ext|launch|patches|tests"  # of files that a page may name
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def page_name(page):
    return str(page.relative_to(ROOT))


def anchors(page) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_and_make_targets_exist(page):
    text = page.read_text()
    # Files named by their paths from the root. NAME stands for any; the reader writes those of extend.md.
    made_up = {"NAME", "half", "dots", "brightness", "bright"}
    for name in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)", text):
        if not made_up & set(re.split(r"[/.]", name)):
            assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")), name
    for line in re.findall(r"(?:^    |`|&& )make ([^`\n#&]*)", text, re.MULTILINE):
        words = re.sub(r"""\w+=("[^"]*"|'[^']*'|\S*)""", "", line).split()
        assert set(words) <= TARGETS | {"TARGET"}, line


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1050


def test_map_of_the_code_shows_the_layers_that_are_enforced():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert re.findall(r"\w+", " ".join(rows)) == re.findall(r"\w+", " ".join(layers))


def test_citation_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = __version__
    assert str(citation["version"]) == version and citation["preferred-citation"]["authors"]
