"""The report's pictures, as inline SVG that refers to nothing outside itself."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.report.curves import Curve
from orchestrator.report.decisions import MethodCurves
from scenarios.budget_curve import BYTES_PER_MEGABYTE, pareto_front, value_at
from scenarios.scored import TITLES
from scenarios.statistics import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)))
REFERENCE_COLOUR = "#666666"
NUMBERED_CLASSES = 20
"""Up to so many classes the cells of a confusion matrix have room for their numbers."""
LOG_FROM = 20.0
"""The axis is logarithmic where one method sends at least so many times as much as another."""


@contextmanager
def _drawing(width: float, height: float, title: str) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(plain(title), fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        yield figure, axes


def price_figure(
    methods: MethodCurves, references: Mapping[str, float], budgets: Sequence[float], what: str
) -> str:
    """The metric over megabytes per client: mean, band over seeds, and the Pareto front."""
    with _drawing(10.0, 4.6, "Accuracy over communication") as (figure, axes):
        ends = [max(c.end for c in own.values()) for own in methods.values()]
        is_log = bool(ends) and max(ends) > LOG_FROM * max(min(ends), 1e-9)
        points: list[tuple[float, float]] = []
        for i, (method, own) in enumerate(methods.items()):
            mb, mean = _draw_band(axes, i, method, list(own.values()), is_log=is_log)
            points += list(zip(mb, mean, strict=True))
        front = [points[i] for i in pareto_front(points)]
        if front:
            axes.step(
                *zip(*front, strict=True),
                where="post",
                color="#bbbbbb",
                lw=7,
                alpha=0.55,
                zorder=0,
                label="Pareto front",
                solid_capstyle="butt",
            )
        _draw_references(axes, references)
        right = max(ends, default=1.0)
        _mark_budgets(axes, [b for b in budgets if b <= 1.05 * right])
        axes.set_xscale("log" if is_log else "linear")
        if not is_log:
            axes.set_xlim(left=0)
        axes.set_xlabel("sent and received by the busiest client (MB, 10⁶ bytes)")
        axes.set_ylabel(f"{_axis_name(what)} (%)")
        _legend(axes)
        return as_svg(figure, "price")


def round_figure(methods: MethodCurves, what: str, value: Callable[[Curve], Any], tag: str) -> str:
    """Anything over rounds, mean over seeds."""
    with _drawing(10.0, 3.8, f"{what} over rounds") as (figure, axes):
        for i, (method, own) in enumerate(methods.items()):
            curves = [value(curve) for curve in own.values()]
            length = min(map(len, curves), default=0)
            rows = [r for r in range(length) if all(c[r] is not None for c in curves)]
            means = [math.fsum(c[r] for c in curves) / len(curves) for r in rows]
            axes.plot(rows, means, label=plain(method), **_style(i, len(rows)))
        axes.set_xlabel("rounds done")
        axes.set_ylabel(what)
        _legend(axes)
        return as_svg(figure, tag)


def clients_figure(by_client: Mapping[str, Sequence[float]], what: str) -> str:
    """Every client of every seed as a dot, the quartiles as a bar, the median as a line."""
    height = 0.9 + 0.42 * len(by_client)
    with _drawing(10.0, height, "Spread over clients") as (figure, axes):
        for i, values in enumerate(by_client.values()):
            # The offsets only keep dots apart: fixed, so that a report is always the same.
            offsets = 0.28 * np.sin(2.399963 * np.arange(len(values)))
            shares = 100 * np.asarray(values)
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(shares, i + offsets, MARKERS[i % len(MARKERS)], ms=3.5, alpha=0.45, c=colour)
            low, middle, high = np.percentile(shares, (25, 50, 75))
            axes.plot([low, high], [i, i], color="black", lw=2.2, alpha=0.8)
            axes.plot([middle, middle], [i - 0.3, i + 0.3], color="black", lw=1.6)
        axes.set_yticks(range(len(by_client)), [plain(name) for name in by_client])
        axes.set_ylim(len(by_client) - 0.4, -0.6)
        axes.set_xlabel(f"{what} (%)")
        return as_svg(figure, "clients")


def confusion_figure(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """counts [C, C], true class by row, as shares of each row; empty rows stay blank."""
    size = len(classes)
    side = min(10.0, 2.4 + 0.32 * size)
    names = [plain(name if len(name) <= 24 else f"{name[:23]}…") for name in classes]
    with _drawing(side + 1.0, side, "What is taken for what") as (figure, axes):
        axes.grid(False)
        totals = counts.sum(axis=1, keepdims=True)  # [C, 1]
        shares = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)  # [C, C]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        if size <= NUMBERED_CLASSES:
            for row, column in zip(*np.nonzero(counts), strict=True):
                share = shares[row, column]
                colour = "white" if share > 55 else "black"
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", size=7.5, color=colour
                )
        axes.set_xticks(range(size), names, rotation=90, fontsize=8)
        axes.set_yticks(range(size), names, fontsize=8)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        figure.colorbar(image, ax=axes, label="% of the true class", fraction=0.045)
        return as_svg(figure, "confusion")


def as_svg(figure: Figure, salt: str) -> str:
    """The figure's ``<svg>`` element alone; salt keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg[svg.index("<svg") :]


