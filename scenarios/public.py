"""Public examples: training rows that no client gets, and whose labels nobody has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_core.seeds import derive
from scenarios.carve import group_rows
from scenarios.data.dataset import TRAIN, Dataset

Ints = npt.NDArray[np.int64]


def public_rows(dataset: Dataset, candidates: Ints, fraction: float, seed: int) -> Ints:
    """About ``fraction`` of the training rows among ``candidates``, ascending.

    dataset: with train or test for every row that names no split. What shows the same thing is
    taken as a whole or not at all, and not where a part of it is for validation or test. The draw
    does not look at labels.
    """
    if not fraction:
        return np.empty(0, dtype=np.int64)
    groups = group_rows(dataset)
    is_free = np.zeros(len(dataset), dtype=np.bool_)
    is_free[candidates] = dataset.split[candidates] == TRAIN
    mixed = np.unique(groups[~is_free])
    pool = np.flatnonzero(is_free & ~np.isin(groups, mixed))
    names = np.unique(groups[pool])
    order = np.random.default_rng(derive(seed, "population", "public")).permutation(names)
    sizes = np.bincount(np.searchsorted(names, groups[pool]), minlength=len(names))
    taken = np.cumsum(sizes[np.searchsorted(names, order)])
    wanted = round(fraction * int(is_free.sum()))
    chosen = order[: int(np.searchsorted(taken, wanted, side="right"))]
    found: Ints = pool[np.isin(groups[pool], chosen)]
    return found
