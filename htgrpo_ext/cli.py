"""The `htgrpo` command. Each subcommand reads its arguments and calls one function."""

import os
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from htgrpo_ext import __version__, cli_eval
from htgrpo_ext.cli_eval import Files, Overrides
from htgrpo_ext.errors import Stopped, UserError, one_line

app = typer.Typer(
    help="HT-GRPO for masked-diffusion image generators, and its baselines.",
    pretty_exceptions_enable=False,
)
prompts_app = typer.Typer(help="Prompt sets.")
app.add_typer(prompts_app, name="prompts")
app.add_typer(cli_eval.app, name="eval")


def _names(kind: str) -> list[str]:
    from htgrpo_ext.config import CONFIGS

    return sorted(file.stem for file in (CONFIGS / kind).glob("*.yaml"))


class Loop(StrEnum):
    native = "native"
    upstream = "upstream"
    reference = "reference"  # the native loop's name until version 0.2


class Placement(StrEnum):
    canonical = "canonical"
    free = "free"


class Difficulty(StrEnum):
    fixed = "fixed"
    free = "free"


def _version(asked: bool) -> None:
    if asked:
        print(f"htgrpo {__version__}")
        raise typer.Exit


@app.callback()
def htgrpo(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def train(
    config: Files,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    loop: Annotated[Loop, typer.Option(help="native: our own. upstream: MaskGRPO's, patched.")] = Loop.native,
    base_of: Annotated[Path | None, typer.Option(help="Run whose evaluation of the same base model is taken.")] = None,
) -> None:
    """Train, evaluate before and after, write the report."""
    from htgrpo_ext.config import load_settings

    settings = load_settings(config, set_ or [])
    if loop is Loop.reference:
        print("deprecated: the loop `reference` is now called `native` (LOOP=native, --loop native)", file=sys.stderr)
    from htgrpo_ext.workflow.train import train as train_run

    train_run(settings, "upstream" if loop is Loop.upstream else "native", resume, base_of)


@app.command()
def plan(config: Files, set_: Overrides = None) -> None:
    """Show what a run will do, without training: updates, forwards, batches, memory."""
    from htgrpo_ext.config import load_settings

    settings = load_settings(config, set_ or [])
    from htgrpo_ext.workflow.plan import print_plan

    print_plan(settings)


@app.command()
def diagnose(
    config: Files,
    methods: Annotated[
        str, typer.Option(help="Names in configs/method, or YAML files, with commas between.")
    ] = "htgrpo,maskgrpo-fixed,maskgrpo,unigrpo,d1,agrpo,tracegrpo",
    prompts: Annotated[int, typer.Option(min=2, max=1000, help="Prompts of the run, two groups of rollouts each.")] = 6,
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter that training saved.")] = None,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of tables and figure; must not exist.")] = Path("runs/diagnose"),
) -> None:
    """Compare each method's gradient with the exact one, before training: can the estimator learn this task?"""
    from htgrpo_ext.config import config_files, load_settings
    from htgrpo_ext.workflow.diagnosis_settings import settings_of

    sets = [*(set_ or []), *settings_of(prompts)]
    runs = [load_settings([*config, file], sets) for file in config_files("method", methods)]
    from htgrpo_ext.workflow.diagnose import diagnose as diagnose_model
    from htgrpo_ext.workflow.diagnose import print_diagnosis

    print_diagnosis(diagnose_model(runs, prompts, adapter, out), out)


@app.command()
def compare(
    config: Files,
    methods: Annotated[str, typer.Option(help="Names in configs/method, or YAML files, with commas between.")] = "",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs per method: seeds 0, 1, ..")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs at a time.")] = 1,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of all the runs and of compare.json.")] = Path("runs/compare"),
    tune: Annotated[Path | None, typer.Option(help="Tune each method first: a file of configs/comparison.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --tune: list the runs and their states.")] = False,
) -> None:
    """Train several methods under equal seeds, prompts and rewards, and lay the runs side by side."""
    if tune:
        from htgrpo_ext.workflow.compare_tuned import compare_tuned

        compare_tuned(config, tune, methods, jobs, set_ or [], out, dry_run)
        return
    if dry_run:
        raise UserError("--dry-run lists the runs of a comparison with --tune")
    from htgrpo_ext.config import config_files

    files = config_files("method", methods)
    from htgrpo_ext.workflow.compare import compare as compare_methods

    compare_methods(config, files, seeds, jobs, set_ or [], out)


