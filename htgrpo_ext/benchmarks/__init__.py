"""Benchmarks, by which a model is evaluated before and after training.

A new one is a file in this folder and a line in `BENCHMARKS`.
"""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from htgrpo_ext.benchmarks.base import Benchmark
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.errors import UserError
from htgrpo_ext.section import one_of

BENCHMARKS: tuple[type[Benchmark], ...] = (MicroEval,)

if TYPE_CHECKING:
    AnyBenchmark = Benchmark
else:
    AnyBenchmark = one_of(BENCHMARKS)


def benchmark_of(config: dict) -> Benchmark | None:
    """The benchmark of a run, from the `eval` section of its saved configuration; None if the run has no evaluation.

    Raises UserError for a section that is none of `BENCHMARKS`.
    """
    try:
        return TypeAdapter(AnyBenchmark | None).validate_python(config.get("eval"))
    except ValidationError as error:
        raise UserError(f"the run's `eval` section is not a known benchmark's ({error.errors()[0]['msg']})") from None
