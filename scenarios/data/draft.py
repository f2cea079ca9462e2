"""A data set as its files describe it, before anybody has looked at its images or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.data.dataset import (
    DEFAULT_TEMPLATES,
    NO_DOMAINS,
    TEST,
    TRAIN,
    UNSPECIFIED,
    VALIDATION,
    Bools,
    Bytes,
    Dataset,
    Ints,
    ItemSource,
    Modality,
    as_items,
)

SPLIT_CODES: Mapping[str, int] = MappingProxyType(
    {
        "train": TRAIN,
        "test": TEST,
        "val": VALIDATION,
        "valid": VALIDATION,
        "validation": VALIDATION,
        "": UNSPECIFIED,
    }
)
NUM_LISTED = 10


class VersionedItems(ItemSource, Protocol):
    """Items that tell when they may have changed, so that their hashes can be kept."""

    def place(self) -> str:
        """What the items belong to: a folder or a file."""
        ...

    def versions(self) -> list[str]:
        """One text per row that changes whenever the row's file does."""
        ...


@dataclass(frozen=True, eq=False)
class Draft:
    """Everything about N rows but the hashes of their content.

    Sequences are of length N, or empty where the data say nothing. A row of ``clients`` is None
    where it has no owner. ``recorded``: content hashes uint8 [N, 32] that the data bring along.
    ``drop_repeats``: leave out training and validation rows that are copies of a test row.
    ``families``: domain to family, where the domains are tasks with classes of their own.
    ``responses``: as in ``Dataset``.
    """

    name: str
    items: VersionedItems
    labels: Sequence[str]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    domains: Sequence[str] = ()
    clients: Sequence[str | None] = ()
    concepts: Sequence[str] = ()
    split: Sequence[int] = ()
    recorded: Bytes | None = None
    name_aligned: npt.NDArray[np.bool_] | None = None
    modality: Modality = "image"
    class_order: tuple[str, ...] = ()
    drop_repeats: bool = False
    families: Mapping[str, str] = field(default_factory=dict)
    responses: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True)
class ChosenItems:
    """Some rows of other items."""

    items: ItemSource
    rows: Ints

    def read(self, row: int) -> bytes:
        return self.items.read(int(self.rows[row]))

    def where(self, row: int) -> str:
        return self.items.where(int(self.rows[row]))


def finish(draft: Draft, hashes: Bytes) -> Dataset:
    """The data set of a draft, with content hashes uint8 [N, 32] of its rows."""
    dataset = _build(draft, hashes)
    if not draft.drop_repeats:
        return dataset
    items = as_items(hashes)
    in_test = dataset.split == TEST
    kept = np.flatnonzero(in_test | ~np.isin(items, items[in_test]))
    return take(dataset, kept, ChosenItems(draft.items, kept))


def take(dataset: Dataset, rows: Ints, items: ItemSource) -> Dataset:
    """The data set of some rows, whose items are ``items``."""
    aligned, owners = dataset.name_aligned, dataset.client_ids
    return replace(
        dataset,
        labels=dataset.labels[rows],
        domain_ids=dataset.domain_ids[rows],
        concept_ids=dataset.concept_ids[rows],
        split=dataset.split[rows],
        content_hashes=dataset.content_hashes[rows],
        items=items,
        name_aligned=None if aligned is None else aligned[rows],
        client_ids=None if owners is None else owners[rows],
        responses=tuple(dataset.responses[row] for row in rows) if dataset.responses else (),
    )


def _build(draft: Draft, hashes: Bytes) -> Dataset:
    num_rows = len(draft.labels)
    classes = tuple(sorted(set(draft.classes or draft.labels)))
    unknown = sorted(set(draft.labels) - set(classes))
    if unknown:
        raise DataError(f"{draft.name}: labels {unknown[:NUM_LISTED]} are not among its classes.")
    labels = _codes(draft.labels, classes)
    domains = tuple(sorted(set(draft.domains))) or NO_DOMAINS
    clients = tuple(sorted({client for client in draft.clients if client is not None}))
    index = {client: code for code, client in enumerate(clients)}
    domain_ids = _codes(draft.domains or domains * num_rows, domains)
    owners = (-1 if client is None else index[client] for client in draft.clients)
    return Dataset(
        name=draft.name,
        classes=classes,
        templates=draft.templates,
        labels=labels,
        domains=domains,
        domain_ids=domain_ids,
        concept_ids=_concept_ids(draft.concepts, labels),
        split=np.array(draft.split or [UNSPECIFIED] * num_rows, dtype=np.int8),
        content_hashes=hashes,
        items=draft.items,
        name_aligned=draft.name_aligned,
        client_ids=np.fromiter(owners, dtype=np.int64, count=num_rows) if clients else None,
        clients=clients,
        modality=draft.modality,
        class_order=draft.class_order,
        families=tuple(draft.families[domain] for domain in domains) if draft.families else (),
        candidates=_candidates(draft, domain_ids, labels, (len(domains), len(classes))),
        responses=tuple(draft.responses),
    )


def _candidates(
    draft: Draft, domain_ids: Ints, labels: Ints, shape: tuple[int, int]
) -> Bools | None:
    """The classes that occur in each task, bool [D, C]."""
    if not draft.families:
        return None
    found = np.zeros(shape, dtype=np.bool_)
    found[domain_ids, labels] = True
    return found


def _codes(values: Sequence[str], names: tuple[str, ...]) -> Ints:
    index = {name: code for code, name in enumerate(names)}
    return np.fromiter((index[value] for value in values), dtype=np.int64, count=len(values))


def _concept_ids(concepts: Sequence[str], labels: Ints) -> Ints:
    """Concepts as ids [N]; each row is its own where the column only repeats the label."""
    if concepts:
        _, ids = np.unique(np.array(concepts), return_inverse=True)
        num_pairs = len(np.unique(np.stack([ids, labels]), axis=1).T)
        if not num_pairs == len(np.unique(ids)) == len(np.unique(labels)):
            return ids.astype(np.int64)
    return np.arange(len(labels))
