"""A picture of a population: who holds how much of which class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scenarios.population import Population

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 100
MAX_COLOURS = 20
_OTHER_COLOUR = "#2b2b2b"


def picture(population: Population) -> Figure:
    """Stacked bars of the training rows per class: one bar per client, or per block of clients.

    Above 100 clients a bar is the mean over a block of consecutive clients; above 20 classes the
    most frequent ones have a colour and the others are summed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts = population.histogram()
    num_clients = len(counts)
    heights, starts = _blocks(counts)
    heights, names = _main_classes(heights, population.classes)
    figure = Figure(figsize=(min(14.0, 6.5 + 0.09 * len(heights)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    bottom = np.zeros(len(heights))
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for index, name in enumerate(names):
        colour = palette[index] if index < MAX_COLOURS else _OTHER_COLOUR
        axes.bar(np.arange(len(heights)), heights[:, index], 0.9, bottom, color=colour, label=name)
        bottom += heights[:, index]
    binned = len(heights) < num_clients
    axes.set_xlabel(
        f"clients, {len(heights)} blocks (first client of each)" if binned else "client"
    )
    axes.set_ylabel("training examples" + (" (mean per client)" if binned else ""))
    axes.set_title(
        f"{population.dataset}: {int(counts.sum()):,} training examples, {num_clients:,} clients, "
        f"{len(population.classes)} classes"
    )
    step = max(1, -(-len(heights) // 20))
    axes.set_xticks(np.arange(0, len(heights), step), [str(start) for start in starts[::step]])
    axes.margins(x=0.01)
    axes.set_ylim(0, 1.05 * bottom.max())
    axes.spines[["top", "right"]].set_visible(False)
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], texts[::-1], loc="outside right upper", fontsize=7.5, frameon=False
    )
    return figure


def _blocks(
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Bars [B, C], each the mean over a block of clients, and the first client of each [B]."""
    num_bars = min(len(counts), MAX_BARS)
    edges = np.linspace(0, len(counts), num_bars + 1).astype(np.int64)
    sums = np.add.reduceat(counts, edges[:-1], axis=0)
    return sums / np.diff(edges)[:, None], edges[:-1]


def _main_classes(
    heights: npt.NDArray[np.float64], classes: tuple[str, ...]
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Heights [B, <= 21] and names, with the least frequent classes summed at the end."""
    if len(classes) <= MAX_COLOURS:
        return heights, list(classes)
    order = np.argsort(-heights.sum(axis=0), kind="stable")
    main, others = np.sort(order[:MAX_COLOURS]), order[MAX_COLOURS:]
    summed = heights[:, others].sum(axis=1, keepdims=True)
    names = [classes[label] for label in main] + [f"{len(others)} other classes"]
    return np.concatenate([heights[:, main], summed], axis=1), names
