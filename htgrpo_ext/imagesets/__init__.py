"""Sets of images in the layouts of benchmarks, and their scores.

A new benchmark is a file in this folder and a line in `SUITES`.
"""

from htgrpo_ext.imagesets.base import Suite

SUITES: tuple[type[Suite], ...] = ()
