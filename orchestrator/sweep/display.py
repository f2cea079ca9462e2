"""What the command line shows of a sweep: progress with time left, and the table of results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from orchestrator import events
from orchestrator.display import Bars, console
from orchestrator.results import Result
from orchestrator.sweep.config import label
from orchestrator.sweep.design import Trial
from orchestrator.sweep.results import SweepResult
from scenarios.scored import SHORT, Headline, own_metric

MEGABYTES = {
    "MB up": ("comm/up_bytes", 1e-6),
    "MB dn": ("comm/down_bytes", 1e-6),
}
MAX_BARS = 8
"""Running trials that get a bar of their own."""


class SweepWatcher(Bars):
    """A bar for the sweep and one per running trial; plain lines where there is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]:<22}"),
            TimeElapsedColumn(),
            quiet=quiet,
        )
        self._main = self.bars.add_task("trials", total=None, note="")
        self._tasks: dict[str, TaskID] = {}
        self._total = self._ended = self._ran = 0
        self._began = 0.0

    def expect(self, total: int) -> None:
        self._total = total
        self.bars.update(self._main, total=total)
        if self.plain:
            console.print(f"{total} trials", highlight=False)

    def prepare(self, progress: events.Progress) -> None:
        told = f"{escape(progress.stage)} {progress.done}/{progress.total}"
        self.bars.update(self._main, note=told)
        if self.plain and progress.done in (0, progress.total):
            console.print(told, highlight=False)

    def progress(self, trial: Trial, state: Mapping[str, Any]) -> None:
        self._began = self._began or time.monotonic()
        if trial.key not in self._tasks and len(self._tasks) < MAX_BARS:
            self._tasks[trial.key] = self.bars.add_task(f"  {trial.name[:32]}", note="starting")
        if state and trial.key in self._tasks:
            task = self._tasks[trial.key]
            rounds = max(1, int(state["rounds"]))
            self.bars.update(
                task, completed=int(state["round"]), total=rounds, note=str(state["stage"])
            )

    def end(self, trial: Trial, status: str, result: Result | None) -> None:
        self._ended += 1
        self._ran += status != "reused"
        if trial.key in self._tasks:
            self.bars.remove_task(self._tasks.pop(trial.key))
        left = self._left()
        self.bars.update(self._main, completed=self._ended, note=left)
        if self.plain:
            score = _score(result, trial.config.headline)
            line = f"{self._ended}/{self._total} {trial.name} {status}{score}  {left}"
            console.print(line.rstrip(), highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """Time left, from how long the trials took that this process ran."""
        if not self._ran or self._ended >= self._total:
            return ""
        each = (time.monotonic() - self._began) / self._ran
        return f"ETA {clock(each * (self._total - self._ended))}"


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_sweep(result: SweepResult) -> None:
    """Means over seeds by method and cell, what tuning chose, what failed, and where all is."""
    if result.choices:
        console.print(_choices(result))
    if not result.summary.empty:
        console.print("[bold]Results on test data, last round; mean ± deviation over seeds[/]")
        console.print(_table(result))
    for ended in result.failed:
        fault = escape(ended.fault.strip())
        console.print(f"[red]failed[/] {ended.trial.name}: {fault}", highlight=False)
    for group, why in result.lost.items():
        console.print(f"[red]no test trials[/] of {escape(group)}: {why}", highlight=False)
    for name, why in result.not_mirrored.items():
        console.print(f"[red]not mirrored[/] {name}: {escape(why)}", highlight=False)
    statuses = [ended.status for ended in result.ended]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
    console.print(f"{len(statuses)} trials: {counts}", highlight=False)
    console.print(f"sweep {result.folder.name}", highlight=False)
    console.print(
        f"  tables: {result.folder}/trials.csv, summary.csv", highlight=False, soft_wrap=True
    )
    name = result.folder.name
    if any(ended.trial.config.tracking.enabled for ended in result.ended):
        console.print(f"  charts: fedarena ui {name}", highlight=False, soft_wrap=True)
    console.print(f"  which method, at which price: fedarena report {name}", highlight=False)


def _table(result: SweepResult) -> Table:
    """One row per method and cell, a line between cells of different scenarios."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for axis in result.axes:
        table.add_column(axis.rpartition(".")[2], no_wrap=True)
    table.add_column("n", justify="right")
    metrics = {k: v for k, v in _metrics(result).items() if v[0] in result.summary["mean"]}
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    summary = result.summary
    keys = list(summary.index.to_frame().itertuples(index=False, name=None))
    cells = list(dict.fromkeys(key[1:] for key in keys))
    for cell in cells:
        for i in (i for i, key in enumerate(keys) if key[1:] == cell):
            row = summary.iloc[i]
            values = [
                _mean(row["mean"][metric] * scale, row["std"][metric] * scale, name)
                for name, (metric, scale) in metrics.items()
            ]
            table.add_row(*map(escape, keys[i]), str(int(row["count"]["rounds"])), *values)
        if len(result.axes) and cell != cells[-1]:
            table.add_section()
    return table


def _choices(result: SweepResult) -> Table:
    table = Table(title="Chosen on validation data", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("group", "chosen", "validation %", "trials"):
        table.add_column(column)
    for group, choice in result.choices.items():
        chosen = ", ".join(f"{n.rpartition('.')[2]}={label(v)}" for n, v in choice.point.items())
        score = "–" if choice.validation is None else f"{100 * choice.validation:.1f}"
        table.add_row(escape(group), escape(chosen), score, str(choice.num_trials))
    return table


def _mean(mean: float, std: float, name: str) -> str:
    """Mean and deviation; a dash where a method has no such score. Bytes hardly ever deviate."""
    if mean != mean:
        return "–"
    if name.startswith("MB"):
        return f"{mean:.2f}"
    return f"{mean:.1f}" + ("" if std != std else f" ± {std:.1f}")


def _metrics(result: SweepResult) -> dict[str, tuple[str, float]]:
    """A metric and its unit by column; scores by each metric that trials are judged by."""
    judged = list(dict.fromkeys(ended.trial.config.headline for ended in result.ended))
    found: dict[str, tuple[str, float]] = {}
    for headline in judged:
        of = "" if len(judged) == 1 else f" {SHORT[headline]}"
        found[f"{SHORT[headline]} %"] = (f"eval/global/{headline}", 100.0)
        found[f"chosen{of}"] = (f"selected/global/{headline}", 100.0)
        found[f"clients{of} %"] = (f"eval/personal/{headline}", 100.0)
        found[f"worst{of}"] = (f"eval/personal/worst_{headline}", 100.0)
    return found | MEGABYTES


def _score(result: Result | None, headline: Headline) -> str:
    if result is None:
        return ""
    found = result.last.metrics
    names = {f"eval/global/{headline}": SHORT[headline], own_metric(headline): "clients"}
    parts = [
        f"{name} {100 * found[metric]:.1f} %" for metric, name in names.items() if metric in found
    ]
    return "".join(f"  {part}" for part in parts)
