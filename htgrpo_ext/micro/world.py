"""The micro world: what an image consists of, its prompts, and how (imperfect) training scenes are drawn.

An image is a grid of 8 x 8 tokens from a codebook of 440. An object covers 2 x 2 tokens, one code per
quadrant. A code names the object's shape, texture and colour at once, so the tokens of an object must agree before
a verifier sees it. Everything else is background: a scene that the prompt names, in one of two lights that
the prompt does not name, with clouds and small things on the ground. The places of objects are layout; clouds,
light and ground are detail.

Prompts are GenEval metadata: {"tag", "include": [{"class", "count", "color"?, "position"?}], "prompt"},
plus "scene". A class is a texture and a shape ("striped star"): 18 classes, as GenEval has 80.
"""

from collections.abc import Sequence
from random import Random

GRID = 8  # tokens per side
NUM_IMAGE_TOKENS = GRID * GRID
OBJECT_SIDE = 2  # tokens per side of an object

SHAPES = ("circle", "square", "triangle", "diamond", "heart", "star")
TEXTURES = ("plain", "striped", "dotted")
COLORS = ("red", "yellow", "green", "blue", "purple")
QUADRANTS = 4  # top left, top right, bottom left, bottom right
SCENES = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "desert": "in a desert",
    "snow": "in the snow",
    "sea": "by the sea",
}
LIGHTS = ("noon", "dusk")
# Background patches: four of sky, four of ground.
SKY_HIGH, SKY_LOW, CLOUD_LEFT, CLOUD_RIGHT, GROUND_FAR, GROUND_NEAR, DETAIL_A, DETAIL_B = range(8)
BACKGROUND_PATCHES = 8
HORIZON = 4  # rows of sky

CLASSES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)
NUM_OBJECT_CODES = len(CLASSES) * len(COLORS) * QUADRANTS
CODEBOOK_SIZE = NUM_OBJECT_CODES + len(SCENES) * len(LIGHTS) * BACKGROUND_PATCHES

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's six
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Share of training scenes that contradict their caption, per task: the base model's faults, which RL should correct.
CAPTION_NOISE = {
    "single_object": 0.30,
    "two_object": 0.30,
    "counting": 0.40,
    "colors": 0.35,
    "position": 0.30,
    "color_attr": 0.30,
}

# Canonical arrangements: the top-left token (row, column) of each object, with the share of scenes that use them.
# Photographs are similar: one thing near the middle, two side by side or stacked, a few in a row.
SIDE_BY_SIDE = ((3, 1), (3, 5))
STACKED = ((1, 3), (5, 3))
ARRANGEMENTS = {
    1: ((((3, 3),), 0.5), (((4, 1),), 0.25), (((4, 5),), 0.25)),
    2: ((SIDE_BY_SIDE, 0.6), (STACKED, 0.4)),
    3: ((((3, 0), (3, 3), (3, 6)), 0.6), (((1, 3), (5, 1), (5, 5)), 0.4)),
    4: ((((1, 1), (1, 5), (5, 1), (5, 5)), 0.6), (((3, 0), (3, 2), (3, 4), (3, 6)), 0.4)),
    5: ((((1, 1), (1, 5), (3, 3), (5, 1), (5, 5)), 1.0),),
}
# Share of captions that name things from left to right and from top to bottom; the other scenes shuffle them.
READING_ORDER = 0.8
RELATION_ANCHORS = {  # (this object, the one it is compared with)
    "left of": SIDE_BY_SIDE,
    "right of": SIDE_BY_SIDE[::-1],
    "above": STACKED,
    "below": STACKED[::-1],
}

Anchor = tuple[int, int]
Prompt = dict  # GenEval metadata, see the module's docstring


def object_code(class_name: str, color: str, quadrant: int) -> int:
    """Code of one quadrant of an object; `split_object_code` undoes it."""
    return (CLASSES.index(class_name) * len(COLORS) + COLORS.index(color)) * QUADRANTS + quadrant


