"""What the command line shows: progress while runs go on, plans, lists, the table of results."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fl_core.backbones.union import modality
from orchestrator import events
from orchestrator.config import ExperimentConfig
from orchestrator.loading import tracking_uri
from orchestrator.plan import Plan, make_plan
from orchestrator.results import Result
from scenarios.scored import SHORT, TITLES, Headline, of_headline

console = Console(width=None if sys.stdout.isatty() else 120)  # files and logs have room

EXAMPLES = {"image": "examples/promptfl.yaml", "text": "examples/fedit.yaml"}
"""A file to begin with, by what the backbone reads; in a checkout it is there."""

COLUMNS = {
    "chosen": "the same in the round with the best score on validation data",
    "clients %": "each client's model on its own test data, mean ± deviation",
    "worst": "of these the lowest",
    "MB up": "sent by all clients in all rounds, headers included (10^6 bytes)",
    "MB dn": "sent to them",
    "s": "seconds of rounds and scoring, without start-up",
}


class Bars:
    """Progress bars while this is entered: live on a terminal, else left to plain lines."""

    def __init__(self, *columns: ProgressColumn, quiet: bool) -> None:
        self.live = console.is_terminal and not quiet
        self.plain = not console.is_terminal and not quiet
        self.bars = Progress(*columns, console=console, disable=not self.live)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()


class Watcher(Bars):
    """Progress with time left, one bar per experiment; plain lines where there is no terminal.

    is_mirrored: whether no run that has ended lacks something at its ``mirror``.
    """

    def __init__(self, configs: Sequence[ExperimentConfig], *, quiet: bool = False) -> None:
        super().__init__(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]:<30}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            quiet=quiet,
        )
        self._tasks: list[TaskID] = []
        self.is_mirrored = True
        self._configs, self._labels = configs, _distinct_labels(configs)

    def __enter__(self) -> Self:
        super().__enter__()
        for label in self._labels:
            task = self.bars.add_task(label, total=None, start=False, note="waiting")
            self._tasks.append(task)
        return self

    def on_event(self, config: ExperimentConfig, event: events.Event) -> None:
        position = self._configs.index(config)
        label, task = self._labels[position], self._tasks[position]
        match event:
            case events.Progress(stage, done, total):
                stage = escape(stage)  # it names a data set
                if not done:
                    self.bars.start_task(task)
                self.bars.update(task, completed=done, total=total, note=stage)
                if self.plain and done in (0, total):
                    console.print(f"{label}: {stage} {done}/{total}")
            case events.Started(rounds=rounds, next_round=next_round):
                self.bars.reset(task, total=max(rounds, 1), completed=next_round, note="training")
            case events.Committed(record=record):
                told = _scores(record.metrics, config.headline)
                self.bars.update(task, completed=record.round + 1, note=told)
                if self.plain and self._is_milestone(task, record.round + 1):
                    console.print(f"{label}: round {record.round + 1}  {told}")
            case events.Finished(not_mirrored=fault):
                self.is_mirrored &= not fault
                end = self.bars.tasks[task].total or 1
                self.bars.update(task, completed=end, total=end)
                self.bars.stop_task(task)

    def _is_milestone(self, task: TaskID, done: int) -> bool:
        total = int(self.bars.tasks[task].total or 1)  # what a budget admits, where one is set
        return done in (0, total) or done % max(1, total // 5) == 0


def show_results(configs: Sequence[ExperimentConfig], results: Sequence[Result]) -> None:
    """The table of runs, what its columns mean, and what to do next."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    columns = _columns(configs)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for config, result in zip(configs, results, strict=True):
        table.add_row(_label(config), *_cells(result.summary, config.headline))
    console.print("[bold]Results on test data, last round[/]")
    console.print(table)
    for column, meaning in columns.items():
        console.print(f"  [bold]{column}[/]: {meaning}", highlight=False)
    console.print("\n[bold]Next[/]")
    for command in _next_commands(configs, results):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _next_commands(configs: Sequence[ExperimentConfig], results: Sequence[Result]) -> list[str]:
    """Look at what MLflow was told, where it was; then a run of one's own, or a closer look."""
    beside = Path(sys.executable).with_name("fedarena")
    program = "fedarena" if shutil.which("fedarena") else _shown(beside)
    commands = []
    tracked = next((c.tracking.uri for c in configs if c.tracking.enabled), None)
    if tracked is not None:
        where = "" if tracked == tracking_uri(None) else f" --uri {shlex.quote(tracked)}"
        commands.append(f"{program} ui{where}")
    example = EXAMPLES[modality(configs[0].backbone)]
    if Path(example).exists():
        return [*commands, f"{program} run {example} federation.rounds=40"]
    return [*commands, f"{program} show {run_words(results[0].folder)}"]


