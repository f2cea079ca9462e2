"""Which method to take at a budget, and which reaches a target at the lowest price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.compare.judging import BOOTSTRAP_SEED, LEVEL
from orchestrator.report.curves import Curve
from orchestrator.report.references import Reference
from scenarios import statistics
from scenarios.budget_curve import BYTES_PER_MEGABYTE
from scenarios.statistics import BySeed, over_seeds

T = TypeVar("T")

MethodCurves = Mapping[str, Mapping[int, Curve]]
"""By method of one scenario, without references: a curve for each seed."""

SURE = {
    "single": "not sure (fewer than 3 seeds)",
    "indicative": "fairly sure (3 or 4 seeds)",
    "best": "sure (5 seeds or more)",
    "not separated": "a tie",
    "nothing": "no other method to compare with",
}


@dataclass(frozen=True)
class Choice:
    """The answer at one budget. method None: no method can send a single round.

    value, low, high: mean over seeds and its 95 % interval; second, gain: the next method, and by
    how much it is behind; end: megabytes per client at which the method's runs end; first: the
    lowest price of a round of any method. is_clear: whether the difference to the reference is more
    than chance explains (paired bootstrap, p < 0.05). measured: the lowest price of a round that
    was measured.
    """

    megabytes: float
    method: str | None
    value: float = math.nan
    low: float | None = None
    high: float | None = None
    second: str | None = None
    gain: float | None = None
    num_seeds: int = 0
    verdict: str = ""
    runs: Sequence[str] = ()
    end: float = math.nan
    first: float = math.nan
    reference: Reference | None = None
    is_clear: bool = False
    measured: float = math.nan

    @property
    def is_worth_it(self) -> bool:
        """Whether the method is above all that sends nothing."""
        return self.reference is None or self.value > self.reference.value


@dataclass(frozen=True)
class Cheapest:
    """The lowest price of a target. method None: no method reaches it with every seed."""

    target: float
    method: str | None
    megabytes: float = math.nan
    low: float | None = None
    high: float | None = None
    num_seeds: int = 0
    verdict: str = ""
    runs: Sequence[str] = ()


def choose(
    curves: MethodCurves, megabytes: float, reference: Reference | None, *, same_clients: bool
) -> Choice:
    """The method with the highest mean among those that can send a round with every seed.

    Over the seeds that all of these have. Of equal ones it is the one that has sent least.
    """
    places = {m: {s: c.place(megabytes) for s, c in own.items()} for m, own in curves.items()}
    able = [method for method, own in places.items() if None not in own.values()]
    each = [curve for own in curves.values() for curve in own.values()]
    first = min(map(first_round, each), default=math.nan)
    if not able:
        measured = min(map(_first_measured, each), default=math.nan)
        return Choice(megabytes, None, first=first, measured=measured, reference=reference)
    able.sort(key=lambda m: max(curves[m][s].num_bytes[i] for s, i in places[m].items() if i))
    held = of_shared_seeds({method: curves[method] for method in able})
    reference = reference and reference.over({seed for own in held.values() for seed in own})
    values, means = _reached(held, places)
    verdict, leader, worth = _judged(values, means, same_clients)
    ordered = sorted(able, key=lambda m: -worth[m])
    second = next((m for m in ordered if m != leader), None)
    spread = over_seeds(means[leader])
    return Choice(
        megabytes,
        leader,
        spread.mean,
        spread.low,
        spread.high,
        second,
        None if second is None else worth[leader] - worth[second],
        spread.num_seeds,
        verdict,
        [curve.run for curve in held[leader].values()],
        max(curve.end for curve in held[leader].values()),
        first,
        reference,
        _is_clear(values[leader], reference, same_clients),
    )


def cheapest(curves: MethodCurves, target: float) -> Cheapest:
    """The method that reaches ``target`` at the lowest mean price, among those that always do.

    Over the seeds that all of these have.
    """
    prices: dict[str, dict[int, float]] = {}
    for method, own in curves.items():
        found = {seed: curve.price(target) for seed, curve in own.items()}
        known = {seed: price for seed, price in found.items() if price is not None}
        if known and len(known) == len(found):
            prices[method] = known
    if not prices:
        return Cheapest(target, None)
    prices = of_shared_seeds(prices)
    # Judged as values of which more is better; a price is a run's, so seeds are what is resampled.
    values = {m: {s: [-price] for s, price in own.items()} for m, own in prices.items()}
    means = {m: [-price for price in own.values()] for m, own in prices.items()}
    verdict, leader, _ = _judged(values, means, same_clients=False)
    spread = over_seeds(list(prices[leader].values()))
    runs = [curves[leader][seed].run for seed in prices[leader]]
    return Cheapest(
        target, leader, spread.mean, spread.low, spread.high, spread.num_seeds, verdict, runs
    )


def sentence(choice: Choice, what: str) -> str:
    """The decision in words. what: the metric, as in "accuracy of each client's model"."""
    at = f"At {choice.megabytes:g} MB per client"
    reference = choice.reference
    free = "" if reference is None else f"{reference.name} ({_percent(reference.value)})"
    if choice.method is None:
        left = f" What sends nothing: {free}." if free else ""
        if choice.first <= choice.megabytes:
            return (
                f"{at} no method was measured (evaluation.every); the first measured round needs "
                f"{_mb(choice.measured)}.{left}"
            )
        return f"{at} no method can send a round; the cheapest needs {_mb(choice.first)}.{left}"
    value = f"{_percent(choice.value)} {what}"
    if choice.low is not None and choice.high is not None:
        value += f", 95 % interval {_bounds(choice.low, choice.high)}"
    chance = "" if choice.is_clear else " (chance alone could explain that difference)"
    parts = []
    if choice.second is not None and choice.gain is not None:
        points = f"{100 * choice.gain:.1f}"
        is_level = float(points) == 0
        parts.append(f"{'level with' if is_level else f'{points} points above'} {choice.second}")
    if not choice.is_worth_it:
        return (
            f"{at} take {free}, which sends nothing. The best method that communicates is "
            f"{choice.method}: {value}{chance}. How sure that it is the best of them: "
            f"{how_sure(choice.verdict)}."
        )
    if reference is not None:
        gain = 100 * (choice.value - reference.value)
        parts.append(
            f"{gain:.1f} points above {reference.name}, the best that sends nothing{chance}"
        )
    told = f" It is {', and '.join(parts)}." if parts else ""
    return f"{at} take {choice.method}: {value}.{told} How sure: {how_sure(choice.verdict)}."


def how_sure(verdict: str) -> str:
    """The verdict of ``statistics`` in words that need no glossary."""
    words = next((text for start, text in SURE.items() if verdict.startswith(start)), "")
    if "not separated from" in verdict:
        others = verdict.partition("not separated from ")[2]
        lead = "" if not verdict.startswith("indicative") else "3 or 4 seeds, and "
        return f"{lead}chance alone could explain the lead over {others}"
    return words or verdict


def first_round(curve: Curve) -> float:
    """Megabytes of the busiest client in a run's first round."""
    return next((b / BYTES_PER_MEGABYTE for b in curve.num_bytes[1:]), math.inf)


