"""`htgrpo eval`: images in a benchmark's layout, their scores, and tables of them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Benchmarks: generate images, score them, sum up.")

Files = Annotated[
    list[Path], typer.Argument(metavar="CONFIG...", help="YAML files, or packaged ones (model/micro); later ones win.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting.")]
SetFolder = Annotated[Path, typer.Argument(metavar="SET", help="Folder that `htgrpo eval generate` wrote.")]


@app.command()
def generate(
    config: Files,
    bench: Annotated[str, typer.Option(metavar="NAME|FILE", help="geneval, dpg, microeval, or a file of prompts.")],
    out: Annotated[Path, typer.Option(help="Folder of the set. One that is not complete is gone on with.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter that training saved.")] = None,
    label: Annotated[str | None, typer.Option(help="Its name in tables. [default: the folder's name]")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The benchmark's prompt file. [default: MaskGRPO's, in upstream/dataset]")
    ] = None,
    prompt_key: Annotated[str, typer.Option(help="Key of the text that is painted, such as long_prompt.")] = "prompt",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts of each task.")] = None,
    set_: Overrides = None,
) -> None:
    """Paint a benchmark's prompts, by the settings `model` and `sampling`."""
    from htgrpo_ext.config import load_settings

    settings = load_settings(config, set_ or [])
    from htgrpo_ext.workflow.generate import generate_set

    if done := generate_set(settings, bench, out, adapter, label, prompts, prompt_key, limit):
        print(f"{done}\n{out}")


@app.command()
def count(folder: SetFolder) -> None:
    """Check that a set is complete, whole and unmixed."""
    from htgrpo_ext.imagesets.sets import describe_set

    print(describe_set(folder))


@app.command()
def score(
    folder: SetFolder,
    scorer: Annotated[str, typer.Option(metavar="NAME|FILE.py:CLASS", help="A scorer, or a class of your own.")],
    again: Annotated[bool, typer.Option("--again", help="Also if these images were scored already.")] = False,
    calibration: Annotated[Path | None, typer.Option(help="Folder of pictures with known verdicts.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="The scorer's own.")] = None,
) -> None:
    """Have a scorer judge every image of a set: SET/scores/NAME.jsonl."""
    from htgrpo_ext.config import read_options
    from htgrpo_ext.imagesets.scorers import scorer_named
    from htgrpo_ext.workflow.score import score as score_set

    judge = scorer_named(scorer, read_options(set_ or []))
    written = score_set(folder, judge, scorer, again, calibration)
    print(f"{folder}/scores/{judge.name}.jsonl{'' if written else ': these images were scored already (--again)'}")


@app.command()
def summarize(
    sets: Annotated[list[Path], typer.Argument(metavar="SET...", help="Scored sets, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder of summary.json, .csv, .tex, .md and .html.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Row that differences are from; without it the first set's.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Refuse sets of any other model.")] = None,
) -> None:
    """Tables of scored sets: intervals, differences, the paper's rows; and a page with their images side by side."""
    from htgrpo_ext.workflow.summarize import summarize as summarize_sets

    summarize_sets(sets, baseline, out, model)
