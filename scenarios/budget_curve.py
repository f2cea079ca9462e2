"""A run's value over the bytes that it had sent: the curve, read at budgets and at targets.

``cumulative_bytes`` [R] are the bytes up to and including each committed round, and ``values`` [R]
the metric after it (higher is better), None for rounds that were not evaluated: those are skipped.
The curve is a right-continuous step function: at b bytes it has the value of the last evaluated
round whose cumulative bytes are <= b, and none before the first. After the last round it stays,
for a finished run keeps its model. A megabyte is 10^6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

BYTES_PER_MEGABYTE = 1_000_000


def fits(num_bytes: int, megabytes: float) -> bool:
    """Whether bytes fit into a budget, which is rounded to whole bytes as a run's own is.

    Unrounded, the product of 1.001 and 10^6 lies below 1,001,000.
    """
    return num_bytes < megabytes * BYTES_PER_MEGABYTE + 0.5


def value_at(
    cumulative_bytes: Sequence[int], values: Sequence[float | None], megabytes: float
) -> float | None:
    """The value that ``megabytes`` buy; None where they do not reach the first evaluated round."""
    found = None
    for spent, value in _steps(cumulative_bytes, values):
        if fits(spent, megabytes):
            found = value
    return found


def megabytes_to(
    cumulative_bytes: Sequence[int], values: Sequence[float | None], target: float
) -> float | None:
    """Megabytes up to the first evaluated round with at least ``target``; None if there is none."""
    for spent, value in _steps(cumulative_bytes, values):
        if value >= target:
            return spent / BYTES_PER_MEGABYTE
    return None


def area(
    cumulative_bytes: Sequence[int],
    values: Sequence[float | None],
    horizon: float,
    *,
    before: float = 0.0,
) -> float:
    """Area under the curve from 0 to ``horizon`` megabytes, divided by ``horizon``.

    It is the mean value over budgets drawn uniformly. ``before`` is the value ahead of the first
    evaluated round, such as the zero-shot accuracy.
    """
    if not 0 < horizon < math.inf:
        raise ValueError(f"horizon = {horizon} is not allowed: it must be > 0 megabytes.")
    steps = _steps(cumulative_bytes, values)
    return _mean_between(steps, 0.0, horizon, before, lambda megabytes: megabytes)


def log_area(
    cumulative_bytes: Sequence[int],
    values: Sequence[float | None],
    span: tuple[float, float],
    *,
    before: float = 0.0,
) -> float:
    """As ``area`` over log bytes: each tenfold of budget weighs the same.

    ``span`` is the lowest and the highest budget in megabytes, both above 0: a logarithm has no
    area from zero on.
    """
    low, high = span
    if not 0 < low < high < math.inf:
        raise ValueError(f"span = {span} is not allowed: it must be 0 < low < high megabytes.")
    return _mean_between(_steps(cumulative_bytes, values), low, high, before, math.log)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (bytes, value) points that no other point dominates, by rising bytes.

    One point dominates another if it costs no more and is worth no less, and is better in one of
    the two. Equal points stand together; a point with a NaN is on no front.
    """
    usable = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    for i in sorted(usable, key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def _steps(
    cumulative_bytes: Sequence[int], values: Sequence[float | None]
) -> list[tuple[int, float]]:
    if any(later < sooner for sooner, later in pairwise(cumulative_bytes)):
        raise ValueError("cumulative_bytes must not fall from one round to the next.")
    rounds = zip(cumulative_bytes, values, strict=True)
    return [(spent, value) for spent, value in rounds if value is not None]


def _mean_between(
    steps: Sequence[tuple[int, float]],
    low: float,
    high: float,
    before: float,
    scale: Callable[[float], float],
) -> float:
    """Mean of the step curve over [low, high] megabytes, measured along ``scale``."""
    edges, heights = [low], [before]
    for spent, value in steps:
        megabytes = spent / BYTES_PER_MEGABYTE
        if megabytes <= low:
            heights[0] = value
        elif megabytes < high:
            edges.append(megabytes)
            heights.append(value)
    places = [scale(edge) for edge in (*edges, high)]
    widths = [right - left for left, right in pairwise(places)]
    covered = math.fsum(height * width for height, width in zip(heights, widths, strict=True))
    return covered / (places[-1] - places[0])
