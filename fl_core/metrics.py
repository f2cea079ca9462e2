"""Metrics of scored examples, over clients, and over kinds of classes and domains.

What is a sum or a count adds up over clients, blocks and rounds: ``Tally`` and ``confusion``. What
is not (calibration) is formed from the arrays of all examples. Per example the scorer delivers
labels [n], predicted [n], nll [n] (-log p of the true class, nats), confidence [n] (largest p) and
brier [n] (sum over classes of (p_c - y_c)^2). Each result is None where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = Sequence[float | None]
"""One value per client, None where a client has none."""


@dataclass(frozen=True)
class Tally:
    """How many examples were scored, how many rightly, and the sums of their -log p and Brier.

    ``brier_sum`` is None where a part of the examples came without Brier scores.
    """

    num_examples: int = 0
    num_correct: int = 0
    nll_sum: float = 0.0
    brier_sum: float | None = 0.0

    @classmethod
    def of(
        cls,
        labels: npt.NDArray[np.integer],
        predicted: npt.NDArray[np.integer],
        nll: npt.NDArray[np.floating],
        brier: npt.NDArray[np.floating] | None = None,
    ) -> Tally:
        """The tally of n scored examples; every array is [n]."""
        right = int((labels == predicted).sum())
        squares = None if brier is None else float(brier.sum(dtype=np.float64))
        return cls(len(labels), right, float(nll.sum(dtype=np.float64)), squares)

    def __add__(self, other: Tally) -> Tally:
        briers = self.brier_sum, other.brier_sum
        return Tally(
            self.num_examples + other.num_examples,
            self.num_correct + other.num_correct,
            self.nll_sum + other.nll_sum,
            None if briers[0] is None or briers[1] is None else briers[0] + briers[1],
        )

    @property
    def means(self) -> dict[str, float | None]:
        """By name: accuracy, nll and brier."""
        return {"accuracy": self.accuracy, "nll": self.nll, "brier": self.brier}

    @property
    def accuracy(self) -> float | None:
        """Share of examples whose predicted class is the true one."""
        return self.num_correct / self.num_examples if self.num_examples else None

    @property
    def nll(self) -> float | None:
        """Mean -log p of the true class (nats)."""
        return self.nll_sum / self.num_examples if self.num_examples else None

    @property
    def brier(self) -> float | None:
        """Mean squared distance of the probabilities from the one-hot label, from 0 to 2."""
        if not self.num_examples or self.brier_sum is None:
            return None
        return self.brier_sum / self.num_examples


def confusion(
    labels: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Counts [C, C], true class by row and predicted class by column; they add up with +."""
    for name, classes in (("labels", labels), ("predicted", predicted)):
        if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
            raise ValueError(
                f"{name} range from {classes.min()} to {classes.max()}: "
                f"with num_classes = {num_classes} they must be from 0 to {num_classes - 1}."
            )
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def macro_f1(counts: npt.NDArray[np.integer], classes: Sequence[int] | None = None) -> float | None:
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN), from ``confusion`` [C, C].

    As scikit-learn's ``f1_score(average="macro", zero_division=0)``. Without ``classes`` the mean
    runs over the classes that occur among labels or predictions, so that a prediction of a class
    that no example has costs a zero. With ``classes`` (scikit-learn's ``labels``), such as those
    present in the whole test set, it runs over exactly these, and one that never occurs counts 0.
    """
    right = np.diagonal(counts).astype(np.float64)  # [C]
    either = (counts.sum(axis=0) + counts.sum(axis=1)).astype(np.float64)  # [C], 2 TP + FP + FN
    chosen = np.flatnonzero(either) if classes is None else np.asarray(classes, dtype=np.int64)
    if not len(chosen) or not either.any():
        return None
    return float((2 * right[chosen] / np.maximum(either[chosen], 1)).mean())


def ece(
    right: npt.NDArray[np.bool_], confidence: npt.NDArray[np.floating], num_bins: int = 15
) -> float | None:
    """Expected calibration error with equal-mass bins (Nguyen & O'Connor 2015); arrays are [n].

    The sum over bins of (share of examples) x |accuracy - mean confidence|. Examples are sorted by
    confidence and cut into ``num_bins`` runs of n // num_bins examples, the n % num_bins lowest
    runs holding one more; with fewer examples than bins each is its own bin. Where examples of
    equal confidence straddle a cut, each side gets its share of their right answers, so that the
    order of the examples never matters.
    """
    n = len(confidence)
    if not n:
        return None
    levels, at, sizes = np.unique(
        confidence.astype(np.float64), return_inverse=True, return_counts=True
    )
    accuracy = np.bincount(at, weights=right) / sizes  # [levels]
    excess = np.repeat(accuracy - levels, sizes)  # [n], by rising confidence
    runs = np.array_split(excess, min(num_bins, n))
    return math.fsum(abs(math.fsum(run)) for run in runs) / n


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None]


def mean(values: Values, num_examples: Sequence[int] | None = None) -> float | None:
    """Mean over the clients that have a value: uniform, or weighted by ``num_examples``."""
    weights = [1] * len(values) if num_examples is None else num_examples
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
    total = sum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None


def worst_share(
    values: Values, share: float = 0.1, *, higher_is_better: bool = True
) -> float | None:
    """Mean of the worst ``share`` of the clients with a value: ceil(share * n), so at least one."""
    ordered = sorted(_known(values), reverse=not higher_is_better)
    # The rounding keeps 0.07 * 100 (7.000000000000001 in floating point) at seven clients.
    return mean(ordered[: max(1, math.ceil(round(share * len(ordered), 9)))])


def jain_index(values: Values) -> float | None:
    """Jain, Chiu & Hawe (1984): (sum x)^2 / (n sum x^2), 1 where all are equal, 1/n at worst.

    All-zero values are equal, hence 1. Defined for values >= 0 only.
    """
    known = _known(values)
    if any(value < 0 for value in known):
        raise ValueError(f"Jain's index takes values >= 0, not {min(known)}.")
    squares = math.fsum(value**2 for value in known)
    if not squares:
        return 1.0 if known else None
    return math.fsum(known) ** 2 / (len(known) * squares)


def over_clients(values: Values) -> dict[str, float]:
    """Mean, worst and population standard deviation over the clients that have a value."""
    known = _known(values)
    middle = mean(known)
    if middle is None:
        return {}
    variance = math.fsum((value - middle) ** 2 for value in known) / len(known)
    return {"mean": middle, "worst": min(known), "std": math.sqrt(variance)}


def client_summary(
    values: Values, num_examples: Sequence[int], *, higher_is_better: bool = True
) -> dict[str, float]:
    """Everything that is told of a metric over clients; a key is absent where it has no value.

    mean (uniform), weighted_mean (by ``num_examples``), worst (one client), worst_tenth (mean of
    the worst 10 %), std (population), jain (absent where a value is below zero).
    """
    known = _known(values)
    if not known:
        return {}
    summary: dict[str, float | None] = {
        **over_clients(known),
        "worst": min(known) if higher_is_better else max(known),
        "weighted_mean": mean(values, num_examples),
        "worst_tenth": worst_share(known, higher_is_better=higher_is_better),
        "jain": jain_index(known) if min(known) >= 0 else None,
    }
    return {name: value for name, value in summary.items() if value is not None}


def share_worse_off(
    values: Values, reference: Values, *, higher_is_better: bool = True
) -> float | None:
    """Share of clients strictly worse than their own ``reference``; clients lacking one are out."""
    pairs = [
        (value, other)
        for value, other in zip(values, reference, strict=True)
        if value is not None and other is not None
    ]
    worse = sum(value < other if higher_is_better else value > other for value, other in pairs)
    return worse / len(pairs) if pairs else None


def participation_gap(seen: Values, unseen: Values) -> float | None:
    """Mean of clients that trained minus mean of clients that never did (Yuan et al. 2022).

    arXiv 2110.14216; uniform means of each client's held-out examples.
    """
    ours, theirs = mean(seen), mean(unseen)
    return None if ours is None or theirs is None else ours - theirs


def harmonic_mean(*values: float | None) -> float | None:
    """n / (sum 1/x): 0 where one value is 0, None where one is missing.

    HM2 = harmonic_mean(base, novel) is the H of CoCoOp (Zhou et al. 2022, arXiv 2203.05557), and
    HM3 = harmonic_mean(local, base, novel) the HM of FedTPG's table (Qiu et al. 2024, arXiv
    2310.06123; its text was not at hand to check the formula against).
    """
    known = _known(values)
    if not known or len(known) < len(values):
        return None
    if min(known) < 0:
        raise ValueError(f"A harmonic mean takes values >= 0, not {min(known)}.")
    return len(known) / math.fsum(1 / value for value in known) if min(known) else 0.0


def combined_metric(local: float | None, base: float | None, novel: float | None) -> float | None:
    """CM = (local + HM(base, novel)) / 2, section 4.2 of FedMGP (Bo et al. 2025, 2511.00480)."""
    harmonic = harmonic_mean(base, novel)
    return None if local is None or harmonic is None else (local + harmonic) / 2


def ood_gap(in_distribution: float | None, out_of_distribution: float | None) -> float | None:
    """Accuracy inside the training distribution minus accuracy outside; smaller is sturdier."""
    if in_distribution is None or out_of_distribution is None:
        return None
    return in_distribution - out_of_distribution


def retention(out_of_distribution: float | None, zero_shot: float | None) -> float | None:
    """Accuracy outside the training distribution minus the zero-shot model's on the same examples.

    Below zero: training cost ability that the pretrained model had.
    """
    return ood_gap(out_of_distribution, zero_shot)
