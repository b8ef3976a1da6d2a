"""The paper's scores (arXiv 2605.16842, tables 1 to 3), as printed there, to set beside our own."""

from typing import NamedTuple


class Published(NamedTuple):
    """A table: by model and method, a number for each column."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, tuple[float, ...]]]


MODELS = {"mmada": "MMaDA", "lumina": "Lumina-DiMOO"}
METHODS = {"unigrpo": "UniGRPO", "maskgrpo": "MaskGRPO", "tracegrpo": "TraceGRPO", "htgrpo": "HT-GRPO"}

GENEVAL = Published(
    "the paper's GenEval",
    "The tasks of the row MMaDA average 0.535, not 0.56.",
    ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall"),
    {
        "mmada": {
            "base": (0.96, 0.60, 0.45, 0.81, 0.14, 0.25, 0.56),
            "unigrpo": (0.99, 0.76, 0.61, 0.84, 0.20, 0.37, 0.63),
            "maskgrpo": (0.99, 0.85, 0.66, 0.89, 0.73, 0.69, 0.80),
            "tracegrpo": (1.00, 0.87, 0.72, 0.92, 0.64, 0.62, 0.79),
            "htgrpo": (1.00, 0.92, 0.77, 0.90, 0.73, 0.66, 0.83),
        },
        "lumina": {
            "base": (0.99, 0.94, 0.70, 0.85, 0.81, 0.71, 0.83),
            "maskgrpo": (1.00, 0.90, 0.88, 0.89, 0.85, 0.77, 0.88),
            "tracegrpo": (1.00, 0.90, 0.85, 0.90, 0.88, 0.73, 0.87),
            "htgrpo": (1.00, 0.95, 0.94, 0.93, 0.93, 0.75, 0.92),
        },
    },
)

DPG = Published(
    "the paper's DPG-Bench",
    "The paper does not say whether the script's lost prompt was repaired.",
    ("global", "entity", "attribute", "relation", "other", "overall"),
    {
        "mmada": {
            "base": (77.52, 77.52, 77.67, 81.56, 63.13, 70.51),
            "maskgrpo": (80.92, 79.52, 85.41, 83.05, 69.12, 75.81),
            "tracegrpo": (82.34, 78.92, 81.29, 82.08, 70.21, 74.37),
            "htgrpo": (89.76, 87.62, 86.58, 88.86, 81.83, 81.09),
        },
        "lumina": {
            "base": (81.17, 89.96, 88.10, 89.64, 79.95, 81.86),
            "maskgrpo": (82.65, 89.50, 88.33, 88.60, 88.24, 82.24),
            "tracegrpo": (84.89, 89.65, 88.23, 90.24, 84.28, 82.62),
            "htgrpo": (88.04, 91.22, 88.98, 92.56, 83.05, 84.47),
        },
    },
)

PREFERENCE = Published(
    "the paper's preference and quality metrics",
    "The paper does not say on which prompts it measured them.",
    ("deqa", "imagereward", "hpsv3", "iaa", "iqa", "ista"),
    {
        "mmada": {
            "base": (3.91, 0.64, 8.81, 58.83, 65.29, 47.46),
            "maskgrpo": (4.05, 0.83, 9.40, 59.02, 67.07, 48.15),
            "tracegrpo": (4.08, 0.84, 9.56, 58.78, 66.87, 49.04),
            "htgrpo": (4.07, 0.86, 10.46, 59.29, 67.91, 49.45),
        },
        "lumina": {
            "base": (4.03, 0.84, 11.60, 56.66, 66.27, 43.12),
            "maskgrpo": (4.08, 0.90, 12.00, 56.77, 66.13, 43.55),
            "tracegrpo": (4.10, 0.88, 11.28, 57.68, 67.21, 43.89),
            "htgrpo": (4.12, 0.97, 12.46, 58.39, 67.97, 44.97),
        },
    },
)


def row_name(model: str, method: str, alone: bool) -> str:
    """A row's name as the paper prints it, `+ HT-GRPO`; with its model unless it stands alone, `MMaDA + HT-GRPO`."""
    if method == "base":
        return MODELS[model]
    return f"+ {METHODS[method]}" if alone else f"{MODELS[model]} + {METHODS[method]}"
