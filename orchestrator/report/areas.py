"""What each method is worth over all budgets at once: areas under its curve, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.ask import Ask
from orchestrator.report.curves import Curve
from orchestrator.report.decisions import MethodCurves, first_round, of_shared_seeds
from orchestrator.report.tables import METHOD, RUNS, SCENARIO, Cell, Column, Table, cell, percent
from scenarios.budget_curve import area, log_area
from scenarios.statistics import over_seeds

COLUMNS = (
    SCENARIO,
    METHOD,
    Column("to_mb", "budgets up to", "MB per client"),
    percent("area", "mean, every MB alike"),
    Column("area_std", "sd over seeds", "points", 1),
    Column("from_mb", "from", "MB per client"),
    percent("log_area", "mean, every tenfold alike"),
    Column("log_area_std", "sd over seeds", "points", 1),
    Column("seeds", "seeds"),
    RUNS,
)


def area_table(by_scenario: Sequence[tuple[str, MethodCurves]], ask: Ask) -> Table:
    """One row per method; the best by ``area`` first in each scenario."""
    rows = [row for scenario, curves in by_scenario for row in _rows(scenario, curves, ask)]
    note = (
        f"Mean test {ask.word} over all budgets up to the largest that is asked for: the area "
        "under the curve over megabytes of the busiest client, divided by its width; and the same "
        "over their logarithm, from the cheapest round of any method on. Until a method's first "
        "round its untrained model counts, and after its last round the model that it ended with."
    )
    return Table("areas", "Over all budgets", COLUMNS, rows, note)


def _rows(scenario: str, curves: MethodCurves, ask: Ask) -> list[list[Cell]]:
    high = max(ask.budgets)
    prices = [first_round(curve) for own in curves.values() for curve in own.values()]
    low = min((price for price in prices if price > 0), default=high)
    followed = {m: own for m, own in curves.items() if all(map(_is_followed, own.values()))}
    found: list[list[Cell]] = []
    for method, own in of_shared_seeds(followed).items() if followed else ():
        each = list(own.values())
        cells: list[Cell] = [scenario, method, high]
        cells += _mean_and_std([area(c.num_bytes, c.values, high) for c in each])
        if low < high:
            span = (low, high)
            cells.append(low)
            cells += _mean_and_std([log_area(c.num_bytes, c.values, span) for c in each])
        else:
            cells += [None, None, None]
        found.append([*cells, len(each), ", ".join(curve.run for curve in each)])
    return sorted(found, key=lambda cells: -float(cells[3] or 0.0))


def _is_followed(curve: Curve) -> bool:
    """Whether the untrained model was measured, and the trained one at all."""
    return curve.values[0] is not None and any(value is not None for value in curve.values[1:])


def _mean_and_std(shares: Sequence[float]) -> list[Cell]:
    spread = over_seeds(shares)
    return [100 * spread.mean, cell(spread.std, 100)]
