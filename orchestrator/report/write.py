"""The report as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from orchestrator.checkpoint import write_atomic
from orchestrator.report.content import Report

Format = Literal["html", "csv", "latex", "json"]
ENDINGS = {"html": ".html", "csv": ".csv", "latex": ".tex", "json": ".json"}


def write_report(report: Report, out: Path, format: Format) -> list[Path]:
    """Write ``out``; as CSV one file per table beside it, named ``<stem>_<table>.csv``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {path: text for path, text in _texts(report, out, format).items() if text}
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return list(texts)


def _texts(report: Report, out: Path, format: Format) -> dict[Path, str]:
    from orchestrator.report.formats import as_csv, as_json, as_latex

    if format == "csv":
        return {out.with_name(f"{out.stem}_{t.name}.csv"): as_csv(t) for t in report.tables}
    if format == "html":
        from orchestrator.report.page import as_html

        return {out: as_html(report)}
    return {out: as_json(report) if format == "json" else as_latex(report)}
