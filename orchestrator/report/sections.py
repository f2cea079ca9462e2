"""What a scenario's section of the page is made of: its pictures, and the rows that they show."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.compare.lineup import Row
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import run_folder
from orchestrator.labels import result_settings
from orchestrator.report.confusion import leading_confusion
from orchestrator.report.content import Report, methods_of
from orchestrator.report.curves import Curve
from orchestrator.report.decisions import MethodCurves
from orchestrator.report.figures import (
    clients_figure,
    confusion_figure,
    price_figure,
    round_figure,
)
from orchestrator.results import Result
from scenarios.population import Population
from scenarios.scored import own_metric

PICTURE_DPI = 75


@dataclass(frozen=True)
class Picture:
    """markup: an SVG element, or an ``<img>`` with its data inline. caption: how to read it."""

    markup: str
    caption: str


def pictures(report: Report, scenario: str) -> list[Picture]:
    """In the order in which they are read; what the runs do not hold is left out."""
    methods = methods_of(report.rows, report.curves, scenario)
    what = report.ask.what
    found = []
    if methods:
        spread = (
            "Line: mean over seeds. Band: 95 % interval of the mean over seeds (Student's t); with "
            "two seeds their range, with one there is none. Grey: the Pareto front, below which "
            "another method is better or cheaper. Horizontal: references, at their end."
        )
        references = _references(report, scenario)
        figure = price_figure(methods, references, report.ask.budgets, what)
        found.append(Picture(figure, spread))
    for title, own in frequencies(report, scenario).items():
        figure = price_figure(own, {}, report.ask.budgets, what)
        caption = f"{title}, by local training between two rounds: the same bytes, other work."
        found.append(Picture(figure, caption))
    by_client = _by_client(report, scenario)
    if by_client:
        caption = (
            "A mark per client and seed, last round. Thick line: middle half; upright: median."
        )
        found.append(
            Picture(
                clients_figure(by_client, f"{report.ask.word} on the client's test data"), caption
            )
        )
    found += _confused(report, scenario)
    if methods:
        found += _over_rounds(methods, report.ask.word)
    return [*found, *_partitions(report, scenario)]


def frequencies(report: Report, scenario: str) -> dict[str, MethodCurves]:
    """Methods that were run with several amounts of local training, by their common name."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.scenario == scenario and row.kind == "method":
            groups.setdefault(repr(_without_work(_first(row))), []).append(row)
    found: dict[str, MethodCurves] = {}
    for rows in groups.values():
        if len(rows) > 1:
            name = rows[0].method.partition(" (")[0]
            found[name] = {
                _work(_first(row)): report.curves[scenario, row.method]
                for row in sorted(rows, key=lambda row: _amount(_first(row)))
            }
    return found


def _first(row: Row) -> ExperimentConfig:
    return next(iter(row.configs.values()))


def _without_work(config: ExperimentConfig) -> dict[str, Any]:
    training = replace(config.training, local_steps=None, local_epochs=1)
    return result_settings(replace(config, name=None, training=training))


def _work(config: ExperimentConfig) -> str:
    steps, epochs = config.training.local_steps, config.training.local_epochs
    if steps is not None:
        return f"{steps} local step{'s' if steps != 1 else ''}"
    return f"{epochs} local epoch{'s' if epochs != 1 else ''}"


def _amount(config: ExperimentConfig) -> tuple[bool, int]:
    steps = config.training.local_steps
    return (True, config.training.local_epochs) if steps is None else (False, steps)


def _references(report: Report, scenario: str) -> dict[str, float]:
    summary = report.comparison.summary
    metric = report.ask.metric
    own = summary[(summary["scenario"] == scenario) & (summary["kind"] == "reference")]
    if metric not in own:
        return {}
    known = own[own[metric].notna()]
    return {str(row["method"]): float(row[metric]) for row in known.to_dict("records")}


def _by_client(report: Report, scenario: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in report.rows:
        if row.scenario == scenario:
            for config in row.configs.values():
                own = own_metric(config.headline)
                values = Result.load(run_folder(config)).last.client_metrics.get(own, ())
                known = [value for value in values if value is not None]
                if known:
                    found.setdefault(row.method, []).extend(known)
    return found


def _confused(report: Report, scenario: str) -> list[Picture]:
    confusion = leading_confusion(report, scenario)
    if confusion is None:
        return []
    caption = (
        f"What the shared model of {confusion.method} makes of the whole test split in the last "
        f"round of {confusion.num_runs} run{'s' if confusion.num_runs > 1 else ''}: of each true "
        "class (row) the share that is taken for each class (column)."
    )
    if confusion.mistakes:
        caption += f" Most often wrong: {'; '.join(confusion.mistakes)}."
    return [Picture(confusion_figure(confusion.counts, confusion.classes), caption)]


def _over_rounds(methods: MethodCurves, word: str) -> list[Picture]:
    def percent(curve: Curve) -> list[float | None]:
        return [None if value is None else 100 * value for value in curve.values]

    rounds = round_figure(methods, f"{word} (%)", percent, "rounds")
    losses = round_figure(methods, "training loss", lambda curve: curve.losses, "losses")
    return [
        Picture(rounds, "Learning curves: mean over seeds, test data."),
        Picture(losses, "Mean loss of the cohort's local training, mean over seeds."),
    ]


def _partitions(report: Report, scenario: str) -> list[Picture]:
    """Who holds which data; one picture per draw of it, the first three."""
    from scenarios.picture import picture

    shown: dict[str, tuple[str, Population]] = {}
    configs = [c for row in report.rows if row.scenario == scenario for c in row.configs.values()]
    for config in configs:
        folder = run_folder(config)
        population = Population.load(folder / "population.parquet")
        shown.setdefault(population.hash, (folder.name, population))
    found = []
    for name, population in list(shown.values())[:3]:
        data = io.BytesIO()
        picture(population).savefig(data, format="png", dpi=PICTURE_DPI)
        text = base64.b64encode(data.getvalue()).decode()
        found.append(
            Picture(
                f'<img alt="training examples of each client" src="data:image/png;base64,{text}">',
                f"Who holds which data, in run {name}"
                + (f" ({len(shown)} draws in all)." if len(shown) > 1 else "."),
            )
        )
    return found


def seeds_told(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.configs) for row in rows})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{told} seed{'' if counts == [1] else 's'} each"
