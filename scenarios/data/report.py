"""What there is to know about a data set before it is used: counts, copies, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.data.dataset import (
    TEST,
    TRAIN,
    UNSPECIFIED,
    VALIDATION,
    Bytes,
    Dataset,
    Ints,
    as_items,
    hash_array,
)
from scenarios.data.draft import Draft, finish
from scenarios.data.hashing import Look, look_at_all

SPLIT_NAMES: Mapping[int, str] = {
    TRAIN: "train",
    VALIDATION: "validation",
    TEST: "test",
    UNSPECIFIED: "no split",
}
NEARLY_EMPTY = 5


@dataclass(frozen=True)
class Repeats:
    """Rows that are copies of others. ``across``, ``mislabelled``: pairs of rows, one per content.

    ``within``: split to the number of rows that repeat an earlier one of that split.
    """

    within: Mapping[str, int]
    across: tuple[tuple[int, int], ...]
    mislabelled: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """All that was found. ``sizes``: [N, 2], width and height, or characters and 1; 0 if broken.

    ``broken``: what cannot be used, one line each. ``dataset`` is None where something is broken,
    or where ``refusal`` says why the parts make no data set.
    """

    draft: Draft
    splits: Mapping[str, int]
    classes: Mapping[str, int]
    domains: Mapping[str, int]
    clients: Mapping[str, int]
    sizes: Ints
    broken: tuple[str, ...]
    repeats: Repeats
    dataset: Dataset | None
    refusal: str

    @property
    def nearly_empty(self) -> dict[str, int]:
        """Classes with fewer than ``NEARLY_EMPTY`` rows, the emptiest first."""
        few = ((count, name) for name, count in self.classes.items() if count < NEARLY_EMPTY)
        return {name: count for count, name in sorted(few)}


def inspect_draft(draft: Draft) -> Report:
    """Look at every item of a data set; nothing found ends the search."""
    num_rows = len(draft.labels)
    looks = list(look_at_all(draft.items, draft.modality, np.arange(num_rows)))
    faults = [_fault(draft, row, look) for row, look in enumerate(looks)]
    is_sound = np.array([not fault for fault in faults], dtype=np.bool_)
    hashes = hash_array([look.digest or bytes(32) for look in looks])
    split = np.array(draft.split or [UNSPECIFIED] * num_rows)
    dataset, refusal = None, ""
    if is_sound.all():
        try:
            dataset = finish(draft, hashes)
        except DataError as error:
            refusal = str(error)
    held = Counter(draft.labels)
    return Report(
        draft=draft,
        splits={name: int((split == code).sum()) for code, name in SPLIT_NAMES.items()},
        classes={name: held[name] for name in sorted({*draft.classes, *held})},
        domains=_counted(draft.domains),
        clients=_counted(client for client in draft.clients if client is not None),
        sizes=np.array([look.size for look in looks], dtype=np.int64).reshape(-1, 2),
        broken=tuple(fault for fault in faults if fault),
        repeats=find_repeats(hashes, is_sound, split, draft.labels),
        dataset=dataset,
        refusal=refusal,
    )


def find_repeats(
    hashes: Bytes,
    is_sound: npt.NDArray[np.bool_],
    split: npt.NDArray[np.int64],
    labels: Iterable[str],
) -> Repeats:
    """Copies among the sound rows, by content hash uint8 [N, 32]."""
    rows = np.flatnonzero(is_sound)
    _, ids = np.unique(as_items(hashes[rows]), return_inverse=True)
    _, label_ids = np.unique(np.array(list(labels)), return_inverse=True)
    within = {}
    for code, name in SPLIT_NAMES.items():
        mine = ids[split[rows] == code]
        within[name] = len(mine) - len(np.unique(mine))
    return Repeats(
        within={name: count for name, count in within.items() if count},
        across=_pairs(rows, ids, split[rows]),
        mislabelled=_pairs(rows, ids, label_ids[rows]),
    )


def _pairs(rows: Ints, ids: Ints, marks: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """For each content that occurs with several marks, its first row and the first that differs."""
    order = np.lexsort((rows, ids))
    firsts = order[np.searchsorted(ids[order], ids)]  # the first row with the same content
    differs = marks != marks[firsts]
    found: dict[int, int] = {}
    for place in np.flatnonzero(differs).tolist():
        found.setdefault(int(firsts[place]), place)
    return tuple((int(rows[first]), int(rows[other])) for first, other in sorted(found.items()))


def _fault(draft: Draft, row: int, look: Look) -> str:
    if look.fault or draft.recorded is None:
        return look.fault
    if look.digest == draft.recorded[row].tobytes():
        return ""
    where = draft.items.where(row)
    return f"{where}: not the {draft.modality} whose content hash was recorded"


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
