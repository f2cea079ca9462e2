"""The reference that looks at no example: always the most frequent class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl_core.metrics import mean
from scenarios.population import Population
from scenarios.targets import Target

Ints = npt.NDArray[np.int64]


def measure_majority(population: Population, targets: Sequence[Target] = ()) -> dict[str, float]:
    """Accuracy of always naming the most frequent training class (the first of several).

    Where domains are tasks, of naming that of the row's task. A task that is held out has no
    training row: there it is the most frequent class of the scored rows, which no constant answer
    beats. ``targets``: ``home`` first.
    """
    trained = population.participants().train.rows
    labels, classes = population.labels, len(population.classes)
    by_task = bool(targets) and targets[0].tasks is not None
    tasks = population.domain_ids if by_task else np.zeros_like(population.domain_ids)
    often = _most_frequent(labels, tasks, trained, classes)
    clients = np.setdiff1d(np.arange(population.num_clients), population.unseen).tolist()
    right = labels == often[tasks]
    own = [_share(right, population.test[client]) for client in clients]
    found = {"global/accuracy": _share(right, population.global_test)}
    found["personal/accuracy"] = mean(own)
    for target in targets[1:]:
        if target.tasks is not None and target.by_client is None:
            scored, truth, of_task = target.rows, target.labels, target.tasks
            best = _most_frequent(truth, of_task, scored, len(target.classes))
            found[f"{target.name}/accuracy"] = _share(truth == best[of_task], scored)
    return {f"reference/majority/{n}": value for n, value in found.items() if value is not None}


def _most_frequent(labels: Ints, tasks: Ints, rows: Ints, num_classes: int) -> Ints:
    """The most frequent label of ``rows`` in each task, the first of several; [T]."""
    counts = np.zeros((int(tasks.max(initial=0)) + 1, num_classes), dtype=np.int64)
    np.add.at(counts, (tasks[rows], labels[rows]), 1)
    best: Ints = counts.argmax(axis=1)
    return best


def _share(right: npt.NDArray[np.bool_], rows: Ints) -> float | None:
    return float(right[rows].mean()) if len(rows) else None
