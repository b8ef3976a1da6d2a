"""report.html: a run in one self-contained page, for phone and desktop.

Q prompts, I images per prompt, N image tokens, K updates.
"""

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from htgrpo_ext.core.stages import structure_count
from htgrpo_ext.report.curves import OTHER_STAGE, STAGE_COLORS, curves
from htgrpo_ext.report.figures import IMAGES_SHOWN, first_of_each_task, pictures, task_name
from htgrpo_ext.report.folder import (
    Scored,
    ShownRollout,
    read_config,
    read_metrics,
    read_prompts,
    read_rollout,
    read_scored,
    read_summary,
    write_atomically,
)

PROMPTS_SHOWN = 2  # of each task
BEFORE, AFTER = "#9aa3ad", "#0072b2"
FORWARD_KINDS = {
    "rollout": "denoising steps of the rollouts",
    "old": "log-probabilities of the rollout policy",
    "reference": "log-probabilities of the reference",
    "new": "log-probabilities with gradient",
}
MAP_CELL = 16  # units of a map's side per token
VEIL = 'fill="#fff" opacity=".88"'  # over tokens outside a support set
_lines = "\n".join


def write_report(folder: Path) -> Path:
    """Write report.html from a run's folder (summary.json included) and return its path."""
    summary, config = read_summary(folder), read_config(folder)
    updates, cycles = read_metrics(folder)
    prompts, base, trained = read_prompts(folder), read_scored(folder, "base"), read_scored(folder, "trained")
    rollout = read_rollout(folder)
    structure = structure_count(len(rollout.rank_N), config["method"].get("structure_ratio", 0.3))
    body = [
        _headline(summary, config),
        _section("Scores", _score_note(summary), _scores(summary)),
        _section("Training", "", _curves(updates, cycles)),
        _section(
            "Before and after",
            f"The first {PROMPTS_SHOWN} evaluation prompts of each task, whatever came of them. Above the base model, "
            "below the trained one, from the same noise. Green is right by the strict verdict; red says what is not.",
            _pairs(prompts, base, trained),
        ),
        _section(
            "One rollout of the last cycle",
            f"“{escape(rollout.prompt)}”, reward {rollout.reward:.2f}. Tokens are ranked in the order they were "
            f"unmasked; the first {structure} are structure (outlined), the others refinement.",
            _rollout(rollout, structure),
        ),
        _section("Cost", "", _cost(summary)),
        _config(folder),
    ]
    style = Path(__file__).with_name("page.css").read_text()
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(summary["name"])}</title>\n<style>\n{style}</style>\n'
        f"</head>\n<body>\n<main>\n{_lines(body)}\n</main>\n</body>\n</html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _section(title: str, note: str, content: str) -> str:
    words = f'<p class="note">{note}</p>' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{words}\n{content}\n</section>"


def _headline(summary: dict, config: dict) -> str:
    low, high = summary["gain_interval"]
    facts = {
        "method": summary["label"],
        "model": config["model"]["name"],
        "seed": summary["seed"],
        "cycles": summary["cycles"],
        "evaluation": f"{summary['prompts']} prompts, {summary['images']} images",
        "time": _duration(sum(summary["seconds"].values())),
    }
    listed = "".join(f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in facts.items())
    return (
        f"<header>\n<h1>MicroEval · {escape(summary['name'])}</h1>\n"
        f'<div class="headline"><span class="from">{summary["base"]["overall"]:.2f}</span> '
        f'<span class="to">→</span> {summary["trained"]["overall"]:.2f} '
        f'<span class="chip{" down" if summary["gain"] < 0 else ""}">{summary["gain"]:+.2f} '
        f"[{low:+.2f}, {high:+.2f}]</span></div>\n"
        f'<div class="facts">{listed}</div>\n</header>'
    )


# --- scores ----------------------------------------------------------------------------------------------------


def _score_note(summary: dict) -> str:
    each = summary["images"] // summary["prompts"]
    return (
        "Share of images right by the strict verdict; overall is the unweighted mean of the tasks. Intervals: 95 %, "
        f"bootstrap over prompts within each task, {each} images a prompt. "
        f'<span class="swatch" style="background:{BEFORE}"></span>before '
        f'<span class="swatch" style="background:{AFTER};margin-left:8px"></span>after'
    )


