"""What `htgrpo diagnose` found, in tables and sentences. `found` is what diagnosis.json holds."""

import math

from htgrpo_ext.report.tables import Grid, markdown

EXPLAINED = """\
cosine: of a method's gradient with the exact one, on the same rollouts. cosine of means: the same of their expectations
over rollouts, estimated from two independent halves; chance may take it out of [-1, 1], and it is empty where noise
leaves nothing. length: of the gradient, by the exact one's. noise: share of its squared length that is variance over
rollouts. draws: share that is variance over the method's own draws, on fixed rollouts. outside: share of its tokens'
ratios that a step of one learning rate along the gradient moves beyond the clip; largest: the largest log ratio then.
±: one standard error, by the jackknife over prompts."""


LAWS = {
    "entropy, own context": "entropy_own",
    "entropy, fully masked": "entropy_marginal",
    "known of prompt and context": "information_own",
    "known of the prompt alone": "information_marginal",
    "its share": "share",
}


def number(value: float | None, digits: int = 2) -> str:
    """A number in few digits; empty where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_error(pair: list[float]) -> str:
    """0.53 ±0.04"""
    value, error = pair
    shown = number(value)
    return f"{shown} ±{number(error)}" if shown and number(error) else shown


def name_of(record: dict) -> str:
    """The method and which of its updates: `htgrpo, structure (update 3)`."""
    if record["update"] == "cycle":
        return f"{record['method']}, mean of all updates"
    return f"{record['method']}, {record['update']} (update {record['number']})"


def method_table(found: dict) -> Grid:
    """Each method's first updates against the exact gradient."""
    head = ["gradient of", "tokens", "cosine", "cosine of means", "length", "noise", "draws", "outside", "largest"]
    exact = found["exact"]
    rows = [head, ["exact", str(found["tokens"]), "1", "1", "1", number(exact["noise"][0]), "", "", ""]]
    for record in found["methods"]:
        row = [name_of(record), number(record.get("tokens"), 0), with_error(record["cosine"])]
        row += [with_error(record["cosine_of_means"]), number(record["norm_ratio"][0]), number(record["noise"][0])]
        step = record.get("after_step", {})
        outside = step.get("outside")
        row += [number(record.get("noise_of_draws")), "" if outside is None else f"{outside:.1%}"]
        rows.append([*row, number(step.get("largest"))])
    return Grid("gradients at theta = theta_old", rows)


def rank_table(found: dict) -> Grid:
    """The cosine of the gradients of tokens of equal ranks, early to late."""
    count = len(found["exact"]["by_rank"])
    parts = [span(found["tokens"], count, i) for i in range(count)]
    rows = [["cosine of the tokens of ranks", *parts]]
    rows += [
        [name_of(record), *(with_error(part["cosine"]) for part in record["by_rank"])]
        for record in found["methods"]
        if "by_rank" in record
    ]
    rows.append(["exact: noise", *(number(part["noise"][0]) for part in exact_parts(found))])
    return Grid("by generation order", rows)


def exact_parts(found: dict) -> list[dict]:
    """The exact gradient's parts by rank."""
    return found["exact"]["by_rank"]


def law_table(found: dict) -> Grid:
    """Entropy, information and log ratios of the tokens' laws, early to late."""
    laws = found["laws"]
    parts = [*laws["by_rank"], laws["all"]]
    count = len(laws["by_rank"])
    rows = [["ranks", *(span(found["tokens"], count, i) for i in range(count)), "all"]]
    for label, key in LAWS.items():
        rows.append([label, *(number(part[key]) for part in parts)])
    for label, place in (("log ratio, 1 %", 1), ("log ratio, median", 4), ("log ratio, 99 %", 7)):
        rows.append([label, *(number(part["log_ratio"]["quantiles"][place]) for part in parts)])
    return Grid("laws of the tokens, in nats a token; log ratio: fully masked by own context", rows)


def span(tokens: int, count: int, place: int) -> str:
    """The ranks of part `place` of `count`: 1-16"""
    return f"{tokens * place // count + 1}-{tokens * (place + 1) // count}"


def grids(found: dict) -> list[Grid]:
    """All tables."""
    return [method_table(found), rank_table(found), law_table(found)]


def about(found: dict) -> str:
    """What was measured, in three lines."""
    sampler, reward, rows, weights = (found[key] for key in ("sampler", "reward", "rows", "weights"))
    kept = "all" if weights["compared"] == weights["trained"] else f"sketched to {weights['compared']:,}"
    rollouts = f"{len(found['prompts'])} prompts x 2 x {found['rollouts_per_prompt']} rollouts"
    return (
        f"{found['model']['name']}, {found['model']['checkpoint']}\n"
        f"{rollouts}, {sampler['sampler']}, {sampler['steps']} steps, guidance {sampler['guidance']:g}; mean reward "
        f"{reward['mean']:.3f}, {reward['without_spread']} of {reward['groups']} groups without spread\n"
        f"{weights['trained']:,} weights ({kept}); {rows['forward']:,} rows forward, {rows['gradient']:,} with "
        f"gradient; {found['seconds']:.0f} s"
    )


def as_text(found: dict) -> str:
    """diagnosis.md: what was measured, the tables, the sentences."""
    tables = "\n\n".join(f"## {grid.caption}\n{markdown(grid)}" for grid in grids(found))
    return f"# Diagnosis\n{about(found)}\n\n{tables}\n\n{EXPLAINED}\n\n" + "\n".join(found["sentences"]) + "\n"


# Where training is known to work and to fail (docs/diagnose.md): share, and HT-GRPO's cosine, by the defaults.
LEARNT, FAILED = (0.57, "0.11 ±0.06"), (0.51, "0.23 ±0.04")
NOISY = 0.8  # share of noise in the exact gradient above which cosines say little


def sentences(found: dict) -> list[str]:
    """What a user should take away, with its limits."""
    laws, noise, groups = found["laws"]["all"], found["exact"]["noise"][0], found["reward"]["groups"]
    first = found["methods"][0]["method"]
    [cycle] = [each for each in found["methods"] if (each["method"], each["update"]) == (first, "cycle")]
    said = [
        f"The prompt alone decides {laws['share']:.0%} of what decides a token here. The gradient of {first}'s updates "
        f"has a cosine of {with_error(cycle['cosine'])} with the exact one on the same rollouts."
    ]
    if noise > NOISY:
        rollouts = groups * found["rollouts_per_prompt"]
        said.append(
            f"From {rollouts} rollouts the exact gradient itself is mostly noise, so cosines hold for these alone. "
            "More rollouts: --prompts, --set rollout.rollouts_per_prompt=64."
        )
    said.append(
        f"No forecast: on the micro world, where HT-GRPO learns, the numbers are {LEARNT[0]:.0%} and {LEARNT[1]}; with "
        f"objects anywhere, where it hardly does, {FAILED[0]:.0%} and {FAILED[1]} (docs/diagnose.md)."
    )
    return said
