"""A comparison as files: tables for other programs, and a picture of accuracy over megabytes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.checkpoint import write_atomic
from orchestrator.compare.comparison import Comparison
from scenarios.budget_curve import BYTES_PER_MEGABYTE, value_at

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

LOG_FROM = 20.0
"""The axis is logarithmic where one method sends at least so many times as much as another."""

PANEL_INCHES = (7.2, 4.6)

STYLES: Sequence[Any] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
SHADES = ("0.2", "0.4", "0.55", "#8c564b", "#5f7a3a", "#6d4a8c", "#2f7f86")
"""Of horizontal lines. The two have no common divisor, so that many lines look different."""


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.csv (runs), summary.csv (methods), comparison.json and comparison.png."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "comparison.csv": comparison.runs.to_csv(index=False).encode(),
        "summary.csv": comparison.summary.to_csv(index=False).encode(),
        "comparison.json": json.dumps(as_json(comparison), indent=2).encode(),
    }
    for name, content in files.items():
        write_atomic(folder / name, content)
    draw_comparison(comparison).savefig(folder / "comparison.png", dpi=130)
    return [folder / name for name in (*files, "comparison.png")]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values; what a method lacks is absent, never zero."""
    return {
        "question": vars(comparison.question),
        "verdict": comparison.verdict,
        "runs": _records(comparison.runs),
        "summary": _records(comparison.summary),
        "differences": _records(comparison.differences),
        "curves": _records(comparison.curves),
    }


def draw_comparison(comparison: Comparison) -> Figure:
    """The asked metric over the megabytes sent, one panel per scenario.

    A step curve is the mean over seeds, its band one sample standard deviation to both sides, its
    dot the end of the run. Rows that send nothing are horizontal lines.
    """
    from matplotlib.figure import Figure

    scenarios = comparison.scenarios
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * len(scenarios)), layout="constrained")
    panels = figure.subplots(len(scenarios), 1, squeeze=False)[:, 0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        _draw_scenario(axes, comparison, scenario)
    return figure


def _draw_scenario(axes: Axes, comparison: Comparison, scenario: str) -> None:
    metric = comparison.question.metric
    curves = comparison.curves[comparison.curves["scenario"] == scenario]
    ends = [float(own["bytes"].max()) for _, own in curves.groupby("method", sort=False)]
    is_log = bool(ends) and max(ends) > LOG_FROM * min(ends)
    for position, (method, own) in enumerate(curves.groupby("method", sort=False)):
        _draw_curve(axes, str(method), own, f"C{position % 10}", is_log=is_log)
    summary = comparison.summary[comparison.summary["scenario"] == scenario]
    still = summary[~summary["method"].isin(curves["method"])]
    for position, row in enumerate(still.to_dict("records")):
        value = row.get(metric, math.nan)
        if not math.isnan(value):
            style, colour = STYLES[position % len(STYLES)], SHADES[position % len(SHADES)]
            axes.axhline(100 * value, color=colour, ls=style, lw=1.2, label=row["method"])
    if is_log:
        axes.set_xscale("log")
    elif ends:
        axes.set_xlim(left=0)
    axes.set_xlabel("sent by and to all clients (MB, 10⁶ bytes)")
    axes.set_ylabel(f"{metric.removeprefix('eval/').replace('/', ' ')} (%)")
    axes.set_title(scenario, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _draw_curve(axes: Axes, method: str, runs: pd.DataFrame, colour: str, *, is_log: bool) -> None:
    """Mean and deviation over seeds at each budget at which any seed has a new value."""
    budgets = np.unique(runs["bytes"].to_numpy())
    if is_log:
        budgets = budgets[budgets > 0]
    found = [
        [
            value_at(own["bytes"].tolist(), own["value"].tolist(), budget / BYTES_PER_MEGABYTE)
            for _, own in runs.groupby("seed")
        ]
        for budget in budgets.tolist()
    ]
    has_all = np.array([None not in values for values in found])
    if not has_all.any():
        return
    megabytes = budgets[has_all] / BYTES_PER_MEGABYTE
    values: Floats = 100 * np.array([v for v in found if None not in v], dtype=np.float64)
    mean = values.mean(axis=1)
    axes.step(megabytes, mean, where="post", color=colour, label=method)
    axes.plot(megabytes[-1:], mean[-1:], "o", color=colour, markersize=4)
    if values.shape[1] > 1:
        spread = values.std(axis=1, ddof=1)
        axes.errorbar(megabytes[-1:], mean[-1:], spread[-1:], color=colour, capsize=3, lw=1)
        axes.fill_between(
            megabytes, mean - spread, mean + spread, step="post", color=colour, alpha=0.15, lw=0
        )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(k): v for k, v in row.items() if not (v is None or (isinstance(v, float) and v != v))}
        for row in table.to_dict("records")
    ]
