"""Which client holds which training row. Names and meanings as in flwr-datasets' partitioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import ConfigError, DataError
from fl_core.seeds import derive

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MAX_ALPHA = 1e6
_MAX_TRIES = 1000
_MAX_DRAWN_NUMBERS = 20_000_000


@dataclass(frozen=True)
class Iid:
    """Equal shares of the shuffled rows: sizes differ by one at most."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: Literal["iid"] = "iid"


@dataclass(frozen=True)
class Dirichlet:
    """Per class, the clients' shares are one draw from Dirichlet(alpha, ..., alpha).

    Yurochkin et al., 2019, arXiv 1905.12022. The smaller ``alpha``, the more heterogeneous. The
    whole draw is repeated, a bounded number of times, until each client has ``min_examples``
    training rows. With ``self_balancing`` a client above the mean size gets no row of the classes
    still to come.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = 0.5
    min_examples: int = 1
    self_balancing: bool = False

    def __post_init__(self) -> None:
        check_fields(self, alpha="> 0", min_examples=">= 1")
        if self.alpha > _MAX_ALPHA:
            raise ConfigError(
                f"alpha = {self.alpha!r} is not allowed: it must be at most {_MAX_ALPHA:g}. For "
                "equal shares use the partition iid."
            )


Partition = Iid | Dirichlet


def split(partition: Partition, labels: Ints, num_clients: int, seed: int) -> list[Ints]:
    """The positions in ``labels`` [n] that each client holds, ascending; each position once.

    The rows are shuffled, then dealt out, as flwr-datasets' ``FederatedDataset`` does.
    DataError where the request cannot be met.
    """
    if num_clients < 1:
        raise DataError(f"num_clients={num_clients}: must be at least 1.")
    if num_clients > len(labels):
        raise DataError(
            f"{num_clients} clients cannot share {len(labels)} training rows: each needs at least "
            f"one. Set num_clients to {len(labels)} or less, or raise `shots`, or use more data."
        )
    order = _rng(seed, "order").permutation(len(labels))
    if isinstance(partition, Iid):
        return [np.sort(part) for part in np.array_split(order, num_clients)]
    _refuse_impossible_minimum(partition, len(labels), num_clients)
    owners = np.empty(len(labels), dtype=np.int64)
    rng, rounding = _rng(seed, "dirichlet"), _rng(seed, "rounding")
    owners[order] = dirichlet_owners(partition, labels[order], num_clients, rng, rounding)
    return by_owner(owners, num_clients)


def dirichlet_owners(
    partition: Dirichlet,
    labels: Ints,
    num_clients: int,
    rng: np.random.Generator,
    rounding: np.random.Generator | None,
) -> Ints:
    """The client [n] of each row, without shuffling first. DataError after the last try.

    With ``rounding`` None equal to flwr-datasets' ``DirichletPartitioner`` for an equal ``rng``
    (but for the number of tries). That one always rounds down, so what is left of each class goes
    to the last client: with few rows per class it gets several times the others' share.
    ``rounding`` moves each class's cuts by a random fraction of a row, which makes every count
    right in expectation.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(codes, minlength=len(classes))
    num_tries = max(20, min(_MAX_TRIES, _MAX_DRAWN_NUMBERS // (len(classes) * num_clients)))
    best = 0
    for _ in range(num_tries):
        counts = _draw_counts(partition, sizes, num_clients, rng, rounding)
        smallest = int(counts.sum(axis=0).min())
        if smallest >= partition.min_examples:
            owners = np.repeat(np.tile(np.arange(num_clients), len(classes)), counts.ravel())
            result = np.empty(len(labels), dtype=np.int64)
            result[np.argsort(codes, kind="stable")] = owners
            return result
        best = max(best, smallest)
    hints = ["a larger alpha", "fewer clients"]
    hints += [] if partition.self_balancing else ["self_balancing=true"]
    hints += [f"min_examples={best}"] if best >= 1 else []
    raise DataError(
        f"dirichlet partition: no draw of {num_tries} gave each of {num_clients} clients "
        f"min_examples={partition.min_examples} of {len(labels)} training rows in {len(classes)} "
        f"classes with alpha={partition.alpha} (at best the smallest client had {best}). Try "
        f"{', or '.join(hints)}."
    )


def share_out(histogram: Ints, labels: Ints, rng: np.random.Generator) -> Ints:
    """Clients [n] for further rows, so that each client's labels are distributed as before.

    ``histogram`` [num_clients, C] counts what each client holds already. Of the rows with label c,
    client k gets the share histogram[k, c] / histogram[:, c].sum(), rounded up or down at random
    without bias, so a client never gets a class that it does not hold. Every column with a row in
    ``labels`` must have a positive sum.
    """
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        holders = rng.permutation(np.flatnonzero(histogram[:, label]))
        held = np.cumsum(histogram[holders, label])
        # Systematic rounding: one random offset makes each count right in expectation.
        ends = np.floor(held * len(rows) / held[-1] + rng.random()).astype(np.int64)
        ends[-1] = len(rows)
        owners[rows] = np.repeat(holders, np.diff(ends, prepend=0))
    return owners


def by_owner(owners: Ints, num_clients: int) -> list[Ints]:
    """The positions of each client, ascending."""
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=num_clients))
    return np.split(order, ends[:-1])


def _draw_counts(
    partition: Dirichlet,
    sizes: Ints,
    num_clients: int,
    rng: np.random.Generator,
    rounding: np.random.Generator | None,
) -> Ints:
    """How many rows of each class each client gets, int64 [C, num_clients]."""
    counts = np.empty((len(sizes), num_clients), dtype=np.int64)
    held = np.zeros(num_clients, dtype=np.int64)
    mean = sizes.sum() / num_clients
    for label, size in enumerate(sizes):
        shares = rng.dirichlet(np.full(num_clients, partition.alpha))  # [num_clients]
        if partition.self_balancing:
            shares = _balance(shares, held <= mean)
        offset = rounding.random() if rounding is not None else 0.0
        ends = np.minimum(np.cumsum(shares) * size + offset, size).astype(np.int64)
        ends[-1] = size
        counts[label] = np.diff(ends, prepend=0)
        held += counts[label]
    return counts


def _balance(shares: Floats, is_open: npt.NDArray[np.bool_]) -> Floats:
    """Shares of the open clients only, summing to one."""
    kept: Floats = np.where(is_open, shares, 0.0)
    total = sum(kept.tolist())
    if total == 0.0:  # a tiny alpha gave everything to clients that are full
        kept, total = is_open.astype(np.float64), float(is_open.sum())
    balanced: Floats = kept / total
    return balanced


def _refuse_impossible_minimum(partition: Dirichlet, num_rows: int, num_clients: int) -> None:
    if partition.min_examples * num_clients > num_rows:
        raise DataError(
            f"partition.min_examples={partition.min_examples} for {num_clients} clients needs "
            f"{partition.min_examples * num_clients} training rows, there are {num_rows}. "
            f"Set min_examples to {num_rows // num_clients} or less, or num_clients to "
            f"{num_rows // partition.min_examples} or less."
        )


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", purpose))
