"""The `htgrpo` command: what it calls, and its error lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import run
from helpers.paths import ROOT
from htgrpo_ext import __version__
from htgrpo_ext.config import config_files

FILES = ["configs/model/micro.yaml", "configs/method/htgrpo.yaml"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_mistake_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "htgrpo_ext.cli", "train", *FILES, "--set", "method.structure_ration=0.2"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --set method.structure_ration=0.2: unknown key `structure_ration` (did you mean `structure_ratio`?)\n"
    )


def test_two_mistakes_are_two_lines(monkeypatch, capsys):
    code = run(monkeypatch, "plan", *FILES, "nowhere.yaml", "--set", "loop.cycles=0", "--set", "x")
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: nowhere.yaml: no such file",
        "error: --set x: expected key=value, such as loop.cycles=2",
    ]


def test_plan_prints_the_plan(monkeypatch, capsys):
    assert run(monkeypatch, "plan", *FILES, "--set", "rollout.prompts_per_cycle=2") == 0
    assert "micro-htgrpo-s0: the 8 updates of a cycle" in capsys.readouterr().out


@pytest.mark.parametrize("resume", [False, True])
def test_train_passes_settings_and_resume_on(monkeypatch, resume):
    from htgrpo_ext.workflow import train

    calls = []
    monkeypatch.setattr(train, "train", lambda *given: calls.append(given))
    arguments = [*FILES, "configs/ablation/a3-up.yaml", "--set", "seed=5", "--set", "loop.cycles=3"]
    assert run(monkeypatch, "train", *arguments, *["--resume"] * resume, *["--base-of", "other"] * resume) == 0
    [(settings, *rest)] = calls
    assert (settings.run_name, settings.loop.cycles) == ("micro-a3-up-s5", 3)
    assert rest == ["native", resume, Path("other") if resume else None]


def test_pretrain_passes_everything_on(monkeypatch, tmp_path):
    from htgrpo_ext.backbones.micro import pretrain

    calls = []
    monkeypatch.setattr(pretrain, "pretrain", lambda *args, **kwargs: calls.append((args, kwargs)))
    arguments = ["--out", str(tmp_path), "--seed", "4", "--steps", "7", "--placement", "free"]
    assert run(monkeypatch, "pretrain-micro", *arguments) == 0
    assert calls == [((tmp_path, 4, 7), {"placement": "free"})]


def test_compare_finds_methods_by_name_or_path(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("method: {name: d1}")
    assert config_files("method", f"htgrpo, {mine}") == [Path("configs/method/htgrpo.yaml"), mine]


def test_compare_lists_the_methods_when_one_is_unknown(monkeypatch, capsys):
    assert run(monkeypatch, "compare", FILES[0], "--methods", "htgrpo,ppo") == 2
    assert capsys.readouterr().err == (
        "error: unknown method `ppo` (one of agrpo, d1, htgrpo, maskgrpo, maskgrpo-fixed, tracegrpo, unigrpo)\n"
    )


@pytest.mark.parametrize("key", ["out", "seed", "name", "label"])
def test_compare_refuses_a_setting_that_it_makes_itself(monkeypatch, capsys, tmp_path, key):
    arguments = [FILES[0], "--methods", "d1", "--out", str(tmp_path), "--set", f"{key}=1"]
    assert run(monkeypatch, "compare", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: --set {key}=1: each run of a comparison has its own; use ")
    assert not list(tmp_path.iterdir())


def test_report_of_no_run_says_so(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "report", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no finished run there (summary.json is missing)\n"


def test_control_c_ends_without_a_traceback(monkeypatch, capsys):
    from htgrpo_ext.workflow import plan

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "print_plan", interrupted)
    assert run(monkeypatch, "plan", *FILES) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("MODEL=none", "unknown MODEL `none` (one of: amused lumina micro mmada words words-free)"),
        ("METHODS=", "METHODS names no method (some of: agrpo d1 htgrpo maskgrpo maskgrpo-fixed tracegrpo unigrpo)"),
        ("METHOD=ppo", "unknown METHOD `ppo` (one of: agrpo d1 htgrpo maskgrpo maskgrpo-fixed tracegrpo unigrpo)"),
    ],
)
def test_make_lists_the_valid_names(variable, line):
    # -n: the check comes before any recipe, so that nothing is set up or run.
    done = subprocess.run(["make", "-n", "train", variable], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and line in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["train", "--help"], 0), (["train", *FILES, "--set", "x=1"], 2), (["plan", "none.yaml"], 2)],
)
def test_help_and_a_refused_config_import_no_torch(arguments, code):
    script = "import sys; from htgrpo_ext import cli; sys.argv[0] = 'htgrpo'\ntry: cli.main()\n"
    script += "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_settings_import_no_torch():
    script = "import sys, htgrpo_ext.settings; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("name", ["native", "reference"])
def test_reference_is_an_alias_of_the_native_loop(monkeypatch, capsys, name):
    from htgrpo_ext.workflow import train

    calls = []
    monkeypatch.setattr(train, "train", lambda settings, loop, *rest: calls.append(loop))
    assert run(monkeypatch, "train", *FILES, "--loop", name) == 0
    assert calls == ["native"]
    assert capsys.readouterr().err.splitlines() == (
        ["deprecated: the loop `reference` is now called `native` (LOOP=native, --loop native)"] * (name == "reference")
    )
    done = subprocess.run(["make", "-n", "train", f"LOOP={name}"], capture_output=True, text=True)
    assert done.returncode == 0 and f"--loop {name}" in done.stdout


@pytest.mark.parametrize(
    ("platform", "asked", "device"), [("darwin", None, "cpu"), ("darwin", "mps", "mps"), ("linux", None, None)]
)
def test_a_mac_computes_on_its_cpu_unless_asked(monkeypatch, platform, asked, device):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", asked or "")
    if asked is None:
        monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    monkeypatch.setattr("sys.platform", platform)
    assert run(monkeypatch, "--version") == 0
    assert os.environ.get("ACCELERATE_TORCH_DEVICE") == device


def test_the_version_is_the_packages(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"htgrpo {__version__}\n"


@pytest.mark.parametrize(("words", "found"), [("htgrpo tr", "train"), ("htgrpo sample --model l", "lumina")])
def test_the_shell_completes_commands_and_models(words, found):
    asked = {"_HTGRPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-m", "htgrpo_ext.cli"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == [found]


def test_reproduce_without_a_benchmark_for_the_words_is_refused():
    done = subprocess.run(["make", "-n", "reproduce", "MODEL=words-free"], capture_output=True, text=True)
    assert done.returncode == 2 and "`make compare MODEL=words-free` trains, evaluates" in done.stderr


@pytest.mark.parametrize(("value", "resumed"), [("", False), ("0", False), ("1", True)])
def test_resume_0_does_not_resume(value, resumed):
    done = subprocess.run(["make", "-n", "train", f"RESUME={value}"], capture_output=True, text=True)
    assert done.returncode == 0 and ("--resume" in done.stdout) == resumed
