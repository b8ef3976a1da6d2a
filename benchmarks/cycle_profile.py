"""Where the time of a cycle goes: FLOPs that were computed, and shares of the time by kind of work.

FLOPs are those of matrix products and of attention's two products, forward and backward, as they are called; what is
computed again counts again. Shares are of the whole time of a part, so that `outside` is Python and what else no
operator takes; the profiler makes it larger than it is.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

KINDS = ("matrix products", "attention", "probabilities", "other operators", "outside")
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
PROBABILITIES = {
    "_log_softmax",
    "_softmax",
    "_log_softmax_backward_data",
    "_softmax_backward_data",
    "logsumexp",
    "exp",
    "exp_",
    "log",
    "special_entr",
    "cumsum",
    "searchsorted",
    "gather",
}


def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter of torch knows the kernels of GPUs only.
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)


def counted(meter, one_cycle: Callable[[], dict]) -> dict[str, float]:
    """FLOPs of a cycle by part.

    meter  what `one_cycle` measures its parts with
    """
    seconds, counter = meter.amount, flop_counter()
    meter.amount = counter.get_total_flops
    try:
        with counter:
            flops = one_cycle()["seconds"]
    finally:
        meter.amount = seconds
    return flops


def kind_of(operator: str) -> str:
    """The kind of work of an operator by its name in the profiler, such as aten::mm."""
    name = operator.removeprefix("aten::")
    if "scaled_dot_product" in name:
        return "attention"
    if name in PRODUCTS:
        return "matrix products"
    return "probabilities" if name in PROBABILITIES or "ChosenLogProbs" in name else "other operators"


def profiled(one_cycle: Callable[[], dict]) -> dict[str, dict[str, float]]:
    """Shares of the time of `rollout`, `score` and `update` by kind of work; each part's add up to 1.

    On a CPU operators run one after another; on a GPU what they take is their kernels' time. `one_cycle` marks its
    parts by `record_function`.
    """
    time_of = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as measured:
        seconds = one_cycle()["seconds"]
    marks, taken = [], {part: Counter() for part in ("rollout", "score", "reward", "update")}
    events = sorted(measured.events() or [], key=lambda event: event.time_range.start)
    for event in events:
        if event.name.startswith("part "):
            marks.append((event.time_range.end, event.name.removeprefix("part ")))
            continue
        part = marks[-1][1] if marks and event.time_range.start < marks[-1][0] else "update"
        taken[part][kind_of(event.name)] += getattr(event, time_of) * 1e-6
    return {part: shares(taken[part], seconds[part]) for part in ("rollout", "score", "update")}


def shares(taken: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Shares of a part's time; what no operator took is `outside`."""
    whole = max(seconds, sum(taken.values()))
    found = {kind: taken.get(kind, 0.0) / whole for kind in KINDS[:-1]}
    return found | {"outside": 1 - sum(found.values())}


def shapes_of(backbone) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of the matrix products of one row's forward: blocks, and the head's codebook columns."""
    positions, width = backbone.num_image_tokens + backbone.unconditional().ids_BL.shape[1], 0
    shapes = []
    for name, module in backbone.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "blocks." in name and "lora" not in name:
            shapes.append((positions, module.in_features, module.out_features))
            width = width or module.in_features
    return [*shapes, (backbone.num_image_tokens, width, backbone.codebook_size)]
