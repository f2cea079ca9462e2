"""A picture of a population: who holds how much of which class, and of which domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scenarios.population import Population

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_BARS = 100
MAX_COLOURS = 20
MAX_NAMED = 40
_OTHER_COLOUR = "#e9e9e9"  # lighter than the greys of the palette
_BAR_PANEL_INCHES = 4.2
_MAP_PANEL_INCHES = 3.2


def picture(population: Population) -> Figure:
    """The training rows of each client: stacked bars per class, and what bars cannot show below.

    Above 100 clients a bar is the mean over a block of consecutive clients; above 20 classes the
    most frequent ones have a colour and the others are summed. In both cases a map shows the share
    of every class for every client. Bars per domain follow where there is more than one.
    """
    from matplotlib.figure import Figure

    counts = population.histogram()
    num_clients, num_classes = counts.shape
    has_map = num_clients > MAX_BARS or num_classes > MAX_COLOURS
    has_domains = len(population.domains) > 1
    heights = [_BAR_PANEL_INCHES]
    heights += [_MAP_PANEL_INCHES] * has_map + [0.75 * _BAR_PANEL_INCHES] * has_domains
    num_bars = min(num_clients, MAX_BARS)
    size = (min(14.0, 7.5 + 0.07 * num_bars), 0.6 + sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    bars, *others = panels[:, 0]
    _bars(bars, counts, population.classes, "classes")
    if has_map:
        _map(others.pop(0), counts, population.classes)
    if has_domains:
        _bars(others.pop(0), population.domain_histogram(), population.domains, "domains")
    figure.suptitle(
        f"{population.dataset}: {int(counts.sum()):,} training examples, {num_clients:,} clients, "
        f"{num_classes} classes" + (f", {len(population.domains)} domains" if has_domains else ""),
        fontsize=11,
    )
    _label_clients(panels[-1, 0], num_clients)
    return figure


def _bars(axes: Axes, counts: Ints, names: tuple[str, ...], what: str) -> None:
    """Stacked bars of counts [num_clients, C], with their legend at the right."""
    from matplotlib import colormaps

    heights = _blocks(counts)
    heights, shown = _main_classes(heights, names, what)
    few = colormaps["tab10"].colors  # type: ignore[attr-defined]
    many = colormaps["tab20"].colors  # type: ignore[attr-defined]
    palette = few if len(names) <= len(few) else many
    bottom = np.zeros(len(heights))
    for index, name in enumerate(shown):
        colour = palette[index] if index < MAX_COLOURS else _OTHER_COLOUR
        axes.bar(np.arange(len(heights)), heights[:, index], 0.9, bottom, color=colour, label=name)
        bottom += heights[:, index]
    binned = len(heights) < len(counts)
    axes.set_ylabel("training examples" + ("\n(mean per client)" if binned else ""))
    axes.margins(x=0.01)
    axes.set_ylim(0, 1.05 * bottom.max())
    axes.spines[["top", "right"]].set_visible(False)
    handles, texts = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        [_short(text) for text in texts[::-1]],
        title=what,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.03),
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        labelspacing=0.3,
    )


def _map(axes: Axes, counts: Ints, names: tuple[str, ...]) -> None:
    """Every client's share of every class as a colour, along the x axis of the bars."""
    from matplotlib.colors import PowerNorm

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [num_clients, C]
    image = axes.imshow(
        shares.T,
        aspect="auto",
        cmap="magma_r",
        # Small shares matter too, so the scale is that of the square root.
        norm=PowerNorm(0.5, vmin=0.0, vmax=max(float(shares.max()), 1e-9)),
        interpolation="nearest",
        extent=(-0.5, min(len(counts), MAX_BARS) - 0.5, len(names) - 0.5, -0.5),
    )
    if len(names) <= MAX_NAMED:
        axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=6)
    else:
        axes.set_ylabel("class number")
    figure = axes.get_figure()
    assert figure is not None  # it was made by one
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.025, 1.0)))
    bar.set_label("share of the\nclient's examples", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _label_clients(axes: Axes, num_clients: int) -> None:
    num_bars = min(num_clients, MAX_BARS)
    starts = _edges(num_clients)[:-1]
    binned = num_bars < num_clients
    axes.set_xlabel(f"clients, {num_bars} blocks (first client of each)" if binned else "client")
    step = max(1, -(-num_bars // 20))
    axes.set_xticks(np.arange(0, num_bars, step), [str(start) for start in starts[::step]])


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _edges(num_clients: int) -> Ints:
    """Where each bar's block of clients begins, and the end [B + 1]."""
    return np.linspace(0, num_clients, min(num_clients, MAX_BARS) + 1).astype(np.int64)


def _blocks(counts: Ints) -> Floats:
    """Bars [B, C], each the mean over a block of clients."""
    edges = _edges(len(counts))
    sums = np.add.reduceat(counts, edges[:-1], axis=0)
    means: Floats = sums / np.diff(edges)[:, None]
    return means


def _main_classes(heights: Floats, names: tuple[str, ...], what: str) -> tuple[Floats, list[str]]:
    """Heights [B, <= 21] and names, with the least frequent ones summed at the end."""
    if len(names) <= MAX_COLOURS:
        return heights, list(names)
    order = np.argsort(-heights.sum(axis=0), kind="stable")
    main, others = np.sort(order[:MAX_COLOURS]), order[MAX_COLOURS:]
    summed = heights[:, others].sum(axis=1, keepdims=True)
    shown = [names[index] for index in main] + [f"{len(others)} other {what}"]
    return np.concatenate([heights[:, main], summed], axis=1), shown