def _scores(summary: dict) -> str:
    base, trained = summary["base"], summary["trained"]
    lines = []
    for task, before in base["tasks"].items():
        after = trained["tasks"][task]
        lines.append(_score_row(task_name(task), "", (before["score"], before), (after["score"], after)))
    lines.append(_score_row("overall", "overall", (base["overall"], base), (trained["overall"], trained)))
    head = (
        '<tr><th>task</th><th class="number">before</th><th class="number">after</th><th class="number">gain</th>'
        '<th class="wide">0 to 1</th></tr>'
    )
    return f'<div class="scroll"><table>\n{head}\n{_lines(lines)}\n</table></div>'


def _score_row(name: str, css: str, before: tuple[float, dict], after: tuple[float, dict]) -> str:
    cells = "".join(
        f'<td class="number">{score:.2f} <small>[{of["interval"][0]:.2f}, {of["interval"][1]:.2f}]</small></td>'
        for score, of in (before, after)
    )
    marks = "".join(
        f'<line x1="{200 * of["interval"][0]:.1f}" x2="{200 * of["interval"][1]:.1f}" y1="{y}" y2="{y}" '
        f'stroke="{color}" stroke-width="3" stroke-linecap="round" opacity=".45"/>'
        f'<circle cx="{200 * score:.1f}" cy="{y}" r="4.5" fill="{color}"/>'
        for (score, of), y, color in ((before, 8, BEFORE), (after, 18, AFTER))
    )
    ticks = "".join(f'<line x1="{x}" x2="{x}" y1="0" y2="26" stroke="#e3e7eb"/>' for x in (0, 50, 100, 150, 200))
    picture = f'<svg class="interval" viewBox="-6 0 212 26" aria-hidden="true">{ticks}{marks}</svg>'
    return (
        f'<tr class="{css}"><td>{name}</td>{cells}<td class="number">{after[0] - before[0]:+.2f}</td>'
        f'<td class="wide">{picture}</td></tr>'
    )


# --- curves and images -----------------------------------------------------------------------------------------


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return _data_uri("png", file.getvalue())


def _curves(updates: list[dict], cycles: list[dict]) -> str:
    figures = [
        f'<figure><figcaption><b>{c.title}</b>{c.note}</figcaption><img alt="{c.title}" '
        f'src="{_data_uri("svg+xml", c.svg)}"></figure>'
        for c in curves(updates, cycles)
    ]
    return f'<div class="curves">\n{_lines(figures)}\n</div>'


def _pairs(prompts: list[dict], base: Scored, trained: Scored) -> str:
    parts = []
    for task, places in first_of_each_task(prompts, PROMPTS_SHOWN).items():
        parts.append(f'<h3>{task_name(task)}</h3>\n<div class="pairs">')
        for place in places:
            rows = _row("before", base, place) + _row("after", trained, place)
            parts.append(f'<div class="pair"><h4>{escape(prompts[place]["prompt"])}</h4>{rows}</div>')
        parts.append("</div>")
    return _lines(parts)


def _row(name: str, scored: Scored, place: int) -> str:
    shown = slice(0, IMAGES_SHOWN)
    figures = []
    for image, right, reason in zip(
        pictures(scored.codes_QIN[place, shown]),
        scored.correct_QI[place, shown],
        scored.reasons_QI[place, shown],
        strict=True,
    ):
        verdict = "<b>✓</b>" if right else f"<b>✗</b> {escape(str(reason))}"
        css, alt = ("image right", f"{name}: right") if right else ("image", f"{name}: {reason}")
        figures.append(f'<figure class="{css}"><img alt="{escape(alt)}" src="{_png(image)}">{verdict}</figure>')
    return f'<div class="row"><span>{name}</span>{"".join(figures)}</div>'


# --- one rollout -----------------------------------------------------------------------------------------------


def _map(cells: Iterable[str], side: int, size: int) -> str:
    """A drawing laid over the rollout's picture, which the page holds once."""
    view = size * side
    return f'<div class="shown"><svg viewBox="0 0 {view} {view}">{"".join(cells)}</svg></div>'


def _cell(place: int, side: int, attributes: str, inset: float = 0) -> str:
    row, column = divmod(place, side)
    length = MAP_CELL - 2 * inset
    x, y = column * MAP_CELL + inset, row * MAP_CELL + inset
    return f'<rect x="{x}" y="{y}" width="{length}" height="{length}" {attributes}/>'


