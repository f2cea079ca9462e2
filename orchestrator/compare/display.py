"""A comparison on the terminal: tables that are split rather than wrapped, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.compare.comparison import SPREADS, Comparison
from scenarios.scored import TITLES, Headline, headline_of

NOT_AVAILABLE = "n/a"
GAP = 2
"""Characters between two columns."""

Cell = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Column:
    """One column: how a row of the summary is shown in it, and what it means.

    asked: shown where no row has such a number, too.
    """

    title: str
    cell: Cell
    meaning: str = ""
    asked: bool = False


def show_comparison(comparison: Comparison, console: Console) -> None:
    """One set of tables per scenario, what their columns mean, then which method is best."""
    columns = _columns(comparison)
    used: dict[str, Column] = {}
    for scenario in comparison.scenarios:
        rows = _rows(comparison, scenario)
        shown = [c for c in columns if c.asked or any(c.cell(r) != NOT_AVAILABLE for r in rows)]
        used |= {column.title: column for column in shown}
        console.print(f"\n[bold]{escape(scenario)}[/]", highlight=False, soft_wrap=True)
        for part in _split(shown, rows, console.width):
            console.print(_table(part, rows))
            console.print()
    for column in used.values():
        if column.meaning:
            line = f"  [bold]{escape(column.title)}[/]: {escape(column.meaning)}"
            console.print(line, highlight=False)
    console.print(f"  [bold]{NOT_AVAILABLE}[/]: the method has no such number", highlight=False)
    console.print("\n[bold]Which is best[/]")
    console.print(escape(comparison.verdict), highlight=False, soft_wrap=True)
    for scenario in comparison.scenarios:
        table = _difference_table(comparison, scenario)
        if table is not None:
            console.print(table)


# -- columns -------------------------------------------------------------------------------------


def _columns(comparison: Comparison) -> list[Column]:
    target = comparison.question.target_accuracy
    price = "" if target is None else f"to {100 * target:g} %"
    of = headline_of(comparison.question.metric)
    return [
        *_with_interval(
            "shared %", f"eval/global/{of}", f"{TITLES[of]} of the shared model, all test rows"
        ),
        _percent("chosen %", f"selected/global/{of}", "the same, round chosen by validation"),
        *_with_interval(
            "clients %", f"eval/personal/{of}", "each client's model on its own test rows, mean"
        ),
        _percent(
            "chosen cl. %",
            f"selected/personal/{of}",
            "the same, round chosen by validation",
        ),
        _percent("worst %", f"eval/personal/worst_{of}", "the worst client"),
        _percent("worst 10 %", f"eval/personal/worst_tenth_{of}", "mean of the worst tenth"),
        _percent(
            "< alone %", "worse_than_local_only", "clients worse off than local only", digits=0
        ),
        _percent(
            "< 0-shot %", "worse_than_zero_shot", "clients worse off than zero-shot", digits=0
        ),
        *_protocol_columns(comparison, of),
        Column("MB up", _amount("up_mb", _megabytes), "sent by all clients, with headers (10^6 B)"),
        Column("MB down", _amount("down_mb", _megabytes), "sent to them"),
        Column(
            f"MB {price}",
            _price,
            f"MB both ways when {comparison.question.metric} gets there",
            asked=target is not None,
        ),
        Column("s", _amount("run_s", "{:.1f}".format), "rounds and scoring, without start-up"),
        Column("passes", _amount("passes", "{:.2f}".format), "over all training rows, on average"),
        Column("steps", _amount("steps", "{:,.0f}".format), "gradient steps of all clients"),
    ]


def _protocol_columns(comparison: Comparison, of: Headline) -> list[Column]:
    """Whatever the scenario's protocol measures besides."""
    usual = ("eval/global/", "eval/personal/", "eval/validation/", "eval/both/", "eval/domain/")
    found = []
    for name in comparison.summary.columns:
        is_spread = name.endswith(SPREADS)
        if not name.startswith("eval/") or name.startswith(usual) or is_spread:
            continue
        title = name.removeprefix("eval/")
        if title.endswith(f"/{of}"):
            found.append(_percent(f"{title.removesuffix(f'/{of}')} %", name, ""))
        elif title.endswith(f"/personal_{of}"):
            found.append(_percent(f"{title.removesuffix(f'/personal_{of}')} cl. %", name, ""))
        elif title.startswith("base_to_novel/"):
            found.append(_percent(f"{title.removeprefix('base_to_novel/')} %", name, ""))
        elif title == "unseen/participation_gap":
            found.append(_percent("gap", name, "participants minus newcomers, points"))
    return found


