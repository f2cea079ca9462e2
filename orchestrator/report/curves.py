"""What a run was worth after each round, and what its busiest client had sent by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint import RoundRecord
from orchestrator.compare.lineup import Row
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import run_folder
from orchestrator.results import LEFT, Result
from scenarios.budget_curve import BYTES_PER_MEGABYTE, fits, megabytes_to

Values = Sequence[float | None]


@dataclass(frozen=True)
class Curve:
    """One run, by committed round [R] from the untrained state on.

    num_bytes: sent and received until then by the client that did so most, headers included.
    values: the metric, None where not measured; by_client: the same of each client, None where the
    metric is not one that clients have. losses: of training.
    """

    run: str
    num_bytes: Sequence[int]
    values: Values
    by_client: Sequence[Values | None]
    losses: Values
    costs: Mapping[str, float]

    @property
    def end(self) -> float:
        """Megabytes per client of the whole run."""
        return self.num_bytes[-1] / BYTES_PER_MEGABYTE

    def place(self, megabytes: float) -> int | None:
        """Index of the last measured round, after training began, within a budget per client."""
        found = None
        for i, (spent, value) in enumerate(zip(self.num_bytes, self.values, strict=True)):
            if i and fits(spent, megabytes) and value is not None:
                found = i
        return found

    def price(self, target: float) -> float | None:
        """Megabytes per client up to the first measured round with at least ``target``."""
        return megabytes_to(self.num_bytes, self.values, target)

    def at(self, place: int) -> Values:
        """The values that are compared: one per client, or one of the run where it has no more."""
        own = self.by_client[place]
        return own if own is not None else [self.values[place]]


Curves = Mapping[tuple[str, str], Mapping[int, Curve]]
"""By (scenario, method): a curve for each seed."""


def read_curves(rows: Sequence[Row], metric: str) -> Curves:
    return {
        (row.scenario, row.method): {s: read_curve(c, metric) for s, c in row.configs.items()}
        for row in rows
    }


def read_curve(config: ExperimentConfig, metric: str) -> Curve:
    result = Result.load(run_folder(config))
    records = result.records
    return Curve(
        result.name,
        busiest_bytes(records),
        [record.metrics.get(metric) for record in records],
        [record.client_metrics.get(metric) for record in records],
        [record.metrics.get("train/loss") for record in records],
        _costs(records),
    )


def busiest_bytes(records: Sequence[RoundRecord]) -> list[int]:
    """After each round the bytes, both ways, of the client that has had most of them [R]."""
    spent: dict[str, int] = {}
    found, most = [], 0
    for record in records:
        for client, load in record.loads.items():
            spent[client] = spent.get(client, 0) + sum(load)
            most = max(most, spent[client])
        found.append(most)
    return found


def _costs(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Seconds of each phase, over all rounds, and peak bytes of memory.

    What is left of a budget is no phase.
    """
    costs: dict[str, float] = {}
    for record in records:
        for name, value in record.metrics.items():
            if name.startswith("memory/"):
                costs[name] = max(value, costs.get(name, 0.0))
            elif name.startswith("time/") and name not in LEFT:
                costs[name] = costs.get(name, 0.0) + value
    return costs