def of_shared_seeds(by_method: Mapping[str, Mapping[int, T]]) -> dict[str, dict[int, T]]:
    """What methods have of the seeds that all have; everything where there is no such seed.

    Else a method whose run of a hard seed failed would be held against others that have it.
    """
    shared = set.intersection(*(set(own) for own in by_method.values()))
    return {
        method: {seed: one for seed, one in own.items() if seed in shared or not shared}
        for method, own in by_method.items()
    }


# -- details -------------------------------------------------------------------------------------


def _reached(
    curves: MethodCurves, places: Mapping[str, Mapping[int, int | None]]
) -> tuple[dict[str, dict[int, Sequence[float | None]]], dict[str, list[float]]]:
    """By method, at each seed's place on its curve: what is compared, and the means."""
    values: dict[str, dict[int, Sequence[float | None]]] = {method: {} for method in curves}
    means: dict[str, list[float]] = {method: [] for method in curves}
    for method, own in curves.items():
        for seed, curve in own.items():
            place = places[method][seed]
            if place is not None and (mean := curve.values[place]) is not None:
                values[method][seed] = curve.at(place)
                means[method].append(mean)
    return values, means


def _judged(
    values: Mapping[str, BySeed], means: Mapping[str, Sequence[float]], same_clients: bool
) -> tuple[str, str, Mapping[str, float]]:
    """The verdict, the leader, and by what it is that: the mean of each method.

    Methods without a seed in common are only ranked.
    """
    try:
        found = statistics.judge(values, seed=BOOTSTRAP_SEED, same_clients=same_clients)
    except ValueError:
        worth = {method: _mean(own) for method, own in means.items()}
        leader = max(worth, key=lambda method: worth[method])
        return "not tested, the methods have no seed in common", leader, worth
    return found.verdict, found.leader, found.means


def _is_clear(ours: BySeed, reference: Reference | None, same_clients: bool) -> bool:
    if reference is None:
        return False
    try:
        found = statistics.compare(
            ours, reference.by_seed, seed=BOOTSTRAP_SEED, same_clients=same_clients
        )
    except ValueError:  # not the same clients, so there are no pairs
        return False
    return found is not None and found.p_value is not None and found.p_value < LEVEL


def _first_measured(curve: Curve) -> float:
    pairs = zip(curve.num_bytes[1:], curve.values[1:], strict=True)
    return next((b / BYTES_PER_MEGABYTE for b, v in pairs if v is not None), math.inf)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _mb(megabytes: float) -> str:
    return f"{megabytes:.3g} MB"


def _bounds(low: float, high: float) -> str:
    """Of a share: what lies outside 0 to 100 % is Student's t, not possible values."""
    return f"{100 * max(low, 0):.1f} to {100 * min(high, 1):.1f} %"