def _percent(title: str, metric: str, meaning: str, digits: int = 1) -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        mean, std = _number(row, metric), _number(row, f"{metric}.std")
        if mean is None:
            return NOT_AVAILABLE
        return f"{100 * mean:.{digits}f}" + ("" if std is None else f" ± {100 * std:.{digits}f}")

    return Column(title, cell, meaning)


def _with_interval(title: str, metric: str, meaning: str) -> list[Column]:
    def interval(row: Mapping[str, Any]) -> str:
        low, high = _number(row, f"{metric}.low"), _number(row, f"{metric}.high")
        if low is None or high is None or low == high:  # an untrained row knows no seed
            return NOT_AVAILABLE
        return f"{100 * low:.1f}..{100 * high:.1f}"

    meant = "of the mean over seeds, by Student's t"
    return [_percent(title, metric, meaning), Column("95 % CI", interval, meant)]


def _amount(name: str, shown: Callable[[float], str]) -> Cell:
    def cell(row: Mapping[str, Any]) -> str:
        value = _number(row, name)
        return NOT_AVAILABLE if value is None else shown(value)

    return cell


def _price(row: Mapping[str, Any]) -> str:
    value = _number(row, "mb_to_target")
    if value is None:
        return NOT_AVAILABLE
    reached, num_seeds = int(row["mb_to_target.num"]), int(row["num_seeds"])
    some = f" ({reached} of {num_seeds})" if reached < num_seeds else ""
    return _megabytes(value) + some


def _megabytes(value: float) -> str:
    if not value:
        return "0"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(row: Mapping[Any, Any], name: str) -> float | None:
    """A number of a row, None where the table has none."""
    value = row.get(name)
    return None if value is None or math.isnan(value) else float(value)


# -- tables --------------------------------------------------------------------------------------


def _rows(comparison: Comparison, scenario: str) -> list[Mapping[str, Any]]:
    summary = comparison.summary
    records = summary[summary["scenario"] == scenario].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in records]


def _split(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], width: int
) -> list[list[Column]]:
    """Columns in as few tables as fit side by side in ``width`` characters."""
    first = max(cell_len(str(row["method"])) for row in rows)
    parts: list[list[Column]] = [[]]
    left = width - first
    for column in columns:
        needed = max(cell_len(text) for text in (column.title, *map(column.cell, rows))) + GAP
        if needed > left and parts[-1]:
            parts.append([])
            left = width - first
        parts[-1].append(column)
        left -= needed
    return parts


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _empty_table("method")
    for column in columns:
        table.add_column(escape(column.title), justify="right", no_wrap=True)
    for position, row in enumerate(rows):
        if position and row["kind"] != rows[position - 1]["kind"]:
            table.add_section()
        table.add_row(escape(row["method"]), *(column.cell(row) for column in columns))
    return table


def _empty_table(first: str) -> Table:
    # Between two columns stands the box's own blank besides the padding.
    padding = (0, GAP - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding)
    table.add_column(escape(first))  # what has to give way is a name, and no number
    return table


def _difference_table(comparison: Comparison, scenario: str) -> Table | None:
    """What the leader gains over each other row; None where there is none."""
    every = comparison.differences
    rows = every[every["scenario"] == scenario].to_dict("records")
    if not rows:
        return None
    title = f"{rows[0]['leader']} minus"
    table = _empty_table(title)
    for name in ("points", "95 % CI", "p, Holm", "resampled"):
        table.add_column(name, justify="right", no_wrap=True)
    for position, row in enumerate(rows):
        if position and row["kind"] != rows[position - 1]["kind"]:
            table.add_section()
        table.add_row(escape(str(row["other"])), *_difference_cells(row))
    return table


def _difference_cells(row: Mapping[Any, Any]) -> list[str]:
    difference, p = _number(row, "difference"), _number(row, "p_adjusted")
    if difference is None:
        return [NOT_AVAILABLE] * 4
    low, high = _number(row, "low"), _number(row, "high")
    interval = NOT_AVAILABLE
    if low is not None and high is not None:
        interval = f"{_points(low)}..{_points(high)}"
    level = NOT_AVAILABLE if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return [_points(difference), interval, level, f"{row['num_clusters']:.0f}"]


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # the sum makes a minus zero a plain one
