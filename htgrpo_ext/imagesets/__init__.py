"""Sets of images in the layouts of benchmarks, and their scores.

A new benchmark is a file in this folder and a line in `SUITES`.
"""

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import Suite
from htgrpo_ext.imagesets.dpg import DpgBench
from htgrpo_ext.imagesets.geneval import GenEval
from htgrpo_ext.imagesets.microeval import MicroEval
from htgrpo_ext.imagesets.texts import PromptFile

SUITES: tuple[type[Suite], ...] = (GenEval, DpgBench, MicroEval, PromptFile)


def suite_named(name: str) -> Suite:
    """The suite of that name. Raises UserError that lists the names there are."""
    for suite in SUITES:
        if suite.name == name:
            return suite()
    names = ", ".join(suite.name for suite in SUITES)
    raise UserError(f"unknown benchmark `{one_line(name)}` (one of {names}; or a file of prompts)")
