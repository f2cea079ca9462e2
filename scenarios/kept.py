"""The rows of a data set that a protocol leaves for training, and those that it holds out."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError, did_you_mean
from scenarios.data.dataset import Bools, Dataset
from scenarios.data.draft import ChosenItems
from scenarios.data.draft import take as take_rows
from scenarios.targets import candidates_among

Ints = npt.NDArray[np.int64]


class Kept(NamedTuple):
    """Rows of a data set that may be trained on, ascending, and the classes they are told by."""

    rows: Ints
    classes: tuple[str, ...]


def take(dataset: Dataset, kept: Kept) -> Dataset:
    """Some rows of a data set as one of their own, with classes of its own."""
    place = np.searchsorted(np.array(kept.classes), np.array(dataset.classes))
    order = tuple(name for name in dataset.class_order if name in kept.classes)
    chosen = take_rows(dataset, kept.rows, ChosenItems(dataset.items, kept.rows))
    return replace(
        chosen,
        classes=kept.classes,
        labels=place[chosen.labels],
        class_order=order,
        candidates=candidates_among(dataset, kept.classes),
    )


def in_domain(dataset: Dataset, domain: str) -> Bools:
    found: Bools = dataset.domain_ids == dataset.domains.index(domain)
    return found


def without_domain(dataset: Dataset, domain: str, path: str) -> Kept:
    if domain not in dataset.domains or len(dataset.domains) < 2:
        known = ", ".join(dataset.domains)
        raise DataError(
            f"{path} = {domain!r} is not one of several domains of {dataset.name!r} (it has: "
            f"{known}).{did_you_mean(domain, dataset.domains)}"
        )
    return rest(dataset, in_domain(dataset, domain))


def task_names(dataset: Dataset) -> tuple[str, ...]:
    """What a task may be called: the domains, and the families that they are of."""
    return tuple(dict.fromkeys((*dataset.domains, *dataset.families)))


def in_task(dataset: Dataset, task: str) -> Bools:
    """The rows [N] of a domain, or of all domains of a family; none where nothing is called so."""
    if task in dataset.domains:
        return in_domain(dataset, task)
    of_family = np.array([family == task for family in dataset.families], dtype=np.bool_)
    return of_family[dataset.domain_ids] if len(of_family) else np.zeros(len(dataset), np.bool_)


def rest(dataset: Dataset, held_out: Bools) -> Kept:
    """The rows [N] that are not held out, and their classes."""
    rows = np.flatnonzero(~held_out)
    classes = tuple(dataset.classes[c] for c in np.unique(dataset.labels[rows]))
    return Kept(rows, classes)
