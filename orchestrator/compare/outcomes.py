"""What each run of a comparison reached, read from the folders of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl_core.metrics import share_worse_off
from orchestrator.compare.effort import measure_effort
from orchestrator.compare.lineup import Kind, Question, Row
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import run_folder
from orchestrator.results import Result
from scenarios.budget_curve import megabytes_to
from scenarios.population import Population
from scenarios.scored import TITLES, own_metric

Values = Sequence[float | None]

UNTRAINED = {
    "majority": "majority class",
    "zero_shot": "zero-shot",
    "zero_shot_ensemble": "zero-shot, ensemble",
}
"""Reference rows that stand in the first record of every run."""


@dataclass(frozen=True)
class Outcome:
    """What one row reached with one seed.

    metrics: of the last round, and totals of the run; by_client: of the last round, by name.
    num_bytes, values: the curve of the asked metric over bytes sent, by round. clients: the names
    that the data give the clients, None where they have none.
    """

    scenario: str
    method: str
    kind: Kind
    seed: int
    run: str
    metrics: Mapping[str, float]
    by_client: Mapping[str, Values]
    num_bytes: Sequence[int] = ()
    values: Values = ()
    clients: Sequence[str] | None = None


def outcomes_of(rows: Sequence[Row], question: Question) -> list[Outcome]:
    """Every row with every seed, methods first; with the references that the records hold."""
    found = [_outcome(row, c, question) for row in rows for c in row.configs.values()]
    if question.references:
        found += _untrained(rows)
    untrained = list(UNTRAINED.values())

    def place(outcome: Outcome) -> tuple[bool, bool]:
        return outcome.kind == "reference", outcome.method not in untrained

    return sorted(with_worse_off(found, rows), key=place)


def _outcome(row: Row, config: ExperimentConfig, question: Question) -> Outcome:
    """What a finished run says, read from its folder."""
    result = Result.load(run_folder(config))
    population = Population.load(result.folder / "population.parquet")
    effort = measure_effort(config, population, result.records)
    summary = result.summary
    metrics = {n: v for n, v in summary.items() if n.startswith(("eval/", "selected/"))}
    metrics |= {"rounds": len(result.records) - 1, "passes": effort.passes, "steps": effort.steps}
    metrics["run_s"] = summary["time/run_s"]
    if not config.federation.pooled:  # what pooling the data would cost is not counted
        metrics["up_mb"] = summary["comm/up_bytes"] / 1e6
        metrics["down_mb"] = summary["comm/down_bytes"] / 1e6
    sent = [r.metrics["comm/up_bytes"] + r.metrics["comm/down_bytes"] for r in result.records]
    num_bytes = [int(total) for total in np.cumsum(sent)] if sum(sent) else []
    values = [r.metrics.get(question.metric) for r in result.records] if num_bytes else []
    if question.target_accuracy is not None and num_bytes:
        price = megabytes_to(num_bytes, values, question.target_accuracy)
        metrics |= {} if price is None else {"mb_to_target": price}
    return Outcome(
        row.scenario,
        row.method,
        row.kind,
        config.seed,
        result.name,
        metrics,
        result.last.client_metrics,
        num_bytes,
        values,
        population.provenance.get("clients"),
    )


def _untrained(rows: Sequence[Row]) -> list[Outcome]:
    """Zero-shot and the majority class, from the first record of a run of each scenario and seed.

    Where they are a row of their own already, they are not added.
    """
    given = {(row.scenario, _zero_shot_name(row)) for row in rows}
    found: dict[tuple[str, str, int], Outcome] = {}
    for name in UNTRAINED:
        for row in rows:
            for seed, config in row.configs.items():
                key = (row.scenario, name, seed)
                if key not in found and (row.scenario, name) not in given:
                    outcome = _from_first_record(row, config, name)
                    found |= {key: outcome} if outcome else {}
    return list(found.values())


def _zero_shot_name(row: Row) -> str | None:
    """Which of ``UNTRAINED`` a row of the user's own is; None where it is none."""
    learner = next(iter(row.configs.values())).learner
    if learner.name != "zero_shot":
        return None
    return "zero_shot_ensemble" if learner.ensemble else "zero_shot"


def _from_first_record(row: Row, config: ExperimentConfig, name: str) -> Outcome | None:
    result = Result.load(run_folder(config))
    first, prefix = result.records[0], f"reference/{name}/"
    metrics = _renamed(first.metrics, prefix)
    if not metrics:  # the run was asked not to measure them
        return None
    totals = {"up_mb": 0.0, "down_mb": 0.0, "passes": 0.0, "steps": 0, "rounds": 0}
    by_client = _renamed(first.client_metrics, prefix)
    label = UNTRAINED[name]
    return Outcome(
        row.scenario, label, "reference", config.seed, result.name, metrics | totals, by_client
    )


def _renamed(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        f"eval/{name.removeprefix(prefix)}": value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def _only_local(scenario: str, rows: Sequence[Row]) -> str | None:
    """The scenario's row of clients that train alone, where there is just one."""
    found = [
        row.method
        for row in rows
        if row.scenario == scenario
        and next(iter(row.configs.values())).federation.name == "local_only"
    ]
    return found[0] if len(found) == 1 else None


def with_worse_off(outcomes: Sequence[Outcome], rows: Sequence[Row]) -> list[Outcome]:
    """With the shares of clients that are worse off than alone, and than with zero-shot.

    Each client is compared with itself under the same seed.
    """
    alone = {
        (row.scenario, row.method): row.alone or _only_local(row.scenario, rows) for row in rows
    }
    zero_shot = {r.scenario: r.method for r in rows if _zero_shot_name(r) == "zero_shot"}
    own = {(o.scenario, o.method, o.seed): _own(o.by_client) for o in outcomes}
    found = []
    for outcome in outcomes:
        metrics, mine = dict(outcome.metrics), _own(outcome.by_client)
        measured = metrics.pop("eval/personal/worse_than_zero_shot", None)
        if measured is not None and outcome.kind == "method":
            metrics["worse_than_zero_shot"] = measured
        others = {
            "worse_than_local_only": alone.get(
                (outcome.scenario, outcome.method), _only_local(outcome.scenario, rows)
            ),
            "worse_than_zero_shot": zero_shot.get(outcome.scenario, UNTRAINED["zero_shot"]),
        }
        for name, other in others.items():
            theirs = own.get((outcome.scenario, other, outcome.seed)) if other else None
            if mine is not None and theirs is not None and other != outcome.method:
                share = share_worse_off(mine, theirs)
                metrics |= {} if share is None else {name: share}
        found.append(replace(outcome, metrics=metrics))
    return found


def _own(by_client: Mapping[str, Values]) -> Values | None:
    """The headline of each client's model on its own test rows, None where nothing was measured."""
    return next((by_client[n] for n in map(own_metric, TITLES) if n in by_client), None)
