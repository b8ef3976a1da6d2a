"""The micro world's verifier: an exact detector and GenEval's strict verdict, with partial credit for RL."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from htgrpo_ext.micro import world

MATCHING_TOKENS = 3  # of an object's four tokens, how many must agree before it is seen


@dataclass(frozen=True)
class Seen:
    """A detected object: its class, its colour (None when its tokens do not agree) and its top-left token."""

    class_name: str
    color: str | None
    anchor: world.Anchor


@dataclass(frozen=True)
class Verdict:
    correct: bool  # every requirement met and nothing surplus
    partial: float  # share of the requirements met, in [0, 1]; 1 exactly when correct
    reason: str  # the first requirement that failed; "" when correct
    objects: tuple[Seen, ...]


def detect(codes: Sequence[int]) -> list[Seen]:
    """Objects in an image of 64 codes.

    Each object token implies its object's top-left corner (its own place minus its quadrant). An object is seen
    where at least three tokens agree on corner, shape and texture.
    """
    votes: dict[tuple[world.Anchor, str], list[str]] = defaultdict(list)
    for place, code in enumerate(codes):
        if code < world.NUM_OBJECT_CODES:
            class_name, color, quadrant = world.split_object_code(code)
            row, column = divmod(place, world.GRID)
            votes[(row - quadrant // 2, column - quadrant % 2), class_name].append(color)
    seen = []
    for (anchor, class_name), colors in sorted(votes.items()):
        if len(colors) >= MATCHING_TOKENS:
            color, count = Counter(colors).most_common(1)[0]
            seen.append(Seen(class_name, color if count >= MATCHING_TOKENS else None, anchor))
    return seen


def verify(prompt: world.Prompt, codes: Sequence[int]) -> Verdict:
    """Verdict on an image of 64 codes for a prompt's GenEval metadata.

    Requirements, all of equal weight: for each entry, its count of its class; for each entry with a colour, that
    many objects of that colour; for each entry with a position, the relation; and no surplus object.
    """
    objects = detect(codes)
    scores: list[tuple[float, str]] = []
    of_entry: list[list[Seen]] = []
    for entry in prompt["include"]:
        name, count, color = entry["class"], entry["count"], entry.get("color")
        matching = [o for o in objects if o.class_name == name]
        scores.append((min(len(matching), count) / count, f"{len(matching)} of {count} {name}"))
        if color is not None:
            colored = [o for o in matching if o.color == color]
            scores.append((min(len(colored), count) / count, f"{name} not {color}"))
            matching = colored or matching
        of_entry.append(matching)
    for entry, these in zip(prompt["include"], of_entry, strict=True):
        if "position" in entry:
            relation, other = entry["position"]
            right = any(world.holds(relation, a.anchor, b.anchor) for a in these for b in of_entry[other])
            scores.append((float(right), f"{entry['class']} not {relation} {prompt['include'][other]['class']}"))
    surplus = len(objects) - sum(entry["count"] for entry in prompt["include"])
    scores.append((float(surplus <= 0), f"{surplus} surplus"))
    failed = [reason for score, reason in scores if score < 1.0]
    partial = sum(score for score, _ in scores) / len(scores)
    return Verdict(not failed, partial, failed[0] if failed else "", tuple(objects))
