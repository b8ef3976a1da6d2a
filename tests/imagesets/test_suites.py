"""The benchmarks' prompt files and layouts, against what is published of them."""

import json
import re
from collections import Counter

import pytest
from PIL import Image

from helpers.image_sets import GENEVAL_TASKS, dpg_lines, geneval_lines, made_set, picture, pictures, real_file, written
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets import SUITES, suite_named
from htgrpo_ext.imagesets.sets import check_set, describe_set

GENEVAL = "dataset/GenEval/evaluation_metadata.jsonl"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("htgrpo_ext.imagesets.pngs.sync_tree", lambda _: None)


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- layouts ---------------------------------------------------------------------------------------------------


def test_an_item_of_geneval_is_a_numbered_folder_with_its_line_and_four_samples(tmp_path):
    lines = geneval_lines()
    lines[1] = '{"tag":"single_object",  "include": [{"class": "caf\u00e9", "count": 1}], "prompt": "a caf\u00e9"}'
    suite = suite_named("geneval")
    items = suite.items(written(tmp_path / "prompts.jsonl", lines))
    assert (items[1].key, items[1].prompt, items[1].tag, items[552].key) == (
        "00001",
        "a café",
        "single_object",
        "00552",
    )
    suite.save(tmp_path / "images", items[1], pictures(items[1]))
    samples = [f"00001/samples/0000{i}.png" for i in range(4)]
    assert everything_in(tmp_path / "images") == ["00001/metadata.jsonl", *samples]
    assert (tmp_path / "images/00001/metadata.jsonl").read_bytes() == lines[1].encode()
    for i, name in enumerate(samples):
        with Image.open(tmp_path / "images" / name) as image:
            assert image.tobytes() == pictures(items[1])[i].tobytes()
    assert [image.tobytes() for image in suite.load(tmp_path / "images", items[1])] == [
        image.tobytes() for image in pictures(items[1])
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prompts.jsonl"]


def test_a_grid_of_dpg_bench_is_top_left_top_right_bottom_left_bottom_right(tmp_path):
    suite = suite_named("dpg")
    item = suite.items(written(tmp_path / "prompts.jsonl", dpg_lines()))[7]
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    suite.save(tmp_path / "images", item, [Image.new("RGB", (5, 5), colour) for colour in colours])
    assert everything_in(tmp_path / "images") == ["coco7.png"]
    with Image.open(tmp_path / "images/coco7.png") as grid:
        assert grid.size == (10, 10)
        assert [grid.getpixel(place) for place in ((2, 2), (7, 2), (2, 7), (7, 7))] == colours
    assert [image.getpixel((4, 4)) for image in suite.load(tmp_path / "images", item)] == colours


def test_a_whole_geneval_set_has_what_its_evaluator_walks_through(tmp_path):
    """The evaluator reads every folder called by digits alone, and in it samples whose name begins with digits.png."""
    made_set(tmp_path, "geneval", written(tmp_path / "prompts", geneval_lines()))
    folders = [path for path in (tmp_path / "images").iterdir() if path.is_dir() and path.name.isdigit()]
    found = Counter()
    for folder in folders:
        tag = json.loads((folder / "metadata.jsonl").read_text())["tag"]
        found[tag] += sum(bool(re.match(r"\d+\.png", path.name)) for path in (folder / "samples").iterdir())
    assert len(folders) == 553 and sum(found.values()) == 2212
    assert found == dict(single_object=320, two_object=396, counting=320, colors=376, position=400, color_attr=400)
    assert describe_set(tmp_path) == "GenEval: 553 folders with 2,212 images of 6 x 6 pixels"


def test_a_whole_dpg_set_is_1065_grids(tmp_path):
    made_set(tmp_path, "dpg", written(tmp_path / "prompts", dpg_lines()))
    names = [path.name for path in (tmp_path / "images").iterdir()]
    assert len(names) == 1065 and {name.split(".")[0] for name in names} == {f"coco{i}" for i in range(1065)}
    assert describe_set(tmp_path) == "DPG-Bench: 1,065 grids of 2 x 2 tiles of 6 x 6 pixels"


def test_micro_evals_240_prompts_are_held_out_and_in_genevals_layout(tmp_path):
    from htgrpo_ext.micro.world import split_prompts

    made_set(tmp_path, "microeval")
    suite, items, _ = check_set(tmp_path)
    assert [item.metadata for item in items] == split_prompts(40)[1]
    assert Counter(item.tag for item in items) == dict.fromkeys(GENEVAL_TASKS, 40)
    assert len(everything_in(tmp_path / "images")) == 240 * 5


def test_an_item_is_never_written_over(tmp_path):
    for bench, lines in (("geneval", geneval_lines()), ("dpg", dpg_lines())):
        suite = suite_named(bench)
        item = suite.items(written(tmp_path / "prompts.jsonl", lines))[0]
        suite.save(tmp_path / bench, item, pictures(item))
        before = {name: (tmp_path / bench / name).read_bytes() for name in everything_in(tmp_path / bench)}
        with pytest.raises(UserError, match="is there already"):
            suite.save(tmp_path / bench, item, [picture(9)] * 4)
        assert {name: (tmp_path / bench / name).read_bytes() for name in everything_in(tmp_path / bench)} == before


# --- prompt files ----------------------------------------------------------------------------------------------


def test_genevals_own_file_is_read_byte_for_byte():
    path = real_file("geneval_prompts.jsonl", GENEVAL)
    items = suite_named("geneval").items(path)
    assert "".join(item.line + "\n" for item in items).encode() == path.read_bytes()
    assert Counter(item.tag for item in items) == GENEVAL_TASKS and items[0].prompt == "a photo of a bench"
    assert all(list(item.metadata)[0] == "tag" for item in items)


def test_dpg_benchs_own_file_is_read():
    items = suite_named("dpg").items(real_file("dpg_prompts.jsonl", "dataset/DPG/dpg_bench.jsonl"))
    assert len({item.key for item in items}) == 1065 and items[0].key == "partiprompts97"
    assert items[0].prompt.startswith("An empty space where an invisible man would be")


def test_another_key_is_painted_and_the_line_stays(tmp_path):
    lines = [
        json.dumps(json.loads(line) | {"long_prompt": f"a long photo, “{i}”"}, ensure_ascii=False)
        for i, line in enumerate(geneval_lines())
    ]
    path = written(tmp_path / "merged.jsonl", lines)
    items = suite_named("geneval").items(path, "long_prompt")
    assert items[4].prompt == "a long photo, “4”" and items[4].line == lines[4]
    assert items[4].metadata["prompt"] == "a photo of a single_object cat 4"
    with pytest.raises(UserError, match=r"merged.jsonl:1: no key `short` \(it has tag, .*; --prompt-key\)$"):
        suite_named("geneval").items(path, "short")


GOOD, DPG = geneval_lines(), dpg_lines()
DPG_9 = json.dumps({"item_id": "coco9", "prompt": "another"})


@pytest.mark.parametrize(
    ("bench", "lines", "words"),
    [
        ("geneval", DPG, "its lines are those of DPG-Bench, not GenEval's"),
        ("dpg", GOOD, "its lines are those of GenEval, not DPG-Bench's"),
        ("geneval", ['{"tag": "a", "prompt": "b"}'], "its lines are those of no benchmark that is known here"),
        ("geneval", GOOD[1:], "79 prompts of `single_object`, but GenEval has 80 (552 of 553 in all)"),
        ("geneval", [*GOOD[1:], GOOD[5]], ":553: repeats FILE:5, but all of GenEval's 553 lines differ"),
        ("geneval", [*GOOD, GOOD[0].replace("single_object", "text")], "1 prompts of `text`, but GenEval has 0"),
        ("geneval", [GOOD[0], "{}"], ":2: not GenEval metadata"),
        ("geneval", ["bench"], ":1: not a JSON object"),
        ("geneval", [], "holds no prompt"),
        ("dpg", DPG[:-1], "1,064 prompts, but DPG-Bench has 1,065"),
        ("dpg", [*DPG[:-1], DPG_9], ":1065: repeats FILE:10, but"),
        ("dpg", [*DPG[:-1], '{"item_id": "a.b", "prompt": "x"}'], ":1065: item_id 'a.b' cannot be a file's name"),
        ("dpg", [*DPG[:-1], '{"item_id": "../b", "prompt": "x"}'], ":1065: item_id '../b' cannot be a file's name"),
        ("dpg", [*DPG[:-1], '{"item_id": "b", "prompt": " "}'], ":1065: `prompt` is empty"),
        ("microeval", GOOD, "MicroEval makes its own prompts"),
        ("file", [], "holds no prompt"),
    ],
)
def test_a_file_that_is_not_the_benchmarks_is_refused_by_name(tmp_path, bench, lines, words):
    path = written(tmp_path / "prompts.jsonl", lines)
    with pytest.raises(UserError) as refused:
        suite_named(bench).items(path)
    assert words.replace("FILE", str(path)) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "suite", [suite for suite in SUITES if suite.name != "microeval"], ids=lambda suite: suite.name
)
def test_a_missing_prompt_file_is_said_with_what_to_do(tmp_path, suite):
    with pytest.raises(UserError, match=rf"^{tmp_path}/none: no such file .*(--prompts FILE|--bench FILE)"):
        suite().items(tmp_path / "none")


def test_an_unknown_suite_lists_the_known_ones():
    with pytest.raises(UserError, match=r"^unknown benchmark `gen` \(one of geneval, dpg, microeval, file; or a file"):
        suite_named("gen")


def test_prompts_of_a_file_are_its_lines(tmp_path):
    suite = suite_named("file")
    (tmp_path / "a.txt").write_text("a cat\n\n  two dogs \n")
    assert [(item.key, item.prompt, item.line) for item in suite.items(tmp_path / "a.txt")] == [
        ("00000", "a cat", '{"prompt": "a cat"}'),
        ("00001", "two dogs", '{"prompt": "two dogs"}'),
    ]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat", "n": 1}\n{"prompt": "a dog", "caption": "dogs"}\n')
    assert [item.line for item in suite.items(tmp_path / "a.jsonl")] == [
        '{"prompt": "a cat", "n": 1}',
        '{"prompt": "a dog", "caption": "dogs"}',
    ]
    with pytest.raises(UserError, match=r"a.jsonl:1: no key `caption` \(it has prompt, n; --prompt-key\)"):
        suite.items(tmp_path / "a.jsonl", "caption")
