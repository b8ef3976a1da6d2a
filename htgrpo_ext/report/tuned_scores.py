"""The numbers of a comparison of tuned methods, from its data alone: scores, gains and paired differences.

S seeds, Q prompts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from htgrpo_ext.benchmarks import benchmark_of
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.tuned_data import base_of, median_seconds


class Scores:
    """Scores of the runs in the data, with intervals over prompts and seeds: see `htgrpo_ext.statistics`."""

    def __init__(self, data: dict):
        self.data = data
        self._parts: dict[str, dict[str, dict]] = {}
        benchmark = benchmark_of({"eval": data["eval"]})
        if benchmark is None:
            raise UserError("the data name no benchmark (eval)")
        # As `htgrpo compare` draws: the first training seed is that of the resampling.
        self.benchmark = benchmark.model_copy(update={"seed": data["plan"]["seeds"][0]})

    def shares(self, names: Sequence[str]) -> NDArray:
        """The share of correct images of each prompt. float64 [S, Q, 1]"""
        counts_SQ = np.array([self.data["counts"][name] for name in names], dtype=np.float64)
        return counts_SQ[:, :, None] / self.benchmark.images_per_prompt

    def base(self, names: Sequence[str]) -> NDArray:
        """The same of the base model, under the noise of each of these runs. float64 [S, Q, 1]"""
        return self.shares([base_of(self.data["runs"][name]["eval_seed"]) for name in names])

    def base_row(self) -> dict:
        """The base model's overall score under the comparison's noise."""
        names = next(iter(self.data["parts"]["equal_rollouts"].values()))
        return self.summarise(self.base(names[:1]))["overall"]

    def summarise(self, values_SQ1: NDArray) -> dict:
        return self.benchmark.summarise(self.data["prompts"], values_SQ1)

    def overall(self, name: str) -> float:
        """The score of one run, or of a base model."""
        return self.summarise(self.shares([name]))["overall"]["score"]

    def row(self, names: Sequence[str], reference: Sequence[str] | None = None) -> dict:
        """A row of a table.

        names      the runs of a method, one per seed
        reference  those that the difference is to, of the same seeds; None: no difference
        """
        shares_SQ1 = self.shares(names)
        found = {
            **self.summarise(shares_SQ1),
            "of_seeds": [self.overall(name) for name in names],
            "gain": self.summarise(shares_SQ1 - self.base(names))["overall"],
            "cycles": self.data["runs"][names[0]]["cycles"],
            "rollouts": self.data["runs"][names[0]]["rollouts"],
        }
        if reference is not None:
            found["difference"] = self.summarise(shares_SQ1 - self.shares(reference))["overall"]
        return found

    def part(self, part: str) -> dict[str, dict]:
        """The rows of `equal_rollouts` or `equal_seconds`, with differences to the reference method."""
        if part not in self._parts:
            rows, reference = self.data["parts"][part], self.data["plan"]["reference"]
            to = rows.get(reference)
            self._parts[part] = {
                method: self.row(names, None if method == reference else to) | {"seconds": self.seconds(method, names)}
                for method, names in rows.items()
            }
        return self._parts[part]

    def beside(self, part: str) -> list[tuple[str, dict]]:
        """The rows of `variants` or `published`, each after the tuned runs of its method, with differences to them."""
        found = []
        for row, names in self.data["parts"][part].items():
            method = row.partition(", ")[0]
            tuned = self.data["parts"]["equal_rollouts"].get(method)
            if tuned:
                if method not in dict(found):
                    found.append((method, self.row(tuned)))
                found.append((row if row != method else f"{method}, published", self.row(names, tuned)))
        return found

    def seconds(self, method: str, names: Sequence[str]) -> float | None:
        """Seconds of scoring and updates of one of these runs: the measured median of a cycle, times its cycles."""
        if method not in self.data["seconds"]:
            return None
        return self.cycle_seconds(method) * self.data["runs"][names[0]]["cycles"]

    def cycle_seconds(self, method: str) -> float:
        return median_seconds(self.data["seconds"][method])