@app.command("compare-tables")
def compare_tables(
    folder: Annotated[Path, typer.Argument(help="Holds comparison.json and verdicts.csv of `compare --tune`.")],
) -> None:
    """Make the tables and the figure of a tuned comparison again, from its data alone."""
    from rich.console import Console

    from htgrpo_ext.report.tuned import remake

    remake(folder, Console())


@app.command()
def ablate(
    config: Files,
    ablation: Annotated[int, typer.Option(min=1, max=5, help="Which of the paper's five.")],
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs per variant: seeds 0, 1, ..")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs at a time.")] = 1,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of all the runs, shared by the ablations.")] = Path("runs/ablate"),
) -> None:
    """Train every variant of an ablation beside the full method, and lay their scores side by side."""
    from htgrpo_ext.workflow.ablate import ablate as ablate_method

    ablate_method(ablation, config, seeds, jobs, set_ or [], out)


@app.command()
def reproduce(
    config: Files,
    bench: Annotated[str, typer.Option(help="microeval, geneval, dpg or files of prompts, with commas between.")],
    methods: Annotated[str, typer.Option(help="Names in configs/method, or YAML files, with commas between.")] = "",
    ablation: Annotated[int | None, typer.Option(min=1, max=5, help="One of the paper's, instead of methods.")] = None,
    scorers: Annotated[str, typer.Option(help="With commas between. [default: the benchmarks' own]")] = "",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs per method: seeds 0, 1, ..")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Commands of one kind at a time.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts of each task, to try it out.")] = None,
    loop: Annotated[Loop, typer.Option(help="native: our own. upstream: MaskGRPO's, patched.")] = Loop.native,
    launch: Annotated[Path | None, typer.Option(help="A file of configs/accelerate, to train on several GPUs.")] = None,
    baseline: Annotated[str, typer.Option(help="The row that others are compared to: base, or a method's.")] = "base",
    set_: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs, images and tables.")] = Path("runs/reproduce"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands alone.")] = False,
) -> None:
    """Train methods, generate a benchmark's images, score them, sum up; the same command goes on after a stop."""
    from htgrpo_ext.config import ablation_files, config_files

    if (ablation is None) == (not methods):
        raise UserError("either --methods or --ablation says what is trained")
    files = ablation_files(ablation) if ablation else [[file] for file in config_files("method", methods)]
    from htgrpo_ext.workflow.reproduce import Request
    from htgrpo_ext.workflow.reproduce import reproduce as reproduce_methods

    benches, judges = ([name.strip() for name in names.split(",") if name.strip()] for names in (bench, scorers))
    what = Request(config, files, seeds, set_ or [], benches, judges, out, limit, loop.value)
    reproduce_methods(replace(what, launch=launch, baseline=baseline, ablation=ablation), jobs, dry_run)


