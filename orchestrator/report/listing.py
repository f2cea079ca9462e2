"""Runs of a folder as a table, and one run in detail, for the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_core.errors import FedarenaError
from orchestrator.checkpoint import RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.labels import method_label, scenario_label
from orchestrator.loading import SETTINGS_OF_NO_RESULT, load_config, to_dict
from orchestrator.report.tables import significant
from orchestrator.results import Result
from orchestrator.schema import leaves
from scenarios.scored import TITLES, own_metric

UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
NUMBERS = ("seed", "state", "rounds", "score %", "MB", "age")
"""Columns of the list of runs that are always there, and whole, as a run's name is, which may take
two lines."""
GAP = 3
"""Characters between two columns."""


@dataclass(frozen=True)
class Listed:
    """One run. state: finished, unfinished, not begun or damaged. score: its headline. age_s: since
    the last round.
    """

    run: str
    method: str
    scenario: str
    seed: int | None
    state: str
    rounds: int | None = None
    score: float | None = None
    megabytes: float | None = None
    age_s: float | None = None


@dataclass(frozen=True)
class Described:
    """settings: that differ from the defaults. metrics: ``Result.summary``. failures: round, client
    and reason of each.
    """

    listed: Listed
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    chosen_round: int | None
    failures: Sequence[tuple[int, str, str]]


def list_runs(folder: Path) -> list[Listed]:
    """The runs below a folder, the latest last; those without a round first."""
    found = [list_run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    return sorted(found, key=lambda run: -(run.age_s if run.age_s is not None else float("inf")))


def list_run(path: Path) -> Listed:
    try:
        config = load_config(path / "config.yaml")
    except FedarenaError:
        return Listed(path.name, "", "", None, "damaged")
    labels = method_label(config), scenario_label(config), config.seed
    records = RunStore(path).records()
    if not records:
        return Listed(path.name, *labels, "not begun")
    last = records[-1]
    sent = sum(r.metrics["comm/up_bytes"] + r.metrics["comm/down_bytes"] for r in records)
    shown = own_metric(config.headline), f"eval/global/{config.headline}"
    measured = next((r for r in reversed(records) if any(n in r.metrics for n in shown)), last)
    score = next((measured.metrics[n] for n in shown if n in measured.metrics), None)
    state = "finished" if (path / "DONE").exists() else "unfinished"
    age_s = max(0.0, time.time() - last.time_ms / 1000)
    return Listed(path.name, *labels, state, len(records) - 1, score, sent / 1e6, age_s)


def describe_run(path: Path) -> Described:
    """StateError where no round is committed, ConfigError where its config cannot be read."""
    result = Result.load(path)
    config = load_config(path / "config.yaml")
    failures = [
        (record.round + 1, client, reason)
        for record in result.records
        for client, reason in record.failures.items()
    ]
    chosen = result.selected
    wanted = {n: v for n, v in result.summary.items() if "/domain/" not in n}
    return Described(
        list_run(path),
        changed_settings(config),
        wanted,
        None if chosen is None else chosen.round + 1,
        failures,
    )


def changed_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that differ from a default config's, by dotted path."""
    usual = dict(leaves(to_dict(ExperimentConfig())))
    return {
        path: value
        for path, value in leaves(to_dict(config))
        if usual.get(path) != value and (path == "name" or not SETTINGS_OF_NO_RESULT.match(path))
    }


def show_runs(runs: Sequence[Listed], console: Console) -> None:
    if not runs:
        console.print("no runs here yet: start one with `fedarena run`")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = [_numbers(run) for run in runs]
    taken = sum(GAP + max(map(len, column)) for column in zip(NUMBERS, *numbers, strict=True))
    room = console.width + 1 - taken
    widths = {"run": max(len(run.run) for run in runs)}
    widths |= {"method": min(16, max(len(run.method) for run in runs)), "scenario": 8}
    shown: list[str] = []
    for name, width in widths.items():  # what has no room is left out; the last one has the rest
        if shown and room < GAP + width:
            break
        room -= GAP + width
        shown.append(name)
    table.add_column("run", overflow="fold")
    for name in shown[1:]:
        width = widths[name] + (room if name == "scenario" else 0)
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=width)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for run, own in zip(runs, numbers, strict=True):
        table.add_row(*(escape(str(vars(run)[name])) for name in shown), *own)
    console.print(table)
    console.print(
        "  score: accuracy of the clients' models, or what evaluation.headline says, last measured "
        "round; MB: sent by and to all clients"
    )


def _numbers(run: Listed) -> list[str]:
    """A run's cells below ``NUMBERS``."""
    cells = ["" if run.seed is None else str(run.seed), run.state]
    cells += ["" if run.rounds is None else str(run.rounds)]
    cells += ["" if run.score is None else f"{100 * run.score:.1f}"]
    return [*cells, "" if run.megabytes is None else significant(run.megabytes), age(run.age_s)]


def show_run(run: Described, console: Console) -> None:
    listed = run.listed
    console.print(f"[bold]{escape(listed.run)}[/], {listed.state}", highlight=False)
    console.print(f"  {escape(listed.method)} on {escape(listed.scenario)}, seed {listed.seed}")
    console.print("\n[bold]Settings that are no defaults[/]")
    _pairs({path: str(value) for path, value in run.settings.items()}, console)
    console.print(f"\n[bold]After {listed.rounds} rounds[/]")
    _pairs({name: _number(name, value) for name, value in run.metrics.items()}, console)
    if run.chosen_round is not None:
        console.print(f"\nChosen on validation data: round {run.chosen_round}")
    console.print(f"\n[bold]Failures[/]: {len(run.failures) or 'none'}")
    for round, client, reason in run.failures[:20]:
        console.print(f"  round {round}, client {client}: {escape(reason)}", highlight=False)


def age(seconds: float | None) -> str:
    """In the largest unit that fits; empty where nothing has happened."""
    if seconds is None:
        return ""
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


def _number(name: str, value: float) -> str:
    if name.endswith((*TITLES, "rouge1", "rouge2")):
        return f"{100 * value:.1f} %"
    if name.endswith("_bytes"):
        return f"{value / 1e6:.3f} MB"
    return significant(value)


def _pairs(pairs: Mapping[str, str], console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(escape(name), escape(value))
    console.print(table)
