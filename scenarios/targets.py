"""What models are scored on: examples, against a list of class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.client_rows import ClientRows
from scenarios.data.dataset import Dataset, as_items

if TYPE_CHECKING:
    from scenarios.population import Population

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HOME = "home"
"""The target of the population's own validation and test rows."""

_NUM_LISTED = 10


@dataclass(frozen=True, eq=False)
class Target:
    """Rows of one data set, and the classes that a model chooses from.

    ``dataset``: the data set's name in the config. ``labels`` int64 [N] over all its rows: the
    place in ``classes``, -1 where the row is not scored. ``rows``: ascending. ``by_client``: the
    rows on which each client's own model is scored, all of ``rows`` where it is None; the shared
    model is scored on ``rows`` and averaged over clients in the same way. ``candidates`` bool
    [G, C]: the classes that a row is chosen from. With ``tasks`` int64 [N] row r is of group
    ``tasks[r]``; without them the groups are the clients, which needs ``by_client`` with no row
    twice.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    labels: Ints
    rows: Ints
    by_client: ClientRows | None = None
    candidates: Bools | None = None
    tasks: Ints | None = None

    def row_candidates(self) -> Bools | None:
        """The classes [len(rows), C] that each row is chosen from, where not all."""
        if self.candidates is None:
            return None
        if self.tasks is not None:
            of_task: Bools = self.candidates[self.tasks[self.rows]]
            return of_task
        if self.by_client is None:
            return None
        owner = np.empty(len(self.labels), dtype=np.int64)
        owner[self.by_client.rows] = self.by_client.owners
        mask: Bools = self.candidates[owner[self.rows]]
        return mask

    def own_candidates(self, clients: Sequence[int], rows: Sequence[Ints]) -> Bools | None:
        """What the models of some clients choose from, each on its own rows; None: all classes.

        [G, C], or [G, L, C] where the rows of one client differ in it: L is the largest number of
        rows, and all classes are open beyond a client's own.
        """
        if self.candidates is None:
            return None
        if self.tasks is None:
            by_client: Bools = self.candidates[list(clients)]
            return by_client
        longest = max((len(own) for own in rows), default=0)
        found = np.ones((len(rows), longest, len(self.classes)), dtype=np.bool_)
        for lane, own in enumerate(rows):
            found[lane, : len(own)] = self.candidates[self.tasks[own]]
        return found

    def client_rows(self, client: int) -> Ints:
        """The rows on which one client's own model is scored, ascending."""
        return self.rows if self.by_client is None else self.by_client[client]


def home_target(population: Population, dataset: Dataset, spec: str) -> Target:
    """Every row that a metric of the population needs, under its own classes."""
    held = population.validation, population.test
    pairs = np.concatenate([np.stack([part.owners, part.rows]) for part in held], axis=1)
    order = np.lexsort((pairs[1], pairs[0]))
    counts = np.bincount(pairs[0], minlength=population.num_clients)
    own = ClientRows(np.cumsum([0, *counts.tolist()], dtype=np.int64), pairs[1][order])
    both = (population.global_validation, population.global_test, own.rows)
    rows = np.unique(np.concatenate(both))
    classes, labels = population.classes, population.labels
    target = Target(HOME, spec, classes, dataset.templates, labels, rows, by_client=own)
    return _by_task(target, dataset)


def on_rows(
    name: str, spec: str, dataset: Dataset, classes: tuple[str, ...], labels: Ints
) -> Target:
    """The rows with a label (int64 [N], -1 for the others); everybody is scored on all of them."""
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise DataError(f"protocol: {name} of data set {dataset.name!r} has no test row.")
    return _by_task(Target(name, spec, classes, dataset.templates, labels, rows), dataset)


def on_clients(
    name: str, spec: str, dataset: Dataset, population: Population, held: ClientRows
) -> Target:
    """Rows of the population, some for each client, under the population's own classes."""
    rows, labels = np.unique(held.rows), population.labels
    classes = population.classes
    target = Target(name, spec, classes, dataset.templates, labels, rows, by_client=held)
    return _by_task(target, dataset)


def _by_task(target: Target, dataset: Dataset) -> Target:
    """Each row is chosen from the classes of its own task, where the domains are tasks."""
    candidates = candidates_among(dataset, target.classes)
    if candidates is None:
        return target
    return replace(target, candidates=candidates, tasks=dataset.domain_ids)


def candidates_among(dataset: Dataset, classes: Sequence[str]) -> Bools | None:
    """The classes of each task as bool [D, len(classes)]; None where domains are no tasks."""
    if dataset.candidates is None:
        return None
    place = {name: code for code, name in enumerate(dataset.classes)}
    found = np.zeros((len(dataset.domains), len(classes)), dtype=np.bool_)
    for column, name in enumerate(classes):
        if name in place:
            found[:, column] = dataset.candidates[:, place[name]]
    return found


def refuse_overlap(
    dataset: Dataset, population: Population, others: Sequence[tuple[Target, Dataset]]
) -> None:
    """DataError where an item that is trained or validated on is also among those tested on.

    Compared by content, over the population's own test rows and the rows of all other targets; of
    the population's own data set also by concept.
    """
    learned = np.concatenate([population.train.rows, population.validation.rows])
    learned = np.union1d(learned, np.union1d(population.global_validation, population.public))
    seen = as_items(dataset.content_hashes)[learned]
    tests = [("test", dataset, np.union1d(population.global_test, population.test.rows))]
    tests += [(target.name, data, target.rows) for target, data in others]
    faults = []
    for name, data, rows in tests:
        shared = rows[np.isin(as_items(data.content_hashes)[rows], seen)]
        what = "are also"
        if not len(shared) and data is dataset:
            shared = rows[np.isin(data.concept_ids[rows], dataset.concept_ids[learned])]
            what = "show a concept that is also"
        if len(shared):
            listed = f"rows {shared[:_NUM_LISTED].tolist()}"
            faults.append(
                f"{len(shared)} of the {len(rows)} {data.modality}s of {name} ({data.name}) "
                f"{what} trained or validated on: {listed}"
            )
    if faults:
        raise DataError(
            "a test would not be one: " + ";\n  ".join(faults) + ". Remove these from one side; "
            "`fedarena data inspect` lists duplicates."
        )
