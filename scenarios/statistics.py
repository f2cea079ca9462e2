"""Comparing methods: the spread over seeds, and a paired bootstrap over clients.

Two sources of chance are kept apart. ``over_seeds`` says how a number moves when a run is repeated
with another seed. ``compare`` says how a difference moves when other clients are drawn from where
these came from: clients are resampled, each with all its seeds, as values of one client are not
independent. ``holm`` corrects a family of such comparisons, ``verdict`` words the outcome, and
``judge`` does all of it for the methods of one table. Higher values are better throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.seeds import derive

BySeed = Mapping[int, Sequence[float | None]]
"""By seed: one value per client, None where a client has none."""

Floats = npt.NDArray[np.float64]

NUM_REPLICATES = 10_000
_BLOCK = 500  # replicates drawn at once: with 1,000 clients 4 MB of indices


@dataclass(frozen=True)
class Spread:
    """A number over seeds. std is the sample's (n - 1); low and high bound the mean.

    With one seed there is neither: std, low and high are None.
    """

    num_seeds: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Method A minus method B: mean difference, its interval, and the two-sided p-value.

    ``num_clusters`` counts what was resampled. low and high are None where that is too little for
    an interval, p_value is None with a single cluster.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    num_seeds: int
    num_clusters: int


@dataclass(frozen=True)
class Judgement:
    """The method with the highest mean, what it gains over each other one, and the wording."""

    leader: str
    means: Mapping[str, float]
    rivals: Mapping[str, Comparison | None]
    adjusted: Mapping[str, float | None]
    verdict: str


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Mean over seeds, sample standard deviation, and Student's t interval of the mean."""
    from scipy.stats import t

    if not values:
        raise ValueError("values is empty: a spread needs at least one seed.")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(1, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Spread(n, mean, std, mean - half, mean + half)


def compare(
    a: BySeed,
    b: BySeed,
    num_examples: Mapping[int, Sequence[int]] | None = None,
    *,
    seed: int,
    same_clients: bool = True,
    confidence: float = 0.95,
    num_replicates: int = NUM_REPLICATES,
) -> Comparison | None:
    """A minus B over the seeds that both have; None where no client has both values.

    The statistic is the mean of the paired differences over all (seed, client), each weighted by
    its ``num_examples`` or, without them, by one. A client's values of all seeds are resampled
    together. ``same_clients`` False says that client 3 of one seed is not client 3 of another, as
    when the seed also drew the partition: then each (seed, client) is resampled by itself. Either
    way the seeds at hand are taken as given.

    The interval is the percentile one, its tails widened for few clients as by Hesterberg (2015,
    arXiv 1411.5279): plain percentiles reject a true null of 10 clients 10 to 14 times in 100. The
    p-value is the level at which that interval touches zero.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not allowed: it must be between 0 and 1.")
    seeds = sorted(set(a) & set(b))
    gains = _paired(seeds, a, b, num_examples, same_clients)
    if not len(gains):
        return None
    total, weight = gains.sum(axis=0)
    drawn = _replicates(gains, num_replicates, derive(seed, "bootstrap"))
    # Differences that cancel leave rounding behind, which stands on neither side of zero.
    drawn[np.abs(drawn) <= 1e-12 * np.abs(gains[:, 0] / gains[:, 1]).max()] = 0.0
    size = float(weight**2 / (gains[:, 1] ** 2).sum())
    low, high = _interval(drawn, size, confidence)
    return Comparison(
        float(total / weight), low, high, _p_value(drawn, size), len(seeds), len(gains)
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down adjustment, in the order given.

    The i-th smallest of m is multiplied by m - i + 1 (i from 1), never falls below the one before,
    and is at most 1. None and NaN stay None and are no member of the family: no test was made.
    """
    made = [(p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, i) in enumerate(sorted(made)):
        floor = max(floor, min(1.0, p * (len(made) - rank)))
        adjusted[i] = floor
    return adjusted


def verdict(num_seeds: int, rivals: Mapping[str, Comparison | None], level: float = 0.05) -> str:
    """How a leading method may be spoken of, from what it gains over each rival.

    Fewer than 3 seeds: "single run" or "single runs". 3 or 4: "indicative". From 5 on "best", but
    only where it is above each rival with a Holm-adjusted p-value below ``level``; else, and with
    3 or 4 seeds as an addition, "not separated from" those rivals.
    """
    if num_seeds < 3:
        return "single run" if num_seeds == 1 else "single runs"
    adjusted = _adjust(rivals)
    close = [name for name, gain in rivals.items() if not _above(gain, adjusted[name], level)]
    words = [] if num_seeds >= 5 else ["indicative"]
    if close:
        words.append(f"not separated from {', '.join(close)}")
    elif num_seeds >= 5:
        words.append("best" if rivals else "nothing to compare with")
    return ", ".join(words)


def judge(
    methods: Mapping[str, BySeed],
    num_examples: Mapping[int, Sequence[int]] | None = None,
    *,
    seed: int,
    same_clients: bool = True,
    level: float = 0.05,
) -> Judgement:
    """The leader of ``methods`` over the seeds that all have, against each other method.

    Means are over all (seed, client), weighted as in ``compare``; methods without any are left out.
    """
    shared = set.intersection(*(set(values) for values in methods.values())) if methods else set()
    means = {}
    for name, values in methods.items():
        zero = {s: [0.0] * len(values[s]) for s in shared}
        gains = _paired(sorted(shared), values, zero, num_examples, same_clients=False)
        if len(gains):
            means[name] = float(gains[:, 0].sum() / gains[:, 1].sum())
    if not means:
        raise ValueError("No method has a value at a seed that all methods share.")
    leader = max(means, key=lambda name: means[name])
    best = {s: methods[leader][s] for s in shared}
    rivals = {
        name: compare(best, methods[name], num_examples, seed=seed, same_clients=same_clients)
        for name in means
        if name != leader
    }
    words = verdict(len(shared), rivals, level)
    return Judgement(leader, means, rivals, _adjust(rivals), words)


def _adjust(rivals: Mapping[str, Comparison | None]) -> dict[str, float | None]:
    p_values = [None if gain is None else gain.p_value for gain in rivals.values()]
    return dict(zip(rivals, holm(p_values), strict=True))


def _above(gain: Comparison | None, adjusted: float | None, level: float) -> bool:
    return gain is not None and gain.difference > 0 and adjusted is not None and adjusted < level


def _paired(
    seeds: Sequence[int],
    a: BySeed,
    b: BySeed,
    num_examples: Mapping[int, Sequence[int]] | None,
    same_clients: bool,
) -> Floats:
    """Of each cluster the weighted sum of its differences and its weight, [clusters, 2]."""
    rows = []
    for s in seeds:
        ours, theirs = np.array(a[s], dtype=np.float64), np.array(b[s], dtype=np.float64)
        weights = np.ones(len(ours)) if num_examples is None else np.array(num_examples[s], float)
        if not len(ours) == len(theirs) == len(weights):
            lengths = f"{len(ours)}, {len(theirs)} and {len(weights)}"
            raise ValueError(
                f"seed {s}: {lengths} values and weights, where one per client is due."
            )
        gain = ours - theirs
        weights = np.where(np.isnan(gain), 0.0, weights)
        gain = np.where(np.isnan(gain), 0.0, gain)
        rows.append(np.stack([weights * gain, weights], axis=1))  # [clients, 2]
    if not rows:
        return np.empty((0, 2))
    if same_clients and len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"The seeds have {', '.join(str(len(row)) for row in rows)} clients: with same_clients "
            "there must be equally many. Pass same_clients=False if each seed drew its own."
        )
    gains = np.sum(rows, axis=0) if same_clients else np.concatenate(rows)
    return gains[gains[:, 1] > 0]


def _replicates(gains: Floats, num_replicates: int, seed: int) -> Floats:
    """The statistic [replicates] on as many clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    n = len(gains)
    blocks = []
    for start in range(0, num_replicates, _BLOCK):
        drawn = rng.integers(n, size=(min(_BLOCK, num_replicates - start), n))
        blocks.append(gains[:, 0][drawn].sum(axis=1) / gains[:, 1][drawn].sum(axis=1))
    return np.concatenate(blocks)


def _interval(
    drawn: Floats, size: float, confidence: float
) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval whose tails are those of Student's t for ``size`` clusters.

    ``size`` is Kish's effective number (sum w)^2 / sum w^2: of unequal weights few count.
    """
    from scipy.stats import norm, t

    if size <= 1:
        return None, None
    quantile = t.ppf((1 - confidence) / 2, size - 1) * math.sqrt(size / (size - 1))
    rank = math.floor((len(drawn) + 1) * norm.cdf(quantile))
    if rank < 1:  # the tail lies beyond what the replicates resolve
        return None, None
    ordered = np.sort(drawn)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _p_value(drawn: Floats, size: float) -> float | None:
    """Two-sided: the smallest 1 - confidence whose ``_interval`` leaves zero out."""
    from scipy.stats import norm, t

    if size <= 1:
        return None
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    quantile = norm.ppf((beyond + 1) / (len(drawn) + 1)) / math.sqrt(size / (size - 1))
    return min(1.0, 2 * float(t.cdf(quantile, size - 1)))