def _rank_cells(rank_N: NDArray, structure: int, side: int) -> list[str]:
    colors = matplotlib.colormaps["viridis"]
    cells = []
    for place, rank in enumerate(rank_N.tolist()):
        fill = to_hex(colors(rank / len(rank_N)))
        row, column = divmod(place, side)
        ink = "#fff" if rank < 0.7 * len(rank_N) else "#222"
        cells.append(_cell(place, side, f'fill="{fill}" opacity=".8"'))
        cells.append(
            f'<text x="{(column + 0.5) * MAP_CELL}" y="{(row + 0.5) * MAP_CELL + 2.2}" font-size="6.5" '
            f'text-anchor="middle" fill="{ink}" font-family="sans-serif">{rank}</text>'
        )
    return cells + _outlines(rank_N, structure, side)


def _outlines(rank_N: NDArray, structure: int, side: int) -> list[str]:
    chosen = np.flatnonzero(rank_N <= structure).tolist()
    color = STAGE_COLORS["structure"]
    return [_cell(place, side, f'fill="none" stroke="{color}" stroke-width="1.6"', inset=0.8) for place in chosen]


def _support_cells(support_N: NDArray, color: str, side: int) -> list[str]:
    """The tokens of a support set in the stage's colour, paler where others count more; the rest is veiled."""
    most = max(1, int(support_N.max()))
    return [
        _cell(place, side, f'fill="{color}" opacity="{0.25 + 0.4 * times / most:.2f}"' if times else VEIL)
        for place, times in enumerate(support_N.tolist())
    ]


def _rollout(rollout: ShownRollout, structure: int) -> str:
    side = round(len(rollout.rank_N) ** 0.5)
    picture = pictures(rollout.codes_N[None])[0]
    large = [
        ("The picture", "", []),
        ("Rank", "dark: first, light: last", _rank_cells(rollout.rank_N, structure, side)),
        ("Structure tokens", f"the first {structure}", _outlines(rollout.rank_N, structure, side)),
    ]
    small = []
    for k, (stage, support_N) in enumerate(zip(rollout.stages, rollout.supports_KN, strict=True)):
        name = f"{stage} {rollout.stages[:k].count(stage) + 1}/{rollout.stages.count(stage)}"
        cells = _support_cells(support_N, STAGE_COLORS.get(stage, OTHER_STAGE), side)
        small.append((name, f"{np.count_nonzero(support_N)} tokens", cells))

    def figures(maps: list[tuple[str, str, list[str]]]) -> str:
        return "\n".join(
            f"<figure>{_map(cells, side, MAP_CELL)}<figcaption><b>{title}</b>{note}</figcaption></figure>"
            for title, note, cells in maps
        )

    return (
        f"<style>.shown {{ background-image: url({_png(picture)}); }}</style>\n"
        f'<div class="maps large">\n{figures(large)}\n</div>\n'
        f'<h3>Support sets of its {len(small)} updates</h3>\n<div class="maps">\n{figures(small)}\n</div>'
    )


# --- cost and configuration ------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cost(summary: dict) -> str:
    cycles = max(1, summary["cycles"])
    forwards = [
        f'<tr><td>{kind}<br><small>{FORWARD_KINDS.get(kind, "")}</small></td><td class="number">{count / cycles:,.0f}'
        f'</td><td class="number">{count:,}</td></tr>'
        for kind, count in summary["forwards"].items()
    ]
    total = sum(summary["seconds"].values())
    seconds = [
        f'<tr><td>{escape(part)}</td><td class="number">{amount:,.1f}</td>'
        f'<td class="number">{amount / total if total else 0:.0%}</td></tr>'
        for part, amount in summary["seconds"].items()
    ]
    seconds.append(f'<tr class="overall"><td>total</td><td class="number">{total:,.1f}</td><td></td></tr>')
    heads = [
        '<tr><th>rows through the model</th><th class="number">a cycle</th><th class="number">in all</th></tr>',
        '<tr><th>part</th><th class="number">seconds</th><th class="number">share</th></tr>',
    ]
    tables = [
        f'<div class="scroll"><table>{head}\n{_lines(rows)}</table></div>'
        for head, rows in zip(heads, (forwards, seconds), strict=True)
    ]
    memory = f'<p class="note">Peak memory {summary["peak_memory_bytes"] / 2**20:,.0f} MiB.</p>'
    return f'<div class="two">\n{_lines(tables)}\n</div>\n{memory}'


def _config(folder: Path) -> str:
    text = escape((folder / "config.yaml").read_text())
    return f"<section>\n<details><summary>Resolved configuration</summary>\n<pre>{text}</pre></details>\n</section>"
