"""Training, validation and test rows of a data set, disjoint by construction.

Rows that show the same thing (one content hash, or one concept) form a group. A group lies on one
side only, so no split can leak into another through a copy or through another view.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED, Dataset

Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

MAX_VALIDATION_SHOTS = 4
FIXED = -1
_NUM_LISTED = 10


@dataclass(frozen=True)
class Rows:
    """Disjoint rows of one data set, each ascending."""

    train: Ints
    validation: Ints
    test: Ints


@dataclass(frozen=True)
class Cut:
    """How much goes where. ``shots`` counts training rows per class; None means all of them."""

    shots: int | None
    validation_fraction: float
    test_fraction: float
    seed: int


def carve(dataset: Dataset, cut: Cut) -> Rows:
    """Training, validation and test rows.

    Test is the data set's own test split, or ``test_fraction`` of the rows where it names none.
    Validation comes from the training split: about ``validation_fraction`` of each class; with
    ``shots`` at most min(shots, 4) per class, and none where the fraction is 0. A class with one
    group only has no validation row. DataError for a leak between the given splits, a class
    without a training row, or fewer rows than ``shots``.
    """
    groups = group_rows(dataset)
    pool, test = _test_split(dataset, groups, cut)
    movable = _movable(groups, dataset.labels)
    rng = _rng(cut, "validation")
    train, validation = [], []
    for label in range(len(dataset.classes)):
        rows = pool[dataset.labels[pool] == label]
        wanted = _num_validation(cut, len(rows))
        # Without shots the rounding to whole groups is random, so that many small classes together
        # give the fraction; with shots, groups that hold all that is wanted, and are cut.
        rounding = rng.random() if cut.shots is None else 0.0
        kept, aside = _set_aside(rows, movable, wanted, rounding, rng)
        train.append(kept[: cut.shots])
        validation.append(aside if cut.shots is None else aside[: int(wanted)])
    _refuse_missing(dataset, train)
    _refuse_short(dataset, train, cut.shots)
    bare = sum(not len(part) for part in validation)
    if cut.validation_fraction > 0 and bare:
        logger.info("%s: %d classes have no validation row", dataset.name, bare)
    return Rows(np.sort(np.concatenate(train)), np.sort(np.concatenate(validation)), test)


def group_rows(dataset: Dataset) -> Ints:
    """A group id [N] for each row; rows with one content hash or one concept share it."""
    _, concepts = np.unique(dataset.concept_ids, return_inverse=True)
    copies = _copies(dataset)
    by_copy = np.argsort(copies, kind="stable")
    same = copies[by_copy[1:]] == copies[by_copy[:-1]]
    first, second = concepts[by_copy[:-1][same]], concepts[by_copy[1:][same]]
    parent = np.arange(len(dataset))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for left, right in zip(first.tolist(), second.tolist(), strict=True):
        a, b = sorted((root(left), root(right)))
        parent[b] = a
    return np.array([root(node) for node in range(len(dataset))], dtype=np.int64)[concepts]


def _copies(dataset: Dataset) -> Ints:
    """An id [N] for each row; rows with one content hash share it."""
    items = np.ascontiguousarray(dataset.content_hashes).view("V32").ravel()
    return np.unique(items, return_inverse=True)[1]


def _movable(groups: Ints, labels: Ints) -> Ints:
    """The groups [N], with FIXED for those that reach into several classes."""
    pairs = np.unique(np.stack([groups, labels]), axis=1)[0]
    return np.where((np.bincount(pairs, minlength=len(groups)) > 1)[groups], FIXED, groups)


def _num_validation(cut: Cut, num_rows: int) -> float:
    """Validation rows wanted of one class with that many rows to train and validate on."""
    if cut.shots is None or cut.validation_fraction == 0:
        return cut.validation_fraction * num_rows
    return max(0, min(cut.shots, MAX_VALIDATION_SHOTS, num_rows - cut.shots))


def _set_aside(
    rows: Ints, groups: Ints, wanted: float, rounding: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """One class's rows, shuffled: those to keep, and whole groups of about ``wanted`` rows.

    A group is set aside where less than ``wanted`` is reached at that fraction of it which
    ``rounding`` says: at 0 the groups reach what is wanted, at a random number from 0 to 1 they
    hold it in expectation. The last group, and FIXED ones, are kept.
    """
    shuffled = rng.permutation(rows)
    fixed, shuffled = shuffled[groups[shuffled] == FIXED], shuffled[groups[shuffled] != FIXED]
    _, firsts, members = np.unique(groups[shuffled], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(firsts))[members]  # groups in the order of their first row
    by_group = shuffled[np.argsort(rank, kind="stable")]
    sizes = np.bincount(rank)[:-1]
    starts = np.cumsum(sizes) - sizes
    end = int(sizes[starts + rounding * sizes < wanted].sum())
    return rng.permutation(np.concatenate([fixed, by_group[end:]])), by_group[:end]


def _test_split(dataset: Dataset, groups: Ints, cut: Cut) -> tuple[Ints, Ints]:
    """Rows to train and validate on, and test rows."""
    unspecified = dataset.split == UNSPECIFIED
    if unspecified.all():
        rng, movable = _rng(cut, "test"), _movable(groups, dataset.labels)
        parts = [np.empty(0, dtype=np.int64)]
        for label in range(len(dataset.classes)):
            rows = np.flatnonzero(dataset.labels == label)
            wanted = cut.test_fraction * len(rows)
            parts.append(_set_aside(rows, movable, wanted, 0.0, rng)[1])
        test = np.sort(np.concatenate(parts))
        return np.setdiff1d(np.arange(len(dataset)), test), test
    if unspecified.any():
        raise DataError(
            f"data set {dataset.name!r}: {int(unspecified.sum())} of {len(dataset)} rows have no "
            "split. Give every row train or test, or none of them."
        )
    train, test = np.flatnonzero(dataset.split == TRAIN), np.flatnonzero(dataset.split == TEST)
    _refuse_leaks(dataset, train, test)
    return train, test


def _refuse_leaks(dataset: Dataset, train: Ints, test: Ints) -> None:
    for ids, what in ((_copies(dataset), "images"), (dataset.concept_ids, "concepts")):
        shared = np.intersect1d(ids[train], ids[test])
        if not len(shared):
            continue
        pairs = []
        for item in shared[:_NUM_LISTED]:
            left, right = (int(rows[ids[rows] == item][0]) for rows in (train, test))
            where = dataset.images.where
            pairs.append(f"train row {left} ({where(left)}) and test row {right} ({where(right)})")
        listed = "\n  ".join(pairs)
        raise DataError(
            f"data set {dataset.name!r}: its train and test splits have {len(shared)} {what} in "
            f"common:\n  {listed}\nRemove one side of each pair."
        )


def _refuse_missing(dataset: Dataset, train: list[Ints]) -> None:
    missing = [dataset.classes[label] for label, part in enumerate(train) if not len(part)]
    if missing:
        raise DataError(
            f"data set {dataset.name!r}: {len(missing)} of {len(dataset.classes)} classes have no "
            f"training row: {', '.join(map(repr, missing[:_NUM_LISTED]))}. Add training images of "
            "them, or remove them from the classes (and from the test split)."
        )


def _refuse_short(dataset: Dataset, train: list[Ints], shots: int | None) -> None:
    short = sorted((len(part), dataset.classes[label]) for label, part in enumerate(train))
    short = [item for item in short if shots is not None and item[0] < shots]
    if short:
        listed = ", ".join(f"{name!r} ({count})" for count, name in short[:_NUM_LISTED])
        raise DataError(
            f"shots={shots}: {len(short)} classes of data set {dataset.name!r} have fewer rows to "
            f"train on: {listed}. Set shots to {short[0][0]} or less (validation_fraction=0 leaves "
            "more rows to train on)."
        )


def _rng(cut: Cut, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(cut.seed, "population", purpose))
