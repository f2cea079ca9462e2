"""Training, validation and test rows of a data set, disjoint by construction.

Rows that show the same thing (one content hash, or one concept) form a group. A group lies on one
side only, so no split can leak into another through a copy or through another view.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED, VALIDATION, Dataset, as_items
from scenarios.partitions.pool import rows_by_value

Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

MAX_VALIDATION_SHOTS = 4
FIXED = -1
_NUM_LISTED = 10
_SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


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
    Validation is its own validation split, or about ``validation_fraction`` of each class of the
    training split; with ``shots`` at most min(shots, 4) rows per class of either, and none where
    the fraction is 0. The training rows of fewer shots are among those of more. A class with one
    group only has no validation row that is not its own. DataError for a leak between the given
    splits, a class without a training row, or fewer rows than ``shots``.
    """
    groups = group_rows(dataset)
    pool, given, test = _splits(dataset, groups, cut)
    movable = _movable(groups, dataset.labels)
    rng = _rng(cut, "validation")
    train, validation = [], []
    by_label, given_by_label = (dict(rows_by_value(dataset.labels[part])) for part in (pool, given))
    nothing = np.empty(0, dtype=np.int64)
    fraction = 0.0 if len(given) else cut.validation_fraction
    for label in range(len(dataset.classes)):
        rows = pool[by_label.get(label, nothing)]
        own = given[given_by_label.get(label, nothing)]
        if cut.shots is None:
            kept, aside = _by_fraction(rows, movable, fraction, rng)
            aside = own if len(given) else aside
        else:
            kept, aside = _by_shots(rows, own if len(given) else None, movable, cut, rng)
        train.append(kept)
        validation.append(aside if cut.validation_fraction else aside[:0])
    _refuse_missing(dataset, train)
    _refuse_short(dataset, train, cut.shots)
    bare = sum(not len(part) for part in validation)
    if cut.validation_fraction > 0 and bare:
        logger.info("%s: %d classes have no validation row", dataset.name, bare)
    return Rows(np.sort(np.concatenate(train)), np.sort(np.concatenate(validation)), test)


def with_test_split(dataset: Dataset, cut: Cut) -> Dataset:
    """The data set with a split for every row.

    Where no row is a test row, ``test_fraction`` of the training rows become that: of all rows
    where the data name no split.
    """
    if (dataset.split == TEST).any():
        return dataset
    groups = group_rows(dataset)
    train, _, test = _splits(dataset, groups, cut)
    if not len(test):
        test = _drawn_test(dataset.labels, train, groups, cut)
    split = np.where(dataset.split == UNSPECIFIED, np.int8(TRAIN), dataset.split)
    split[test] = TEST
    return replace(dataset, split=split)


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

    joined = first != second
    for left, right in zip(first[joined].tolist(), second[joined].tolist(), strict=True):
        a, b = sorted((root(left), root(right)))
        parent[b] = a
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    groups: Ints = parent[concepts]
    return groups


def _copies(dataset: Dataset) -> Ints:
    """An id [N] for each row; rows with one content hash share it."""
    return np.unique(as_items(dataset.content_hashes), return_inverse=True)[1]


def _movable(groups: Ints, labels: Ints) -> Ints:
    """The groups [N], with FIXED for those that reach into several classes."""
    pairs = np.unique(np.stack([groups, labels]), axis=1)[0]
    return np.where((np.bincount(pairs, minlength=len(groups)) > 1)[groups], FIXED, groups)


def _by_fraction(
    rows: Ints, movable: Ints, fraction: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """One class's training rows, and about that fraction of them to validate on."""
    # The rounding to whole groups is random, so that many small classes together give the fraction.
    return _set_aside(rows, movable, fraction * len(rows), rng.random(), rng)


def _by_shots(
    rows: Ints, given: Ints | None, movable: Ints, cut: Cut, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """One class's training rows and at most min(shots, 4) rows to validate on.

    Groups of four rows are reserved for validation whatever ``shots`` is, and training takes them
    last, so the rows of fewer shots are among those of more.
    """
    shots = cut.shots
    assert shots is not None  # carve() asks only then
    num_wanted = min(shots, MAX_VALIDATION_SHOTS)
    if given is not None:
        return rng.permutation(rows)[:shots], rng.permutation(given)[:num_wanted]
    reserve = MAX_VALIDATION_SHOTS if cut.validation_fraction else 0
    kept, aside = _set_aside(rows, movable, reserve, 0.0, rng)
    train = np.concatenate([kept, aside[::-1]])[:shots]
    free = aside[~np.isin(movable[aside], movable[train])]
    return train, free[:num_wanted]


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


def _splits(dataset: Dataset, groups: Ints, cut: Cut) -> tuple[Ints, Ints, Ints]:
    """Rows to train on (and to validate on, where none are given), given validation, test rows."""
    unspecified = dataset.split == UNSPECIFIED
    if unspecified.all():
        everything, nothing = np.arange(len(dataset)), np.empty(0, dtype=np.int64)
        test = _drawn_test(dataset.labels, everything, groups, cut)
        return np.setdiff1d(everything, test), nothing, test
    if unspecified.any():
        raise DataError(
            f"data set {dataset.name!r}: {int(unspecified.sum())} of {len(dataset)} rows have no "
            "split. Give every row train, validation or test, or none of them."
        )
    given = {name: np.flatnonzero(dataset.split == code) for name, code in _SPLITS.items()}
    _refuse_leaks(dataset, given)
    return given["train"], given["validation"], given["test"]


def _drawn_test(labels: Ints, train: Ints, groups: Ints, cut: Cut) -> Ints:
    """``test_fraction`` of each class of the training rows, ascending."""
    rng, movable = _rng(cut, "test"), _movable(groups, labels)
    parts = [np.empty(0, dtype=np.int64)]
    for _, places in rows_by_value(labels[train]):
        wanted = cut.test_fraction * len(places)
        parts.append(_set_aside(train[places], movable, wanted, 0.0, rng)[1])
    return np.sort(np.concatenate(parts))


def _refuse_leaks(dataset: Dataset, given: dict[str, Ints]) -> None:
    faults, where = [], dataset.items.where
    columns = {f"{dataset.modality}s": _copies(dataset), "concepts": dataset.concept_ids}
    for what, ids in columns.items():
        for (left, left_rows), (right, right_rows) in combinations(given.items(), 2):
            shared, left_at, right_at = np.intersect1d(
                ids[left_rows], ids[right_rows], return_indices=True
            )
            if not len(shared):
                continue
            pairs = zip(left_rows[left_at].tolist(), right_rows[right_at].tolist(), strict=True)
            listed = "\n  ".join(
                f"{left} row {a} ({where(a)}) and {right} row {b} ({where(b)})"
                for a, b in list(pairs)[:_NUM_LISTED]
            )
            faults.append(
                f"data set {dataset.name!r}: its {left} and {right} splits have {len(shared)} "
                f"{what} in common:\n  {listed}\nRemove one side of each pair."
            )
    if faults:
        raise DataError("\n".join(faults))


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
            f"train on: {listed}. Set shots to {short[0][0]} or less."
        )


def _rng(cut: Cut, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(cut.seed, "population", purpose))
