"""What a run is evaluated by: benchmarks before and after training, and held-out prompts while it trains.

A new benchmark is a file in this folder and a line in `BENCHMARKS`.
"""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from htgrpo_ext.benchmarks.base import Benchmark, Evaluation
from htgrpo_ext.benchmarks.held_out import HeldOut, HeldOutTexts
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.benchmarks.words import WordsEval
from htgrpo_ext.errors import UserError
from htgrpo_ext.section import one_of

BENCHMARKS: tuple[type[Benchmark], ...] = (MicroEval, WordsEval)
EVALUATIONS: tuple[type[Evaluation], ...] = (*BENCHMARKS, HeldOut, HeldOutTexts)

if TYPE_CHECKING:
    AnyEvaluation = Evaluation
else:
    AnyEvaluation = one_of(EVALUATIONS)


def benchmark_of(config: dict) -> Benchmark | None:
    """The benchmark of a run, from the `eval` section of its saved configuration; None if no benchmark judges it.

    Raises UserError for a section that is none of `EVALUATIONS`.
    """
    try:
        found = TypeAdapter(AnyEvaluation | None).validate_python(config.get("eval"))
    except ValidationError as error:
        raise UserError(f"the run's `eval` section is not a known benchmark's ({error.errors()[0]['msg']})") from None
    return found if isinstance(found, Benchmark) else None