def split_object_code(code: int) -> tuple[str, str, int]:
    """(class, color, quadrant) of an object code; ValueError for a background code."""
    if not 0 <= code < NUM_OBJECT_CODES:
        raise ValueError(f"code {code} is not an object's (0..{NUM_OBJECT_CODES - 1})")
    rest, quadrant = divmod(code, QUADRANTS)
    return CLASSES[rest // len(COLORS)], COLORS[rest % len(COLORS)], quadrant


def background_code(scene: str, light: str, patch: int) -> int:
    """Code of one background patch (SKY_HIGH .. DETAIL_B) of a scene under a light."""
    scene_light = list(SCENES).index(scene) * len(LIGHTS) + LIGHTS.index(light)
    return NUM_OBJECT_CODES + scene_light * BACKGROUND_PATCHES + patch


def code_factors(code: int) -> tuple[str, ...]:
    """The factors of a code, in words: texture, shape, colour, quadrant; or scene, light, patch."""
    if code < NUM_OBJECT_CODES:
        class_name, color, quadrant = split_object_code(code)
        texture, shape = class_name.split()
        return "object", texture, shape, color, f"quadrant {quadrant}", f"{shape} {quadrant}"
    scene_light, patch = divmod(code - NUM_OBJECT_CODES, BACKGROUND_PATCHES)
    scene, light = divmod(scene_light, len(LIGHTS))
    return "background", list(SCENES)[scene], LIGHTS[light], f"patch {patch}"


# --- prompts ---------------------------------------------------------------------------------------------------


def make_prompt(task: str, include: Sequence[dict], scene: str) -> Prompt:
    """GenEval-style metadata with the sentence that the model reads."""

    def noun(entry: dict) -> str:
        return f"{entry['color']} {entry['class']}" if "color" in entry else entry["class"]

    first = include[0]
    if task == "counting":
        words = f"{NUMBER_WORDS[first['count']]} {noun(first)}s"
    elif task == "position":
        relation, other = include[1]["position"]
        words = f"a {noun(include[1])} {relation} a {noun(include[other])}"
    else:
        words = " and ".join(f"a {noun(entry)}" for entry in include)
    return {"tag": task, "include": list(include), "prompt": f"{words} {SCENES[scene]}", "scene": scene}


def all_prompts(task: str) -> list[Prompt]:
    """Every prompt of a task, in one fixed order.

    Single objects and counts are combined with every scene; the other tasks have combinations enough, and each
    gets one scene, drawn from a generator of its own.
    """
    scenes, scene_rng = list(SCENES), Random(f"scenes-{task}")
    pairs = [(a, b) for a in CLASSES for b in CLASSES if a != b]
    entries: list[list[dict]]
    if task == "single_object":
        entries = [[{"class": c, "count": 1}] for c in CLASSES]
    elif task == "counting":
        entries = [[{"class": c, "count": n}] for c in CLASSES for n in NUMBER_WORDS]
    elif task == "colors":
        entries = [[{"class": c, "count": 1, "color": color}] for c in CLASSES for color in COLORS]
    elif task == "two_object":
        entries = [[{"class": a, "count": 1}, {"class": b, "count": 1}] for a, b in pairs]
    elif task == "position":
        entries = [
            [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
            for a, b in pairs
            for relation in RELATIONS
        ]
    elif task == "color_attr":
        entries = [
            [{"class": a, "count": 1, "color": x}, {"class": b, "count": 1, "color": y}]
            for a, b in pairs
            for x in COLORS
            for y in COLORS
            if x != y
        ]
    else:
        raise ValueError(f"unknown task `{task}` (one of {', '.join(TASKS)})")
    if task in ("single_object", "counting"):
        return [make_prompt(task, include, scene) for include in entries for scene in scenes]
    return [make_prompt(task, include, scene_rng.choice(scenes)) for include in entries]


def split_prompts(held_out: int = 40, seed: int = 20260516) -> tuple[list[Prompt], list[Prompt]]:
    """RL prompts and evaluation prompts: `held_out` combinations per task are kept from RL.

    The colours task holds out pairs of class and colour, the others whole combinations. The split has its own seed,
    so that it does not change with the run's.
    """
    train, evaluation = [], []
    for task in TASKS:
        prompts = all_prompts(task)
        Random(f"{seed}-{task}").shuffle(prompts)
        evaluation += prompts[:held_out]
        train += prompts[held_out:]
    return train, evaluation


# --- scenes ----------------------------------------------------------------------------------------------------


def _other(options: Sequence[str], taken: str, rng: Random) -> str:
    return rng.choice([o for o in options if o != taken])


def _imperfect(prompt: Prompt, rng: Random) -> list[dict]:
    """The prompt's objects with one fault, of the kind that its task tests."""
    include = [dict(entry) for entry in prompt["include"]]
    spoiled = rng.choice(include)
    task = prompt["tag"]
    if task == "counting":
        spoiled["count"] += rng.choice((-1, 1))
    elif task == "position":
        relation, other = include[1]["position"]
        include[1]["position"] = [OPPOSITE[relation], other]
    elif task == "color_attr" and rng.random() < 0.5:
        include[0]["color"], include[1]["color"] = include[1]["color"], include[0]["color"]
    elif "color" in spoiled:
        spoiled["color"] = _other(COLORS, spoiled["color"], rng)
    elif task == "two_object" and rng.random() < 0.5:
        include.remove(spoiled)
    else:
        spoiled["class"] = _other(CLASSES, spoiled["class"], rng)
    return include


def _free_anchors(count: int, rng: Random) -> list[Anchor]:
    """`count` places anywhere on the grid, no two objects overlapping."""
    anchors: list[Anchor] = []
    while len(anchors) < count:
        new = rng.randrange(GRID - 1), rng.randrange(GRID - 1)
        if all(max(abs(new[0] - r), abs(new[1] - c)) >= OBJECT_SIDE for r, c in anchors):
            anchors.append(new)
    return anchors


def holds(relation: str, a: Anchor, b: Anchor) -> bool:
    """Whether an object at `a` is left of / right of / above / below one at `b`, by an object's width at least."""
    down, right = a[0] - b[0], a[1] - b[1]
    return {
        "left of": right <= -OBJECT_SIDE,
        "right of": right >= OBJECT_SIDE,
        "above": down <= -OBJECT_SIDE,
        "below": down >= OBJECT_SIDE,
    }[relation]


def _place(include: Sequence[dict], placement: str, rng: Random) -> list[Anchor]:
    """One anchor per object, in the order of `include`."""
    count = sum(entry["count"] for entry in include)
    relation = next((entry["position"][0] for entry in include if "position" in entry), None)
    if placement == "free":
        while True:
            anchors = _free_anchors(count, rng)
            if relation is None or holds(relation, anchors[1], anchors[0]):
                return anchors
    if relation is not None:
        this, compared_with = RELATION_ANCHORS[relation]
        return [compared_with, this]
    arrangements, shares = zip(*ARRANGEMENTS[count], strict=True)
    anchors = list(rng.choices(arrangements, shares)[0])
    if rng.random() >= READING_ORDER:
        rng.shuffle(anchors)
    return anchors


def _background(scene: str, rng: Random) -> list[int]:
    """Codes of an empty scene [64]: one light for all, clouds of two tokens, one kind of thing on the ground."""
    patches = [[SKY_HIGH] * GRID] * 2 + [[SKY_LOW] * GRID] * 2 + [[GROUND_FAR] * GRID] + [[GROUND_NEAR] * GRID] * 3
    patches = [list(row) for row in patches]
    for _ in range(rng.choice((0, 1, 2))):
        row, column = rng.randrange(HORIZON - 1), rng.randrange(GRID - 1)
        if patches[row][column] < CLOUD_LEFT and patches[row][column + 1] < CLOUD_LEFT:
            patches[row][column : column + 2] = [CLOUD_LEFT, CLOUD_RIGHT]
    detail = rng.choice((DETAIL_A, DETAIL_B))
    for row in patches[HORIZON + 1 :]:
        for column in range(GRID):
            if rng.random() < 0.15:
                row[column] = detail
    light = rng.choice(LIGHTS)
    return [background_code(scene, light, patch) for row in patches for patch in row]


def draw_scene(prompt: Prompt, rng: Random, noise: float | None = None, placement: str = "canonical") -> list[int]:
    """One training image for a prompt: codes [64], row-major.

    noise      chance that the image contradicts the prompt; None: CAPTION_NOISE of its task
    placement  "canonical": objects stand in one of a few arrangements; "free": anywhere
    A colour that the prompt does not name is drawn at random, one for all objects of an entry.
    """
    noise = CAPTION_NOISE[prompt["tag"]] if noise is None else noise
    include = _imperfect(prompt, rng) if rng.random() < noise else prompt["include"]
    codes = _background(prompt["scene"], rng)
    anchors = iter(_place(include, placement, rng))
    for entry in include:
        color = entry.get("color") or rng.choice(COLORS)
        for _ in range(entry["count"]):
            row, column = next(anchors)
            for quadrant in range(QUADRANTS):
                place = (row + quadrant // OBJECT_SIDE) * GRID + column + quadrant % OBJECT_SIDE
                codes[place] = object_code(entry["class"], color, quadrant)
    return codes