@app.command()
def sample(
    model: Annotated[
        str, typer.Option(help="Name in configs/model, or a YAML file.", autocompletion=lambda: _names("model"))
    ],
    checkpoint: Annotated[Path, typer.Option(help="Folder of the model.")],
    prompt: Annotated[list[str], typer.Option(help="What to paint; may be given several times.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter that training saved.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the images.")] = Path("samples"),
    trace: Annotated[
        bool, typer.Option("--trace", help="Also the order of the tokens and the canvas by steps.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Paint prompts; every PNG holds its prompt, seed and settings."""
    from htgrpo_ext.config import config_files, load_settings

    files = [*config_files("model", model), *config_files("method", "htgrpo")]
    settings = load_settings(files, [f"model.checkpoint={checkpoint}", *(set_ or [])])
    from htgrpo_ext.workflow.sample import sample as sample_prompts

    for path in sample_prompts(settings, prompt, count, seed, out, adapter, trace):
        print(path)


@app.command()
def merge(
    checkpoint: Annotated[Path, typer.Option(help="Folder of the model that was trained.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter that training saved.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Fold an adapter into a copy of its checkpoint, in the published format."""
    from htgrpo_ext.backbones.adapters import merge as merge_files

    print(f"{out}: {merge_files(checkpoint, adapter, out)} weights changed")


@app.command("pretrain-micro")
def pretrain_micro(
    out: Annotated[Path, typer.Option(help="Folder to save the checkpoint in.")],
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Optimizer steps.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    placement: Annotated[Placement, typer.Option(help="Where objects may stand.")] = Placement.canonical,
) -> None:
    """Train the micro model's base checkpoint from scratch."""
    from htgrpo_ext.backbones.micro.pretrain import pretrain

    pretrain(out, seed, steps, placement=placement.value)


@app.command("pretrain-words")
def pretrain_words(
    out: Annotated[Path, typer.Option(help="Folder to save the checkpoint in.")],
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Optimizer steps.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    difficulty: Annotated[Difficulty, typer.Option(help="Of a word's font, size and place.")] = Difficulty.fixed,
    further: Annotated[Path | None, typer.Option(help="Checkpoint to train further, instead of from scratch.")] = None,
    done: Annotated[int, typer.Option(min=0, max=10**7, help="Steps of --steps that it has had.")] = 0,
) -> None:
    """Make the words world's tokenizer, and train a base checkpoint."""
    from htgrpo_ext.backbones.words.pretrain import pretrain

    pretrain(out, seed, steps, difficulty is Difficulty.free, further, done)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER")]) -> None:
    """Write report.html of a finished run again."""
    if not (run_folder / "summary.json").is_file():
        raise UserError(f"{run_folder}: no finished run there (summary.json is missing)")
    from htgrpo_ext.report.page import write_report

    print(write_report(run_folder))


@prompts_app.command("geneval-train")
def prompts_geneval_train(
    n: Annotated[int, typer.Option("--n", min=1, max=10**7, help="Lines to write.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    exclude: Annotated[Path, typer.Option(help="GenEval's own prompts, to leave out.")] = Path(
        "upstream/dataset/GenEval/evaluation_metadata.jsonl"
    ),
) -> None:
    """Write training prompts of GenEval's kind; GenEval's own prompts are left out."""
    from htgrpo_ext.prompts.geneval import write_training_set

    print(write_training_set(n, seed, exclude, out))


@prompts_app.command("text-rendering")
def prompts_text_rendering(
    n: Annotated[int, typer.Option("--n", min=1, max=10**6, help="Lines to write.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write; must not exist.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of the words that training prompts never have, for an evaluation.")
    ] = False,
) -> None:
    """Write prompts that ask for a text in the picture, with the text beside each."""
    from htgrpo_ext.prompts.text_rendering import write_text_prompts

    print(write_text_prompts(n, seed, "held-out" if held_out else "train", out))


@app.command("serve-reward")
def serve_reward(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.py:CLASS", help="A reward, or a class of your own.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    device: Annotated[
        str | None, typer.Option(help="cpu, or cuda:0,cuda:1: one worker each. [default: cuda:0 if there is one]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Images scored at once, at most.")] = 16,
    wait_ms: Annotated[float, typer.Option(min=0, help="How long a batch waits for more, at most.")] = 5.0,
    max_mib: Annotated[float, typer.Option(min=0.001, help="Size of a request, at most.")] = 64.0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="The reward's own.")] = None,
) -> None:
    """Serve a reward over HTTP until Control-C. HTGRPO_REWARD_TOKEN, if set, is the bearer token to ask for."""
    from htgrpo_ext.config import read_options

    try:
        from htgrpo_ext.rewards.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name} (pip install 'htgrpo-ext[serve]')") from None

    serve(name, port, host, device, batch_size, wait_ms, max_mib, read_options(set_ or []))


def main() -> None:
    """Run the command. Each of a user's mistakes is one `error:` line; the exit code is then 2. Control-C: 130."""
    if sys.platform == "darwin":  # accelerate would take Apple's GPU, on which nobody has run this
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="htgrpo", standalone_mode=False))
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":  # every process of a run stops
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signum)
    except Exception as error:
        for line in _lines(error):
            print(f"error: {one_line(line, 2000)}", file=sys.stderr)
        sys.exit(2)


def _lines(error: Exception) -> list[str]:
    """What to tell the user. Raises the error if it is no mistake of theirs."""
    if isinstance(error, UserError):
        return str(error).split("\n")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return [f"{error.filename}: {error.strerror}"]
    if said := getattr(error, "format_message", None):  # typer's, for arguments that are wrong
        return [f"{' '.join(said().split())} (see htgrpo --help)"]
    raise error


if __name__ == "__main__":
    main()
