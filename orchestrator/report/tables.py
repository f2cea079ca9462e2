"""The report's numbers as tables: one source for HTML, CSV, LaTeX and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Cell = str | float | int | None


@dataclass(frozen=True)
class Column:
    """key: for programs; title and unit: for the header. digits: decimals that are shown.

    digits None: three significant digits, as suits sizes and times of any order.
    """

    key: str
    title: str
    unit: str = ""
    digits: int | None = None

    @property
    def header(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, cell: Cell) -> str:
        """What a reader sees; what is not there is never a zero."""
        if cell is None:
            return "n/a"
        if isinstance(cell, str):
            return cell
        if isinstance(cell, int) and self.digits is None:
            return f"{cell:,}"
        if self.digits is None:
            return significant(cell)
        text = f"{cell:.{self.digits}f}"
        return text.removeprefix("-") if not float(text) else text


@dataclass(frozen=True)
class Table:
    """name: for programs. rows: cells in the unit of their column, unrounded. note: how to read."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def of(self, scenario: str) -> Table:
        """The rows of one scenario, without the column that names it."""
        keys = [column.key for column in self.columns]
        if "scenario" not in keys:
            return self
        at = keys.index("scenario")
        rows = [(*r[:at], *r[at + 1 :]) for r in self.rows if r[at] == scenario]
        return replace(self, columns=[c for c in self.columns if c.key != "scenario"], rows=rows)

    def without_empty(self) -> Table:
        """Without the columns in which no row has anything."""
        kept = [i for i in range(len(self.columns)) if any(r[i] is not None for r in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in kept], rows=rows)

    def records(self) -> list[dict[str, Cell]]:
        """By key; what is not there is absent."""
        keys = [column.key for column in self.columns]
        return [
            {key: cell for key, cell in zip(keys, row, strict=True) if cell is not None}
            for row in self.rows
        ]


SCENARIO = Column("scenario", "scenario")
METHOD = Column("method", "method")
RUNS = Column("runs", "runs")


def percent(key: str, title: str) -> Column:
    return Column(key, title, "%", 1)


def cell(value: object, factor: float = 1.0) -> float | None:
    """A number for a table, None for None and NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return factor * value


def number(row: Mapping[str, object], name: str, factor: float = 1.0) -> float | None:
    """A number of a row of a DataFrame."""
    return cell(row.get(name), factor)


def significant(value: float) -> str:
    """Three significant digits, without an exponent for anything that a report holds."""
    if not math.isfinite(value):
        return "n/a"
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"
