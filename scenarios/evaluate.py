"""What is measured of a round's models. Scores come per example; the metrics are formed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.metrics import Tally, over_clients
from scenarios.population import Population

SELECTION_METRIC = "eval/validation/accuracy"
"""The only metric that a round may be chosen by; it never sees a test example."""


@dataclass(frozen=True)
class Scored:
    """Examples by row of the data set, with predicted class and -log p; every array is [n]."""

    rows: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int32]
    nll: npt.NDArray[np.float32]

    def tally(self, labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Tally:
        """The tally of those ``rows``, which must be among the scored ones (sorted)."""
        at = np.searchsorted(self.rows, rows)
        return Tally.of(labels[rows], self.predicted[at], self.nll[at])


@dataclass(frozen=True)
class Metrics:
    """flat: by name. by_client: by name, one value per client, None where it has none."""

    flat: Mapping[str, float]
    by_client: Mapping[str, Sequence[float | None]]


def rows_to_score(population: Population) -> npt.NDArray[np.int64]:
    """Every row that a metric of the shared model needs, ascending, once each."""
    held = population.validation.rows, population.test.rows
    everything = (population.global_validation, population.global_test, *held)
    return np.unique(np.concatenate(everything))


def client_rows(population: Population, client: int) -> npt.NDArray[np.int64]:
    """The rows that a metric of one client's own model needs, ascending."""
    shard = population.shard(client)
    return np.unique(np.concatenate([shard.validation, shard.test]))


def measure(population: Population, shared: Scored | None, own: Sequence[Scored] | None) -> Metrics:
    """All metrics of a round.

    shared: the shared model on ``rows_to_score``, or None where a method has none. own: every
    client's own model on its ``client_rows``, or None where clients use the shared one.
    """
    if shared is None and own is None:
        return Metrics({}, {})
    labels = population.labels
    flat: dict[str, float] = {}
    if shared is not None:
        for part, rows in (
            ("global", population.global_test),
            ("validation", population.global_validation),
        ):
            flat |= _named(f"eval/{part}", shared.tally(labels, rows))
    by_client: dict[str, list[float | None]] = {"eval/personal/accuracy": []}
    validation = Tally()
    for client in range(population.num_clients):
        scored = own[client] if own is not None else shared
        assert scored is not None  # one of the two is there, by the check above
        shard = population.shard(client)
        by_client["eval/personal/accuracy"].append(scored.tally(labels, shard.test).accuracy)
        validation += scored.tally(labels, shard.validation)
    spread = over_clients(by_client["eval/personal/accuracy"])
    names = {"mean": "accuracy", "worst": "worst_accuracy", "std": "accuracy_std"}
    flat |= {f"eval/personal/{names[key]}": value for key, value in spread.items()}
    if own is not None and validation.accuracy is not None:
        flat[SELECTION_METRIC] = validation.accuracy
    return Metrics(flat, by_client)


def _named(prefix: str, tally: Tally) -> dict[str, float]:
    values = {f"{prefix}/accuracy": tally.accuracy, f"{prefix}/nll": tally.nll}
    return {name: value for name, value in values.items() if value is not None}


def choose_round(validation: Mapping[int, float]) -> int | None:
    """The earliest round with the best validation accuracy, from round -> value; None if empty."""
    if not validation:
        return None
    best = max(validation.values())
    return min(round for round, value in validation.items() if value == best)
