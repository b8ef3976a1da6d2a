"""`htgrpo eval generate`: the same images however they are made, kills, refusals."""

import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.command import run
from helpers.image_sets import geneval_lines, written
from helpers.micro_runs import tiny_settings
from helpers.paths import CONFIGS, HELPERS, PYTHONPATH, ROOT
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.errors import UserError
from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.files import held
from htgrpo_ext.imagesets.record import read_record
from htgrpo_ext.imagesets.sets import check_set
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.pixels import to_levels
from htgrpo_ext.workflow import generate as workflow
from htgrpo_ext.workflow.generate import MARKER, generate_set

SAMPLING = ["sampling.steps=3", "sampling.guidance=1.5"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LIMIT = 2  # prompts of each of six tasks


def settings(checkpoint, *more):
    files = [CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"]
    return load_settings(files, [f"model.checkpoint={checkpoint}", *SAMPLING, *more])


def generated(checkpoint, out, *more, limit=LIMIT, **options):
    generate_set(settings(checkpoint, *more), "microeval", out, limit=limit, label="tiny", **options)
    return contents(out)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(folder) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.startswith("images/")}


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A set that was made undisturbed, by one process; never written to."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    generated(checkpoint, folder)
    return folder


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(workflow, "load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))


# --- the same images however they are made ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_no_byte(checkpoint, whole, tmp_path, batch_size):
    generated(checkpoint, tmp_path / "set", f"loop.batch_size={batch_size}")
    assert images(tmp_path / "set") == images(whole)


def test_a_set_is_gone_on_with_to_the_same_bytes_and_only_what_is_missing_is_painted(
    checkpoint, whole, tmp_path, monkeypatch
):
    folder = shutil.copytree(whole, tmp_path / "set")
    for key in ("00001", "00120", "00201"):
        shutil.rmtree(folder / "images" / key)
    (folder / ".partial-00001/samples").mkdir(parents=True)  # as a kill leaves it
    (folder / ".partial-00001/samples/00000.png").write_bytes(b"half")
    painted, paint = [], workflow.paint
    monkeypatch.setattr(workflow, "paint", lambda *given: painted.append(given[3].key) or paint(*given))
    generated(checkpoint, folder)
    assert painted == ["00001", "00120", "00201"] and images(folder) == images(whole)
    assert {path.name for path in folder.iterdir()} == {MARKER, "images", "prompts.jsonl", "record.json"}


def test_a_complete_set_is_checked_and_no_model_loaded(checkpoint, whole, tmp_path, nothing_loads):
    folder = shutil.copytree(whole, tmp_path / "set")
    said = generate_set(settings(checkpoint), "microeval", folder, label="tiny", limit=LIMIT)
    assert said == "MicroEval: 12 folders with 48 images of 128 x 128 pixels (not the whole: 2 prompts of each task)"


def command(checkpoint, out) -> list[str]:
    sets = [f"model.checkpoint={checkpoint}", *SAMPLING]
    return ["model/micro", "method/htgrpo", "--bench", "microeval", "--out", str(out), "--limit", str(LIMIT),
            "--label", "tiny", *(word for one in sets for word in ("--set", one))]  # fmt: skip


def launched(checkpoint, out, kill_at: int = 0, rank: int = 0, launcher: tuple[str, ...] = ()) -> int:
    """The exit code of the command in a process, or several, of its own."""
    script = [str(HELPERS / "run_killed.py"), str(kill_at), str(rank)]
    done = subprocess.run(
        [sys.executable, *launcher, *script, *command(checkpoint, out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert kill_at or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def test_a_killed_process_leaves_whole_items_and_the_rest_is_made_to_the_same_bytes(checkpoint, whole, tmp_path):
    folder = tmp_path / "set"
    assert launched(checkpoint, folder, kill_at=5) == -9
    there = images(folder)
    assert len(there) == 4 * 5 and there.items() <= images(whole).items()
    assert [path.name for path in folder.glob(".partial-*")] == [".partial-00080"]  # the fifth, in whole but unnamed
    with pytest.raises(UserError, match="8 of 12 prompts; go on with htgrpo eval generate"):
        check_set(folder)
    generated(checkpoint, folder)
    assert images(folder) == images(whole) and not list(folder.glob(".partial-*"))


@pytest.mark.parametrize(("killed", "processes_after"), [(0, 1), (1, 2)])
def test_two_processes_one_of_which_is_killed_make_what_one_does(checkpoint, whole, tmp_path, killed, processes_after):
    folder = tmp_path / "set"
    assert launched(checkpoint, folder, kill_at=2, rank=killed, launcher=TORCHRUN) not in (0, 2)
    there = images(folder)
    assert there.items() <= images(whole).items() and len(there) < 12 * 5 and not len(there) % 5
    if processes_after == 1:
        generated(checkpoint, folder)
    else:
        launched(checkpoint, folder, launcher=TORCHRUN)
    assert images(folder) == images(whole) and read_record(folder) == read_record(whole)


def test_noise_is_by_the_prompts_place_in_the_whole_benchmark_and_the_same_for_every_model(
    checkpoint, tmp_path, monkeypatch
):
    seen, paint = [], workflow.generate

    def watched(backbone, forward, rows, draws, sampling):
        seen.append(draws)
        return paint(backbone, forward, rows, draws, sampling)

    monkeypatch.setattr(workflow, "generate", watched)
    generated(checkpoint, tmp_path / "a", limit=1)
    generated(ROOT / "assets/micro-base", tmp_path / "b", "loop.batch_size=7", "seed=5", "rollout.steps=2", limit=1)
    expected = [Draws(1000, "evaluation", [place], 4) for place in (0, 40, 80, 120, 160, 200)]
    assert seen == [*expected, *expected]


def test_micro_evals_images_are_those_that_a_training_run_judges(checkpoint, tmp_path):
    """Painted there 32 prompts at a time, and by the settings of rollouts."""
    made = tiny_settings("htgrpo", checkpoint, tmp_path, "eval.images_per_prompt=4", "rollout.guidance=1.5")
    bench = MicroEval(name="microeval", prompts_per_task=40, images_per_prompt=4, seed=1000)
    first = bench.prompts()[:5]
    object.__setattr__(bench, "prompts", lambda: first)
    evaluate(bench, load_backbone(made.model), made.rollout, 128, tmp_path / "run", "base", lambda _: None)
    generated(checkpoint, tmp_path / "set", limit=5)
    suite, items, _ = check_set(tmp_path / "set")
    with np.load(tmp_path / "run/eval/base.npz") as arrays:
        for item, kept in zip(items[:5], arrays["kept"], strict=True):
            levels = to_levels(decode_codes(torch.from_numpy(kept.astype("int64"))))
            for image, painted in zip(levels, suite.load(tmp_path / "set/images", item), strict=True):
                assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(painted))


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [
        (["sampling.steps=4"], {}, "sampler.steps 3, not 4"),
        (["sampling.seed=1"], {}, "seed 1000, not 1"),
        (["sampling.sampler=maskgit"], {}, "sampler.sampler emerge, not maskgit"),
        ([], {"limit": 3}, r"prompts sha256:\w+\.\., not sha256:\w+\.\.; items 12, not 18; limit 2, not 3"),
        ([f"model.checkpoint={ROOT}/assets/micro-base"], {}, r"weights sha256:\w+\.\., not sha256:\w+\.\."),
    ],
)
def test_another_record_is_refused_by_what_differs_and_nothing_changes(
    checkpoint, whole, tmp_path, nothing_loads, more, options, words
):
    folder = shutil.copytree(whole, tmp_path / "set")
    shutil.rmtree(folder / "images/00001")
    before = images(folder)
    advice = "give another --out, or the settings of its record.json"
    with pytest.raises(UserError, match=f"^{folder}: the set there has {words}; {advice}$"):
        generated(checkpoint, folder, *more, **options)
    assert images(folder) == before and read_record(folder) == read_record(whole)


def test_another_benchmark_is_refused(checkpoint, whole, tmp_path, nothing_loads):
    folder = shutil.copytree(whole, tmp_path / "set")
    (tmp_path / "mine.txt").write_text("a plain star on a beach\n")
    with pytest.raises(UserError, match="the set there has .*bench microeval, not file"):
        generate_set(settings(checkpoint), str(tmp_path / "mine.txt"), folder, label="tiny")


def test_damaged_and_foreign_files_are_named_before_anything_is_loaded(checkpoint, whole, tmp_path, nothing_loads):
    folder = shutil.copytree(whole, tmp_path / "set")
    (folder / "images/00041/samples/00001.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"00001.png: empty; remove {folder}/images/00041 and run htgrpo eval generate"
    ):
        generated(checkpoint, folder)
    (folder / "images/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"images/notes.txt: does not belong to the set; move it away$"):
        generated(checkpoint, folder)
    assert (folder / "images/notes.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_is_refused_and_left_alone(checkpoint, tmp_path, nothing_loads):
    (tmp_path / "thesis/images").mkdir(parents=True)
    (tmp_path / "thesis/images/a.png").write_text("mine")
    with pytest.raises(UserError, match=r"there are files, but no set of images .*; give another --out"):
        generated(checkpoint, tmp_path / "thesis")
    (tmp_path / "thesis" / MARKER).write_text("")  # the record was deleted
    with pytest.raises(UserError, match=r"images: there are images, but no record.json; give another --out$"):
        generated(checkpoint, tmp_path / "thesis")
    assert (tmp_path / "thesis/images/a.png").read_text() == "mine"


def _hold(folder, at_work, finish) -> None:
    with held(folder, MARKER, "set of images", "command", "give another --out"):
        at_work.set()
        finish.wait()


def test_a_second_command_in_the_same_folder_is_refused(checkpoint, whole, tmp_path, nothing_loads):
    folder = shutil.copytree(whole, tmp_path / "set")
    context = multiprocessing.get_context("fork")
    at_work, finish = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(folder, at_work, finish))
    first.start()
    at_work.wait()
    with pytest.raises(
        UserError, match=rf"another command is at work there \(process {first.pid} on .*\); give another"
    ):
        generated(checkpoint, folder)
    first.kill()  # a kill -9 leaves no lock behind
    first.join()
    generated(checkpoint, folder)


def test_the_key_that_was_painted_is_recorded_and_the_lines_stay(checkpoint, tmp_path):
    line = '{"prompt": "not of this world",  "caption": "a plain star on a beach"}'
    written(tmp_path / "mine.jsonl", [line])
    generate_set(settings(checkpoint), str(tmp_path / "mine.jsonl"), tmp_path / "set", prompt_key="caption")
    suite, (item,), record = check_set(tmp_path / "set")
    assert (suite.name, record.prompt_key, record.label, item.prompt) == (
        "file",
        "caption",
        "set",
        "a plain star on a beach",
    )
    assert (tmp_path / "set/images/00000/metadata.jsonl").read_text() == line


def test_count_says_what_is_there_or_what_is_wrong(monkeypatch, capsys, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "set")
    assert run(monkeypatch, "eval", "count", str(folder)) == 0
    assert capsys.readouterr().out.startswith("MicroEval: 12 folders with 48 images of 128 x 128 pixels")
    (folder / "images/00041/samples/00001.png").unlink()
    assert run(monkeypatch, "eval", "count", str(folder)) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder}/images/00041/samples/00001.png: missing; remove ")
    assert run(monkeypatch, "eval", "count", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no set of images")


CONFIG = ["model/micro", "method/htgrpo"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bench", "gen"], "unknown benchmark `gen` (one of geneval, dpg, microeval, file; or a file of prompts)"),
        (["--bench", "words.txt", "--prompts", "words.txt"], "--bench words.txt is a file of prompts already; leave"),
        (["--bench", "dpg", "--prompts", "geneval.jsonl"], "geneval.jsonl: its lines are those of GenEval, not DPG"),
        (
            ["--bench", "geneval", "--prompts", "geneval.jsonl"],
            "00000: prompt 'a photo of a single_object cat 0': unkn",
        ),
        (["--bench", "words.txt", "--set", "model.checkpoint=none"], "none: no micro checkpoint there"),
        (["--bench", "words.txt", "--adapter", "none"], "none/adapter_config.json: No such file or directory"),
        (["--bench", "words.txt", "--set", "sampling.steps=0"], "--set sampling.steps=0: sampling.steps must be"),
        (["--bench", "words.txt", "--set", "sampling=null"], "the settings have no section `sampling`"),
        (["--bench", "words.txt", "--limit", "0"], "Invalid value for '--limit'"),
        (
            ["--bench", "words.txt", "--out", "words.txt"],
            "words.txt: cannot hold a set of images (Not a directory); give",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, nothing_loads, arguments, line):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "geneval.jsonl", geneval_lines())
    (tmp_path / "words.txt").write_text("a plain star on a beach\n")
    assert run(monkeypatch, "eval", "generate", *CONFIG, "--out", "set", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and len(said.splitlines()) == 1
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ([], "BENCH names no benchmark (one of: geneval dpg microeval; or a file of prompts)"),
        (["BENCH=gen"], "unknown BENCH `gen` (one of: geneval dpg microeval; or a file of prompts)"),
        (["BENCH=dpg", "PROCESSES=two"], "PROCESSES is `two`, not a number from 1"),
        (["BENCH=dpg", "MODEL=lumin"], "unknown MODEL `lumin` (one of: amused lumina micro mmada words words-free)"),
    ],
)
def test_make_refuses_with_one_line(variables, line):
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "eval-images", *variables], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and line in done.stderr


def test_make_passes_its_variables_on():
    variables = [
        "MODEL=lumina",
        "BENCH=dpg",
        "PROCESSES=8",
        "CHECKPOINT=/c",
        "ADAPTER=/a",
        "OUT=x",
        "LABEL=ht",
        "LIMIT=5",
    ]
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "eval-images", *variables], capture_output=True, text=True, cwd=ROOT
    )
    said = " ".join(done.stdout.replace("\\\n", " ").split())
    assert "torchrun --standalone --nproc_per_node 8 -m htgrpo_ext.cli eval generate configs/model/lumina.yaml" in said
    assert said.endswith("--bench 'dpg' --out 'x' --adapter '/a' --label 'ht' --limit '5'")
    assert "--set 'model.checkpoint=/c'" in said
