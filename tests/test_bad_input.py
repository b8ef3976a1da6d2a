"""Kinds of bad input, one a row: each is one `error:` line and exit code 2, with no traceback, and nothing is written.

`python tests/test_bad_input.py` counts them. A new kind is a row in `CASES`.
"""

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from htgrpo_ext import cli

ROOT = Path(__file__).parents[1]
RUN = ("model/micro", "method/htgrpo")
MICRO = ("sample", "--model", "micro", "--checkpoint", "{root}/assets/micro-base")
EXCLUDE = ("--exclude", "words.txt")
SAMPLE = (*MICRO, "--prompt", "a plain star on a beach")
BILLIONS = ["a: &a0 [x]", *(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]


def settings(*overrides: str, command: str = "train") -> tuple[str, ...]:
    return (command, *RUN, *(word for one in overrides for word in ("--set", one)))


# Files for the rows below, by name: text, bytes, or None for a folder.
FILES: dict[str, str | bytes | None] = {
    "taken": "somebody's file",
    "empty": None,
    "empty.yaml": "",
    "comment.yaml": "# nothing\n",
    "list.yaml": "- a\n",
    "text.yaml": "hello\n",
    "latin.yaml": "name: é".encode("latin-1"),
    "binary.yaml": bytes(range(256)),
    "huge.yaml": "# " + "x" * 2**20,
    "tab.yaml": "loop:\n\tcycles: 3\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "documents.yaml": "seed: 1\n---\nseed: 2\n",
    "list-key.yaml": "[a]: 1\n",
    "map-key.yaml": "? {a: 1}\n: 2\n",
    "alias.yaml": "method: &a {rates: *a}\n",
    "no-anchor.yaml": "method: *a\n",
    "deep.yaml": "method: " + "[" * 3000 + "]" * 3000,
    "billions.yaml": "\n".join(BILLIONS),
    "tag.yaml": "method: !!python/object/apply:os.system [true]\n",
    "null.yaml": 'name: "a\\0b"\n',
    "surrogate.yaml": 'name: "\\ud800"\n',
    "name-list.yaml": "method: {name: [a]}\n",
    "section-as-text.yaml": "loop: many\n",
    "bool-path.yaml": "out: false\n",
    # prompts
    "none.txt": "\n\n",
    "latin.txt": "é".encode("latin-1"),
    "marker.txt": "a cat <|mdm_mask|>\n",
    "words.txt": "a photo of a dog\n",
    "no-object.jsonl": "[1, 2]\n",
    "no-class.jsonl": '{"tag": "counting", "prompt": "a dog", "include": [{"class": null, "count": 2}]}\n',
    "broken.parquet": b"PAR1 and then nothing",
    # runs and adapters
    "others/notes.txt": "somebody else's",
    "run-broken/summary.json": '{"label": ',
    "run-empty/summary.json": "{}",
    "adapter-none/readme": "",
    "adapter-empty/adapter_config.json": "{}",
    "adapter-list/adapter_config.json": "[]",
    "adapter-broken/adapter_config.json": "{",
    "scorer.py": "class Other: pass\n",
}  # fmt: skip


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def poison(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})


# What is done to config.json and model.safetensors of a copy of the micro model.
CHECKPOINTS: dict[str, Callable[[Path, Path], object]] = {
    "garbage": lambda config, weights: config.write_bytes(bytes(range(200))),
    "lists": lambda config, weights: config.write_text("[1]"),
    "bare": lambda config, weights: config.write_text("{}"),
    "words": lambda config, weights: change(config, hidden_size="wide"),
    "deeper": lambda config, weights: change(config, num_layers=9),
    "lumina": lambda config, weights: change(config, model_type="llada"),
    "unweighed": lambda config, weights: weights.unlink(),
    "empty": lambda config, weights: weights.write_bytes(b""),
    "short": lambda config, weights: weights.write_bytes(weights.read_bytes()[:-1000]),
    "pointer": lambda config, weights: weights.write_text("version https://git-lfs.github.com/spec/v1"),
    "unfinite": lambda config, weights: poison(weights),
}

