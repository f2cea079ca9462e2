"""A data set's rows dealt out to clients: training rows by partition, the others as they go."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.carve import MAX_VALIDATION_SHOTS, Cut, carve
from scenarios.client_rows import ClientRows, count_labels
from scenarios.data.dataset import Dataset
from scenarios.partitions import Natural, Partition, Pool, by_owner, natural_ids, share_out, split
from scenarios.partitions.natural import client_numbers
from scenarios.partitions.pool import NOBODY

Ints = npt.NDArray[np.int64]
ShotsPer = Literal["federation", "client"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dealt:
    """Who holds which rows. The global sets also hold rows that no client got.

    ``client_names``: the data's own names of the clients, where the partition is ``natural``.
    """

    train: ClientRows
    validation: ClientRows
    test: ClientRows
    global_validation: Ints
    global_test: Ints
    client_names: tuple[str, ...] | None = None

    def at(self, rows: Ints) -> Dealt:
        """The same where row i of what was dealt is ``rows[i]`` of a larger data set."""
        return replace(
            self,
            train=self.train.at(rows),
            validation=self.validation.at(rows),
            test=self.test.at(rows),
            global_validation=rows[self.global_validation],
            global_test=rows[self.global_test],
        )


def deal(
    dataset: Dataset,
    cut: Cut,
    partition: Partition,
    num_clients: int | None,
    *,
    shots_per: ShotsPer = "federation",
) -> Dealt:
    """Carve the data set, partition its training rows, and let the other rows follow them.

    A validation or test row goes to the holders of its class in proportion to their training rows
    of it; for partitions by domain to the holders of its class in its domain; for ``natural`` to
    its own client where the data name one. A row that nobody can hold stays in the global set
    only. With ``shots_per`` client the partition deals out all training rows, and each client then
    keeps cut.shots of each class that it holds, and at most min(shots, 4) validation rows of it.
    """
    per_client = cut.shots is not None and shots_per == "client"
    rows = carve(dataset, replace(cut, shots=None) if per_client else cut)
    clients = None if dataset.client_ids is None else dataset.client_ids[rows.train]
    pool = Pool(dataset.labels[rows.train], dataset.domain_ids[rows.train], clients)
    shares = split(
        partition, pool.labels, num_clients, cut.seed, domains=pool.domains, clients=clients
    )
    train = ClientRows.of([rows.train[share] for share in shares])
    if per_client and cut.shots is not None:
        _refuse_short(train, dataset, cut.shots)
        train = _few(train, dataset, cut.shots, cut.seed)
    ids = natural_ids(partition, pool, cut.seed) if isinstance(partition, Natural) else None

    def follow(further: Ints, part: str) -> ClientRows:
        rng = np.random.default_rng(derive(cut.seed, "population", "follow", part))
        owners = _followers(partition, dataset, train, further, rng)
        if ids is not None and dataset.client_ids is not None:
            own = dataset.client_ids[further]
            owners = np.where(own == NOBODY, owners, client_numbers(own, ids))
        _tell_left_out(part, int((owners == NOBODY).sum()))
        return ClientRows.of([further[share] for share in by_owner(owners, len(shares))])

    validation = follow(rows.validation, "validation")
    if per_client and cut.shots is not None:
        validation = _few(validation, dataset, min(cut.shots, MAX_VALIDATION_SHOTS), cut.seed)
    return Dealt(
        train=train,
        validation=validation,
        test=follow(rows.test, "test"),
        global_validation=np.sort(validation.rows) if per_client else rows.validation,
        global_test=rows.test,
        client_names=None if ids is None else tuple(dataset.clients[i] for i in ids),
    )


def _followers(
    partition: Partition,
    dataset: Dataset,
    train: ClientRows,
    further: Ints,
    rng: np.random.Generator,
) -> Ints:
    """The client [n] of each further row: a holder of its label, or of its domain and label."""
    kinds, num_kinds = dataset.labels, len(dataset.classes)
    if partition.follows == "domain":
        kinds = dataset.domain_ids * num_kinds + kinds
        num_kinds *= len(dataset.domains)
    num_clients = len(train.offsets) - 1
    # Only the kinds that occur, since clients times domains times classes can be very many.
    known, codes = np.unique(kinds[train.rows], return_inverse=True)
    held = count_labels(train.owners, codes, num_clients, len(known))
    place = np.minimum(np.searchsorted(known, kinds[further]), len(known) - 1)
    is_held = known[place] == kinds[further]
    owners = np.full(len(further), NOBODY, dtype=np.int64)
    owners[is_held] = share_out(held, place[is_held], rng)
    return owners


def _few(held: ClientRows, dataset: Dataset, shots: int, seed: int) -> ClientRows:
    """At most ``shots`` rows of each client and class; those of fewer shots are among them."""
    cells = held.owners * len(dataset.classes) + dataset.labels[held.rows]
    rng = np.random.default_rng(derive(seed, "population", "client shots"))
    shuffled = rng.permutation(len(cells))
    by_cell = shuffled[np.argsort(cells[shuffled], kind="stable")]
    _, starts, sizes = np.unique(cells[by_cell], return_index=True, return_counts=True)
    rank = np.arange(len(cells)) - np.repeat(starts, sizes)
    kept = np.sort(by_cell[rank < shots])
    counts = np.bincount(held.owners[kept], minlength=len(held.counts))
    return ClientRows(np.cumsum([0, *counts.tolist()], dtype=np.int64), held.rows[kept])


def _refuse_short(train: ClientRows, dataset: Dataset, shots: int) -> None:
    num_classes = len(dataset.classes)
    counts = count_labels(
        train.owners, dataset.labels[train.rows], len(train.offsets) - 1, num_classes
    )
    short = (counts > 0) & (counts < shots)
    if short.any():
        client, label = map(int, np.argwhere(short)[0])
        raise DataError(
            f"shots={shots} per client: in {int(short.sum())} of {int((counts > 0).sum())} cases a "
            f"client holds a class with fewer training rows, such as client {client} with "
            f"{int(counts[client, label])} of {dataset.classes[label]!r}. Set shots to "
            f"{int(counts[counts > 0].min())} or less, or use fewer clients, or a partition of "
            "whole classes such as pathological with class_assignment_mode=deterministic."
        )


def _tell_left_out(part: str, count: int) -> None:
    if count:
        logger.info("%d %s rows are of a kind that no client trains on: global only", count, part)
