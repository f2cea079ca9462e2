"""The report's tables for other programs: CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.report.content import Report
from orchestrator.report.tables import Column, Table

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\n": " ",
    }
)


def as_csv(table: Table) -> str:
    """One table, unrounded, with keys as header; what is not there is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    writer.writerows([["" if cell is None else cell for cell in row] for row in table.rows])
    return text.getvalue()


def as_json(report: Report) -> str:
    """Everything, unrounded; what is not there is absent."""
    found = {
        "asked": asdict(report.ask),
        "decisions": {a.scenario: a.sentences(report.ask.what) for a in report.answers},
        "verdict": report.comparison.verdict,
        "cautions": list(report.cautions),
        "left_out": dict(report.left_out),
        "tables": {
            table.name: {
                "columns": [
                    {"key": c.key, "title": c.title, "unit": c.unit} for c in table.columns
                ],
                "rows": table.records(),
            }
            for table in report.tables
        },
    }
    return json.dumps(found, indent=2, allow_nan=False)


def as_latex(report: Report) -> str:
    """All tables, rounded as in the HTML, for a document without further packages."""
    return "\n".join(_tabular(table) for table in report.tables if table.rows)


def _tabular(table: Table) -> str:
    table = table.without_empty()
    columns = table.columns
    spec = "".join("r" if _is_number(table, i) else "l" for i in range(len(columns)))
    lines = [
        f"% {table.name}",
        r"\begin{table}",
        rf"\caption{{{_plain(table.title)}}}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\hline",
        _row([column.header for column in columns]),
        r"\hline",
    ]
    lines += [_row(_shown(columns, row)) for row in table.rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}", ""])


def _shown(columns: Sequence[Column], row: Sequence[str | float | int | None]) -> list[str]:
    return [column.shown(cell) for column, cell in zip(columns, row, strict=True)]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_plain, cells)) + r" \\"


def _plain(text: str) -> str:
    return text.translate(LATEX)


def _is_number(table: Table, place: int) -> bool:
    cells = [row[place] for row in table.rows if row[place] is not None]
    return not any(isinstance(cell, str) for cell in cells)