def run_words(folder: Path) -> str:
    """How a command names a run: by its name under ./runs, elsewhere by its path."""
    here = folder.parent.absolute() == Path("runs").absolute()
    return folder.name if here else shlex.quote(str(folder))


def show_plan(configs: Sequence[ExperimentConfig]) -> None:
    """What would run, and what it would send; nothing is computed but shapes."""
    plans = [make_plan(config) for config in configs]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("plan", no_wrap=True)
    for config in configs:
        table.add_column(_label(config), justify="right", no_wrap=True)
    for name, cell in PLAN_ROWS.items():
        table.add_row(name, *(cell(plan) for plan in plans))
    console.print(table)


def show_list(kind: str) -> None:
    """The names that a config may use, with one line each."""
    from orchestrator.catalogue import entries

    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("")
    for name, line in entries(kind):
        table.add_row(name, escape(line))
    console.print(table)


def _label(config: ExperimentConfig) -> str:
    return config.name or config.learner.name


def _distinct_labels(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Names of runs; where several share one, with their seeds."""
    labels = [_label(config) for config in configs]
    return [
        f"{label} seed {config.seed}"
        if labels.count(label) > 1 and not label.endswith(f"-s{config.seed}")
        else label
        for label, config in zip(labels, configs, strict=True)
    ]


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _columns(configs: Sequence[ExperimentConfig]) -> dict[str, str]:
    """What each column is called and means; runs may be judged by different metrics."""
    found = list(dict.fromkeys(config.headline for config in configs))
    title = SHORT[found[0]] if len(found) == 1 else "score"
    meant = " or ".join(TITLES[headline] for headline in found)
    return {f"{title} %": f"{meant} of the shared model on the whole test split", **COLUMNS}


def _scores(metrics: Mapping[str, float], headline: Headline) -> str:
    parts = []
    labels = {"eval/global/accuracy": SHORT[headline], "eval/personal/accuracy": "clients"}
    for accuracy, label in labels.items():
        name = of_headline(accuracy, headline)
        if name in metrics:
            parts.append(f"{label} {100 * metrics[name]:.1f} %")
    return "  ".join(parts) or "training"


def _cells(summary: dict[str, float], headline: Headline) -> list[str]:
    def percent(name: str) -> str:
        name = of_headline(name, headline)
        return f"{100 * summary[name]:.1f}" if name in summary else "–"

    clients = percent("eval/personal/accuracy")
    spread = summary.get(f"eval/personal/{headline}_std")
    if spread is not None:
        clients += f" ± {100 * spread:.1f}"
    return [
        percent("eval/global/accuracy"),
        percent("selected/global/accuracy"),
        clients,
        percent("eval/personal/worst_accuracy"),
        f"{summary['comm/up_bytes'] / 1e6:.2f}",
        f"{summary['comm/down_bytes'] / 1e6:.2f}",
        f"{summary['time/run_s']:.1f}",
    ]


PLAN_ROWS: dict[str, Callable[[Plan], str]] = {
    "rounds": lambda plan: (
        str(plan.rounds)
        if plan.rounds == plan.asked_rounds
        else f"{plan.rounds} of {plan.asked_rounds} (budget)"
    ),
    "clients per round": lambda plan: str(plan.cohort),
    "clients per group": lambda plan: str(plan.group_size),
    "training examples": lambda plan: f"{plan.num_train:,}",
    "test examples": lambda plan: f"{plan.num_test:,}",
    "shared floats": lambda plan: f"{plan.shared_floats:,}",
    "KB per round, up": lambda plan: f"{plan.round_up_bytes / 1e3:.1f}",
    "KB per round, down": lambda plan: f"{plan.round_down_bytes / 1e3:.1f}",
    "MB in all": lambda plan: f"{plan.total_bytes / 1e6:.2f}",
    "seconds on the links": lambda plan: "–" if plan.link_s is None else f"{plan.link_s:.1f}",
    "one run answers all budgets": lambda plan: "yes" if plan.one_run_answers else "no",
    "epsilon": lambda plan: plan.privacy or "–",
    "state": lambda plan: plan.state,
}