def plain(text: str) -> str:
    """A name as matplotlib shows it unchanged: no mathematics, no hidden legend entry."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


# -- details -------------------------------------------------------------------------------------


def _draw_band(
    axes: Axes, i: int, method: str, curves: Sequence[Curve], *, is_log: bool
) -> tuple[list[float], list[float]]:
    """Mean over seeds with its band; returns the mean curve as megabytes and percent."""
    spent = np.unique([b for c in curves for b in c.num_bytes if b or not is_log])
    found = [
        [value_at(c.num_bytes, c.values, b / BYTES_PER_MEGABYTE) for c in curves]
        for b in spent.tolist()
    ]
    kept = [
        (b / BYTES_PER_MEGABYTE, [100 * v for v in values if v is not None])
        for b, values in zip(spent.tolist(), found, strict=True)
        if None not in values
    ]
    megabytes = [mb for mb, _ in kept]
    spreads = [over_seeds(values) for _, values in kept]
    means = [spread.mean for spread in spreads]
    style = _style(i, len(means))
    axes.plot(megabytes, means, drawstyle="steps-post", label=plain(method), **style)
    if len(curves) == 2:  # Student's t with one degree of freedom would cover the whole picture
        low, high = [min(values) for _, values in kept], [max(values) for _, values in kept]
    else:
        low = [s.mean if s.low is None else max(0.0, s.low) for s in spreads]
        high = [s.mean if s.high is None else min(100.0, s.high) for s in spreads]
    axes.fill_between(megabytes, low, high, step="post", color=style["color"], alpha=0.15, lw=0)
    return megabytes, means


def _draw_references(axes: Axes, references: Mapping[str, float]) -> None:
    for i, (name, value) in enumerate(references.items()):
        style = DASHES[(i + 1) % len(DASHES)]
        axes.axhline(100 * value, color=REFERENCE_COLOUR, lw=1.1, ls=style, label=plain(name))


def _mark_budgets(axes: Axes, budgets: Sequence[float]) -> None:
    for budget in budgets:
        axes.axvline(budget, color="#999999", lw=0.8, ls=(0, (1, 3)))
        axes.annotate(
            f"{budget:g} MB",
            (budget, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="#555555",
            ha="right",
            va="top",
            rotation=90,
        )


def _style(i: int, num_points: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "ls": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markevery": max(1, num_points // 12),
        "markersize": 5,
        "lw": 1.7,
    }


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)


def _axis_name(what: str) -> str:
    return next((title for title in TITLES.values() if title in what), what)