# By kind: arguments of `htgrpo`. {root} is the repository, other paths are relative to the folder with FILES.
CASES: dict[str, tuple[str, ...]] = {
    # the command line
    "unknown command": ("trian",),
    "no config": ("train",),
    "unknown option": ("train", *RUN, "--sed", "1"),
    "unknown loop": ("train", *RUN, "--loop", "torchtitan"),
    "option that is no number": ("compare", "model/micro", "--methods", "d1", "--seeds", "three"),
    "negative updates of a stage": settings("method.budget.structure=-1"),
    "option out of range": (*SAMPLE, "--count", "0"),
    "huge seed": (*SAMPLE, "--seed", "99999999999999999999"),
    "huge number of seeds": ("compare", "model/micro", "--methods", "d1", "--seeds", "1000000000"),
    "missing option": ("sample", "--model", "micro"),
    "no group command": ("prompts",),
    # files of settings
    "missing file": ("plan", "nowhere.yaml"),
    "path of a file too long": ("plan", "x" * 5000 + ".yaml"),
    "folder for a file": ("plan", "empty"),
    "path through a file": ("plan", "taken/x.yaml"),
    **{f"file {name}": ("plan", *RUN, name) for name in FILES if name.endswith(".yaml")},
    # overrides
    "override without value": settings("seed"),
    "override without key": settings("=1"),
    "override of nothing": settings("loop..cycles=1"),
    "override that is no YAML": settings("loop=[1"),
    "unknown key": settings("loop.cycle=3"),
    "key in a list": settings("reward.terms.0.weight=1"),
    "key below a number": settings("loop.cycles.x=1"),
    "section for a number": settings("loop.cycles={a: 1}"),
    "number for a section": settings("loop=3"),
    "octal": settings("loop.cycles=010"),
    "sexagesimal": settings("loop.cycles=1:30"),
    "hexadecimal": settings("loop.cycles=0x10"),
    "underscores": settings("loop.cycles=1_000"),
    "truth for a number": settings("loop.cycles=true"),
    "text for a number": settings("loop.cycles='3'"),
    "date for a number": settings("loop.cycles=2024-13-01"),
    "fraction for a count": settings("loop.cycles=2.5"),
    "yes": settings("log.wandb=yes"),
    "number for a truth": settings("log.wandb=1"),
    "infinity": settings("loop.learning_rate=.inf"),
    "minus infinity": settings("rollout.guidance=-.inf"),
    "interval with one end": settings("rollout.guidance=1", "rollout.guidance_interval=[0.5]"),
    "interval beyond 1": settings("rollout.guidance=1", "rollout.guidance_interval=[0, 2]"),
    "reuse without a number": settings("rollout.reuse={}"),
    "overflow": settings("loop.learning_rate=1e400"),
    "underflow": settings("rollout.temperature=1e-400"),
    "not a number": settings("loop.weight_decay=.nan"),
    "not a number, as text": settings("loop.weight_decay=nan"),
    "infinite weight of a reward": settings("reward.terms=[{name: verdict, weight: .inf}]"),
    "weight beyond float32": settings("reward.terms=[{name: verdict, weight: 1e300}]"),
    "integer of 5,000 digits": settings(f"seed={'9' * 5000}"),
    "seed beyond 32 bits": settings("seed=4294967296"),
    "negative seed": settings("seed=-1"),
    "a billion steps": settings("rollout.steps=1000000000", command="plan"),
    "a million updates": settings("loop.updates_per_rollout=1000000", command="plan"),
    "a million updates of a stage": settings("method.budget.global=1000000", command="plan"),
    "a billion rollouts": settings("rollout.rollouts_per_prompt=1000000000", command="plan"),
    "more rollouts than fit": settings("rollout.rollouts_per_prompt=60000", command="plan"),
    "a billion cycles": settings("loop.cycles=1000000000"),
    "a billion images of a prompt": settings("eval.images_per_prompt=1000000000"),
    "a billion steps of a view": (*settings("method.merged_steps=1000000000", command="plan"), "method/tracegrpo"),
    "batches that do not divide": settings("loop.micro_batches=5"),
    "budget that does not sum": settings("method.budget.global=3"),
    "name that leaves its folder": settings("name=../../evil"),
    "label that leaves its folder": settings("label=a/b"),
    "name with control characters": settings("name=a\x1b[31mb"),
    "name too long for a folder": settings("name=" + "n" * 300),
    "name that is hidden": settings("name=.."),
    "unknown method": settings("method.name=ppo"),
    "method whose name is a list": settings("method={name: [a]}"),
    "unknown model": settings("model.name=sd3"),
    "unknown benchmark": settings("eval.name=geneva"),
    "LoRA without targets": settings("model.tuning=lora", "model.lora.targets=[]"),
    "LoRA on what is not there": settings("model.tuning=lora", "model.lora.targets=[qkv]", command="plan"),
    "LoRA of a billion ranks": settings("model.tuning=lora", "model.lora.rank=1000000000", command="plan"),
    "LoRA without settings": settings("model.tuning=lora", "model.lora=null"),
    "no prompts": settings("prompts=[]"),
    "prompts without a path": settings("prompts=[{format: text}]"),
    "no rewards": settings("reward.terms=[]"),
    "reward twice": settings("reward.terms=[{name: partial, weight: 1}, {name: partial, weight: 2}]"),
    "reward of a server without a url": settings("reward.terms=[{name: hpsv3, weight: 1}]"),
    # compare
    "unknown method to compare": ("compare", "model/micro", "--methods", "htgrpo,ppo"),
    "no method to compare": ("compare", "model/micro", "--methods", ","),
    "out of a comparison's runs": ("compare", "model/micro", "--methods", "d1", "--set", "out=x"),
    "seed of a comparison's runs": ("compare", "model/micro", "--methods", "d1", "--set", "seed=3"),
    # sample
    "unknown model to sample": ("sample", "--model", "sd3", "--checkpoint", "x", "--prompt", "y"),
    "no checkpoint to sample": ("sample", "--model", "micro", "--checkpoint", "base #2", "--prompt", "y"),
    "file for samples": (*SAMPLE, "--out", "taken"),
    "folder for samples that cannot be": (*SAMPLE, "--out", "/proc/none"),
    "prompt that is no text": (*MICRO, "--prompt", "\udcff"),
    "prompt with an unknown word": (*MICRO, "--prompt", "dog"),
    "other checkpoint to sample": ("sample", "--model", "lumina", "--checkpoint", MICRO[-1], "--prompt", "y"),
    "adapter that is not there": (*SAMPLE, "--adapter", "nowhere"),
    # checkpoints
    **{
        f"checkpoint {name}": ("sample", "--model", "micro", "--checkpoint", f"checkpoints/{name}", *SAMPLE[-2:])
        for name in CHECKPOINTS
    },
    **{
        f"full run from checkpoint {name}": settings(f"model.checkpoint=checkpoints/{name}", "out=run")
        for name in ("lists", "short", "unfinite")
    },
    # prompts
    **{
        f"prompts {kind} {path}": settings(f"prompts=[{{format: {kind}, path: {path}}}]", "out=run")
        for kind, path in [
            *(("text", path) for path in ("nowhere.txt", "empty", "none.txt", "latin.txt", "words.txt")),
            *(("geneval", path) for path in ("no-object.jsonl", "no-class.jsonl", "words.txt")),
            *(("dataset", path) for path in ("nowhere", "empty", "broken.parquet")),
        ]
    },
    "prompts to write to a folder": ("prompts", "geneval-train", "--n", "3", "--out", "empty", *EXCLUDE),
    "prompts to leave out that are not there": ("prompts", "geneval-train", "--n", "3", "--out", "x", "--exclude", "y"),
    # folders of runs
    "folder of somebody else": settings("out=others"),
    "file for a run": settings("out=taken"),
    "run below a file": settings("out=taken/run"),
    "run where nothing can be": settings("out=/proc/none"),
    "run with a name too long": settings("out=" + "n" * 300),
    "resumed run of somebody else": (*settings("out=others"), "--resume"),
    "file for a checkpoint": ("pretrain-micro", "--steps", "1", "--out", "taken"),
    "folder in use for a checkpoint": ("pretrain-micro", "--steps", "1", "--out", "others"),
    "comparison in a file": ("compare", "model/micro", "--methods", "d1", "--out", "taken"),
    # adapters
    **{
        f"adapter {name}": ("merge", "--checkpoint", MICRO[-1], "--adapter", name, "--out", "merged")
        for name in ("nowhere", "adapter-none", "adapter-empty", "adapter-list", "adapter-broken")
    },
    "no checkpoint to merge": ("merge", "--checkpoint", "nowhere", "--adapter", "adapter-empty", "--out", "merged"),
    # reports, rewards
    "report of no run": ("report", "empty"),
    "report of a broken summary": ("report", "run-broken"),
    "report of an empty summary": ("report", "run-empty"),
    **{
        f"server at {url}": settings(f"reward.terms=[{{name: hpsv3, weight: 1, url: '{url}'}}]", "out=run")
        for url in ("http://host:99999999", "http://[::1", "ftp://host", "http://", "http://a b", "http://127.0.0.1:9")
    },
    "scorer that is not there": ("serve-reward", "nowhere.py:Mine", "--port", "0"),
    "scorer without score": ("serve-reward", "scorer.py:Other", "--port", "0"),
    "requests without bound": ("serve-reward", "micro", "--port", "0", "--max-mib", "inf"),
    "wait without end": ("serve-reward", "micro", "--port", "0", "--wait-ms", "nan"),
    "unknown reward to serve": ("serve-reward", "beauty", "--port", "0"),
    "port out of range": ("serve-reward", "micro", "--port", "99999999"),
    "option of a reward without value": ("serve-reward", "micro", "--port", "0", "--set", "x"),
    "ambiguous option of a reward": ("serve-reward", "micro", "--port", "0", "--set", "x=010"),
}  # fmt: skip


