"""Metrics as sums and counts, so that they add up over clients, blocks and rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tally:
    """How many examples were scored, how many rightly, and the sum of their -log p."""

    num_examples: int = 0
    num_correct: int = 0
    nll_sum: float = 0.0

    @classmethod
    def of(
        cls,
        labels: npt.NDArray[np.integer],
        predicted: npt.NDArray[np.integer],
        nll: npt.NDArray[np.floating],
    ) -> Tally:
        """The tally of n scored examples; every array is [n]."""
        right = int((labels == predicted).sum())
        return cls(len(labels), right, float(nll.sum(dtype=np.float64)))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.num_examples + other.num_examples,
            self.num_correct + other.num_correct,
            self.nll_sum + other.nll_sum,
        )

    @property
    def accuracy(self) -> float | None:
        """Share of examples whose predicted class is the true one; None without examples."""
        return self.num_correct / self.num_examples if self.num_examples else None

    @property
    def nll(self) -> float | None:
        """Mean -log p of the true class (nats); None without examples."""
        return self.nll_sum / self.num_examples if self.num_examples else None


def over_clients(values: Sequence[float | None]) -> dict[str, float]:
    """Mean, worst and population standard deviation over the clients that have a value."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    mean = math.fsum(known) / len(known)
    variance = math.fsum((value - mean) ** 2 for value in known) / len(known)
    return {"mean": mean, "worst": min(known), "std": math.sqrt(variance)}
