"""report.html: a run in one self-contained page, for phone and desktop, light and dark.

Here is what the page shows; how it looks is in page.html.jinja and page.css. The template escapes all text.

Q prompts, I images per prompt, N image tokens, K updates.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from htgrpo_ext.benchmarks import Benchmark, benchmark_of
from htgrpo_ext.core.stages import structure_count
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.curves import OTHER_STAGE, STAGE_COLORS, curves, held_out_curves
from htgrpo_ext.report.figures import IMAGES_SHOWN, first_of_each_task, pictures, spread
from htgrpo_ext.report.folder import (
    PictureRow,
    ShownRollout,
    read_best,
    read_config,
    read_held_out,
    read_metrics,
    read_pictures,
    read_prompts,
    read_rollout,
    read_scored,
    read_summary,
)
from htgrpo_ext.report.summary import compared_cycles
from htgrpo_ext.report.templates import templates

PROMPTS_SHOWN = 2  # of each task
PICTURE_SIDE = 256  # pixels of an evaluated image, at most
SMALL_SIDE = 192  # pixels of a picture over the cycles
HELD_OUT_ROWS, ROLLOUT_ROWS = 8, 4
FORWARD_KINDS = {
    "rollout": "denoising steps of the rollouts",
    "reused": "denoising steps that compute only what has changed",
    "old": "log-probabilities of the rollout policy",
    "reference": "log-probabilities of the reference policy",
    "new": "log-probabilities with gradient",
}
CELL = 16  # units of a map's side per token
NUMBERED_COLUMNS = 16  # a map with more columns has no room for numbers
VEIL = "fill:var(--card);opacity:.88"  # over tokens outside a support set


def write_report(folder: Path) -> Path:
    """Write report.html from a run's folder (summary.json included) and return its path."""
    summary, config = read_summary(folder), read_config(folder)
    benchmark, rollout, evaluations = benchmark_of(config), read_rollout(folder), read_held_out(folder)
    page = (
        templates()
        .get_template("page.html.jinja")
        .render(
            summary=summary,
            compared_cycles=compared_cycles(summary["cycles"]),
            model=config["model"]["name"],
            benchmark=benchmark,
            tasks=_before_and_after(folder, benchmark) if benchmark else [],
            prompts_shown=PROMPTS_SHOWN,
            warnings=summary.get("warnings", []),
            held_out=summary.get("held_out"),
            held_out_curves=held_out_curves(evaluations, read_best(folder)) if evaluations else [],
            held_out_rows=_rows(folder / "eval" / "pictures", HELD_OUT_ROWS),
            curves=curves(*read_metrics(folder)),
            rollout_rows=_rows(folder / "pictures", ROLLOUT_ROWS),
            rollout=rollout and _shown(rollout, config["method"].get("structure_ratio", 0.3)),
            forward_kinds=FORWARD_KINDS,
            cell=CELL,
            configuration=(folder / "config.yaml").read_text(),
        )
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _rows(folder: Path, most: int) -> list[PictureRow]:
    """Some rows of pictures of a run, made small."""
    rows = spread(read_pictures(folder), most)
    for row in rows:
        for picture in row.pictures:
            picture.thumbnail((SMALL_SIDE, SMALL_SIDE))
    return rows


def _before_and_after(folder: Path, benchmark: Benchmark) -> list[tuple[str, list[dict]]]:
    """Each task's words and its prompts to show; of a prompt its text and two rows of (picture, correct, reason)."""
    prompts = read_prompts(folder)
    both = {"before": read_scored(folder, "base"), "after": read_scored(folder, "trained")}

    def shown(place: int) -> dict:
        few = slice(0, IMAGES_SHOWN)
        rows = {
            when: zip(
                pictures(benchmark, scored, place, PICTURE_SIDE),
                scored.correct_QI[place, few],
                scored.reasons_QI[place, few],
                strict=True,
            )
            for when, scored in both.items()
        }
        return {"text": prompts[place]["prompt"], "rows": rows}

    of_task = first_of_each_task(prompts, PROMPTS_SHOWN)
    return [(benchmark.task_words(task), [shown(place) for place in places]) for task, places in of_task.items()]


# --- one rollout -----------------------------------------------------------------------------------------------


def _shown(rollout: ShownRollout, structure_ratio: float) -> dict:
    """What the page shows of a rollout: prompt, reward, picture, and maps of its ranks and of its support sets.

    A map lies over the picture: title, note, layers, and whether ranks are written on it. A layer is the SVG path of
    tokens that are painted alike, and its style.
    """
    rank_N, columns, stages = rollout.rank_N, rollout.grid[1], rollout.stages
    structure = structure_count(len(rank_N), structure_ratio)
    style = f"fill:none;stroke:{STAGE_COLORS['structure']};stroke-width:1.6"
    outlines = (_squares(rank_N <= structure, columns, inset=0.8), style)
    colors = map(to_hex, matplotlib.colormaps["viridis"](np.sort(rank_N) / len(rank_N)))
    ranks = [(_squares(rank_N == i, columns), f"fill:{color};opacity:.8") for i, color in enumerate(colors, 1)]
    supports = []
    for k, (stage, support_N) in enumerate(zip(stages, rollout.supports_KN, strict=True)):
        title = f"{stage} {stages[:k].count(stage) + 1}/{stages.count(stage)}"
        layers = _support(support_N, STAGE_COLORS.get(stage, OTHER_STAGE), columns)
        supports.append((title, f"{np.count_nonzero(support_N)} tokens", layers, False))
    return {
        "prompt": rollout.prompt,
        "reward": rollout.reward,
        "picture": rollout.picture,
        "grid": rollout.grid,
        "ranks": rank_N.tolist(),
        "structure": structure,
        "maps": [
            ("The picture", "", [], False),
            ("Rank", "dark: first, light: last", [*ranks, outlines], columns <= NUMBERED_COLUMNS),
            ("Structure tokens", f"the first {structure}", [outlines], False),
        ],
        "supports": supports,
    }


def _squares(chosen_N: NDArray, columns: int, inset: float = 0) -> str:
    side = CELL - 2 * inset
    corners = (divmod(place, columns) for place in np.flatnonzero(chosen_N).tolist())
    return "".join(f"M{CELL * x + inset} {CELL * y + inset}h{side}v{side}h-{side}z" for y, x in corners)


def _support(support_N: NDArray, color: str, columns: int) -> list[tuple[str, str]]:
    """The tokens of a support set in the stage's colour, paler where others count more; the rest is veiled."""
    most = max(1, int(support_N.max()))
    styles = {n: f"fill:{color};opacity:{0.25 + 0.4 * n / most:.2f}" if n else VEIL for n in set(support_N.tolist())}
    return [(_squares(support_N == times, columns), style) for times, style in styles.items()]