def prepare(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, break_it in CHECKPOINTS.items():
        broken = shutil.copytree(ROOT / "assets/micro-base", folder / "checkpoints" / name)
        break_it(broken / "config.json", broken / "model.safetensors")


def outcome(arguments: tuple[str, ...], folder: Path) -> tuple[int | str | None, str, str]:
    """Exit code, stdout and stderr of the command in this process, from `folder`."""
    given = [argument.replace("{root}", str(ROOT)) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), patch("sys.argv", ["htgrpo", *given]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code: int | str | None = 0
        except SystemExit as stopped:
            code = stopped.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad-input")
    prepare(folder)
    return folder


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_is_one_line(folder, kind):
    there = sorted(folder.rglob("*"))
    code, out, err = outcome(CASES[kind], folder)
    assert (code, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert all(character.isprintable() for character in err.strip()) and len(err) < 1500
    assert sorted(folder.rglob("*")) == there


def main() -> None:
    lines = tracebacks = 0
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for kind, arguments in CASES.items():
            try:
                code, out, err = outcome(arguments, Path(name))
            except Exception as error:
                tracebacks += 1
                print(f"TRACEBACK {kind}: {type(error).__name__}")
                continue
            lines += (good := (code, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1)
            if not good:
                print(f"NOT ONE LINE {kind}: exit code {code}, {out!r}, {err!r}")
    print(f"{len(CASES)} kinds of bad input, {lines} one-line errors, {tracebacks} tracebacks")
    sys.exit(lines != len(CASES))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
