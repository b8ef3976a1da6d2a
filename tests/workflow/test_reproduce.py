"""`htgrpo reproduce`: its commands, what it refuses, and that a kill at any stage changes nothing.

The commands are those of helpers/stand_in.py, which leave a stage's files without a model.
"""

import hashlib
import json
import multiprocessing
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers.command import run as run_command
from helpers.paths import CONFIGS, HELPERS, PYTHONPATH
from htgrpo_ext.config import ablation_files
from htgrpo_ext.errors import UserError
from htgrpo_ext.workflow import reproduce as workflow
from htgrpo_ext.workflow.reproduce import Request, reproduce, stages_of

STAND_IN = (sys.executable, str(HELPERS / "stand_in.py"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setattr(workflow, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr(workflow, "print_cost", lambda *_: None)


def request_for(out: Path, **changes) -> Request:
    """Two seeds of HT-GRPO, a prompt of each of MicroEval's tasks."""
    files, methods = [CONFIGS / "model/micro.yaml"], [[CONFIGS / "method/htgrpo.yaml"]]
    request = Request(files, methods, 2, ["loop.cycles=3"], ["microeval"], [], out, limit=1, htgrpo=STAND_IN)
    return replace(request, **changes)


def tree(out: Path) -> dict[str, str]:
    """Digests of all files but logs and locks, less the folder's own name."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".log"]
    texts = {path.relative_to(out): path.read_bytes().replace(str(out).encode(), b"OUT") for path in files}
    return {str(path): hashlib.sha256(text).hexdigest() for path, text in texts.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setattr(workflow, "stop_on_sigterm", lambda: None)
        reproduce(request_for(out), 2)
    return out


def test_every_stage_leaves_its_work(undisturbed):
    assert {path.name for path in (undisturbed / "sets/microeval").iterdir()} == {"base", "htgrpo-s0", "htgrpo-s1"}
    assert len(json.loads((undisturbed / "tables/table.json").read_text())) == 3
    for name in ("base", "htgrpo-s0", "htgrpo-s1"):
        record = json.loads((undisturbed / f"sets/microeval/{name}/record.json").read_text())
        assert record["label"] == name.partition("-")[0] and record["limit"] == 1
        assert (record["model"]["checkpoint"].endswith(f"runs/{name}/model")) == (name != "base")


@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_at_every_stage_changes_nothing(undisturbed, tmp_path, monkeypatch, jobs):
    for stage in ("train htgrpo-s0", "generate htgrpo-s1", "score base"):
        monkeypatch.setenv("STAND_IN", json.dumps({"kill": stage}))
        process = multiprocessing.get_context("fork").Process(target=reproduce, args=(request_for(tmp_path), jobs))
        process.start()
        process.join()
        assert process.exitcode == -9, stage
    monkeypatch.delenv("STAND_IN")
    reproduce(request_for(tmp_path), jobs)
    assert tree(tmp_path) == tree(undisturbed)


def test_finished_stages_are_not_run_again(undisturbed, monkeypatch, capsys):
    before = tree(undisturbed)
    monkeypatch.setenv("STAND_IN", json.dumps({"nothing": "train"}))
    reproduce(request_for(undisturbed), 1)
    said = capsys.readouterr().out
    assert "train: 2 of 2 are finished" in said and "score: 3 of 3 are finished" in said
    assert tree(undisturbed) == before


def test_failed_command_is_named_with_its_log_and_ends_the_reproduction(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN", json.dumps({"fail": "train htgrpo-s1"}))
    with pytest.raises(UserError, match=r"train htgrpo-s1 failed, see .*train-htgrpo-s1.log\n1 of 2 failed"):
        reproduce(request_for(tmp_path), 1)
    assert "failed with exit code 3 (half of train htgrpo-s1)" in capsys.readouterr().out
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("command", ["train", "score"])
def test_command_that_ends_well_and_leaves_nothing_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("STAND_IN", json.dumps({"nothing": command}))
    with pytest.raises(UserError, match=f"{command} .* failed, see"):
        reproduce(request_for(tmp_path, seeds=1), 2)
    assert "left no work, but exit code 0" in capsys.readouterr().out
    assert not (tmp_path / "tables").exists()


def spoil_summary(out: Path) -> Path:
    (path := out / "runs/htgrpo-s1/summary.json").write_text("{")
    return path


def remove_model(out: Path) -> Path:
    (out / "runs/htgrpo-s1/model/model.safetensors").unlink()
    return out / "runs/htgrpo-s1"


def other_run(out: Path) -> Path:
    path = out / "runs/htgrpo-s0/config.yaml"
    path.write_text(path.read_text().replace("cycles: 3", "cycles: 4"))
    return path.parent


def other_model(out: Path) -> Path:
    (out / "runs/htgrpo-s0/model/model.safetensors").write_text("trained again")
    return out / "sets/microeval/htgrpo-s0"


def other_seed(out: Path) -> Path:
    path = out / "sets/microeval/base/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    return path.parent


def cut_image(out: Path) -> Path:
    path = out / "sets/microeval/base/images/00000/samples/00001.png"
    path.write_bytes(path.read_bytes()[:-20])
    return path


def cut_scores(out: Path) -> Path:
    path = out / "sets/microeval/base/scores/micro.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    return path


SPOILED = [spoil_summary, remove_model, other_run, other_model, other_seed, cut_image, cut_scores]


@pytest.mark.parametrize("spoil", SPOILED, ids=[spoil.__name__ for spoil in SPOILED])
def test_broken_or_foreign_work_is_refused_by_name(undisturbed, tmp_path, monkeypatch, spoil):
    out = shutil.copytree(undisturbed, tmp_path / "copy")
    # The runs' own paths are in their settings and records.
    for path in out.rglob("*"):
        if path.name in ("config.yaml", "record.json"):
            path.write_text(path.read_text().replace(str(undisturbed), str(out)))
    wrong, before = spoil(out), tree(out)
    with pytest.raises(UserError, match=f"^{wrong}") as caught:
        reproduce(request_for(out), 1)
    assert str(caught.value).count("\n") == 0
    assert {k: v for k, v in tree(out).items() if k in before} == before


def test_dry_run_prints_the_commands_alone(tmp_path, monkeypatch, capsys):
    words = ["--methods", "maskgrpo,htgrpo", "--bench", "geneval,dpg", "--scorers", "geneval,dpg,hpsv3", "--seeds", "1"]
    launch = ["--loop", "upstream", "--launch", str(CONFIGS / "accelerate/zero2.yaml"), "--dry-run"]
    out = tmp_path / "out"
    assert run_command(monkeypatch, "reproduce", "model/mmada", *words, *launch, "--out", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not out.exists()
    assert [line for line in lines if line.startswith("#")] == ["# train", "# generate", "# score", "# summarize"]
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == 2 + 2 * 3 + 2 * 3 * 2 + 1
    trains = [words for words in commands if "train" in words]
    for train, method in zip(trains, ("maskgrpo", "htgrpo"), strict=True):
        assert train[0].endswith("accelerate") and train[train.index("--loop") + 1] == "upstream"
        assert f"configs/method/{method}.yaml" in train and f"out={out}/runs/{method}-s0" in train
    paints = [words for words in commands if "generate" in words]
    assert all(words[0].endswith("torchrun") and words[3] == "8" for words in paints)
    adapters = [words[words.index("--adapter") + 1] for words in paints if "--adapter" in words]
    assert adapters == [f"{out}/runs/{method}-s0/model" for method in ("maskgrpo", "htgrpo")] * 2
    scored = [words for words in commands if "score" in words or words[0].endswith(".sh")]
    scorers = [
        (words[-1].split("/")[-2], (words[-2] if "--scorer" in words else Path(words[0]).stem)) for words in scored
    ]
    assert scorers == [
        (b, s) for b, own in (("geneval", "geneval"), ("dpg", "dpg")) for _ in range(3) for s in (own, "hpsv3")
    ]


def test_ablation_is_compared_to_the_full_method_in_tables_of_its_own(tmp_path):
    *_, tables = stages_of(request_for(tmp_path, methods=ablation_files(5), seeds=1, ablation=5))
    words = tables.words()
    assert (
        words[words.index("--baseline") + 1] == "htgrpo" and words[words.index("--out") + 1] == f"{tmp_path}/tables-a5"
    )
    assert [Path(word).name for word in words if "/sets/" in word] == [
        *("base", "htgrpo-s0", "a5-revealed-structure-s0", "a5-uniform-credit-s0")
    ]


def test_requests_that_cannot_be_met_are_refused(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"method": {"name": "d1"}, "label": "base"}))
    wrong = {
        "labelled `base`": {"methods": [[base]]},
        "no row is called `ppo`": {"baseline": "ppo"},
        "none of the scorers geneval judges images of microeval": {"scorers": ["geneval"]},
        "no section `sampling`": {"overrides": ["sampling=null"]},
        "no number of processes": {"launch": base},
        "unknown key `cycle`": {"overrides": ["loop.cycle=1"]},
    }
    for words, change in wrong.items():
        with pytest.raises(UserError, match=words):
            stages_of(request_for(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()
