"""Label skew drawn from a Dirichlet distribution: of each class, or of each client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import ConfigError, DataError
from scenarios.partitions.pool import (
    NOBODY,
    Basis,
    Draw,
    Floats,
    Ints,
    Pool,
    even_sizes,
    owners_of_cells,
    refuse_impossible_minimum,
    top_up,
)

_MAX_ALPHA = 1e6
_MAX_TRIES = 1000
_MAX_DRAWN_NUMBERS = 20_000_000


@dataclass(frozen=True)
class Dirichlet:
    """Per class, the clients' shares are one draw from Dirichlet(alpha, ..., alpha).

    Yurochkin et al., 2019, arXiv 1905.12022. The smaller ``alpha``, the more heterogeneous. The
    whole draw is repeated, a bounded number of times, until each client has ``min_examples``
    training rows. With ``self_balancing`` a client above the mean size gets no row of the classes
    still to come. With ``top_up`` there is one draw, and clients below ``min_examples`` then take
    rows of one class, where they can, from those that hold most of it: that is what makes a tiny
    alpha possible with more clients than classes.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = 0.5
    min_examples: int = 1
    self_balancing: bool = False
    top_up: bool = False

    def __post_init__(self) -> None:
        check_fields(self, alpha="> 0", min_examples=">= 1")
        check_alpha(self.alpha)

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        refuse_impossible_minimum(self.min_examples, len(pool), num_clients)
        rng, rounding = draw("dirichlet"), draw("rounding")
        return dirichlet_owners(self, pool.labels, num_clients, rng, rounding)


@dataclass(frozen=True)
class InnerDirichlet:
    """Given sizes; per client, the mix of classes is one draw from Dirichlet(alpha, ..., alpha).

    Acar et al., 2021, arXiv 2111.04263. ``sizes``: training rows of each client; equal where it is
    None. Row by row a client is drawn, then a class from its mix; a class with no row left is
    taken out of every mix. A client whose mix has no class left draws from all that remain, in
    proportion to their rows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["inner_dirichlet"] = "inner_dirichlet"
    alpha: float = 0.5
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, alpha="> 0")
        check_alpha(self.alpha)
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1):
            raise ConfigError(
                f"sizes = {list(self.sizes)!r} is not allowed: it must list the rows of each "
                "client, each at least 1, or be null for equal sizes."
            )

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        sizes = even_sizes(len(pool), num_clients)
        if self.sizes is not None:
            sizes = np.array(self.sizes, dtype=np.int64)
            _refuse_sizes(sizes, len(pool), num_clients)
        return _inner_owners(self.alpha, pool.codes, sizes, draw("inner_dirichlet"))


def check_alpha(alpha: float) -> None:
    if alpha > _MAX_ALPHA:
        raise ConfigError(
            f"alpha = {alpha!r} is not allowed: it must be at most {_MAX_ALPHA:g}. For "
            "equal shares use the partition iid."
        )


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

    def drawn() -> Ints:
        return _draw_counts(partition, sizes, num_clients, rng, rounding)

    if partition.top_up:
        groups = np.zeros(len(classes), dtype=np.int64), np.zeros(num_clients, dtype=np.int64)
        return owners_of_cells(codes, top_up(drawn(), partition.min_examples, *groups))
    counts, best, tries = draw_until(drawn, partition.min_examples, sizes.size * num_clients)
    if best < partition.min_examples:
        hints = ["a larger alpha", "fewer clients"]
        hints += [] if partition.self_balancing else ["self_balancing=true"]
        hints += ["top_up=true"]
        hints += [f"min_examples={best}"] if best >= 1 else []
        raise DataError(
            f"dirichlet partition: no draw of {tries} gave each of {num_clients} clients "
            f"min_examples={partition.min_examples} of {len(labels)} training rows in "
            f"{len(classes)} classes with alpha={partition.alpha} (at best the smallest client "
            f"had {best}). Try {', or '.join(hints)}."
        )
    return owners_of_cells(codes, counts)


def draw_until(
    drawn: Callable[[], Ints], min_examples: int, num_numbers: int
) -> tuple[Ints, int, int]:
    """The first counts [num_cells, num_clients] that give each client the minimum, or the last.

    And the largest size that the smallest client had, and the number of tries, which is less the
    more numbers a draw takes.
    """
    num_tries = max(20, min(_MAX_TRIES, _MAX_DRAWN_NUMBERS // num_numbers))
    best = 0
    for _ in range(num_tries):
        counts = drawn()
        best = max(best, int(counts.sum(axis=0).min()))
        if best >= min_examples:
            break
    return counts, best, num_tries


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


def _inner_owners(alpha: float, codes: Ints, sizes: Ints, rng: np.random.Generator) -> Ints:
    """The client [n] of each row, equal to flwr-datasets' ``InnerDirichletPartitioner``.

    Each draw depends on the rows that those before it took, so this is a loop over rows.
    """
    by_class = np.argsort(codes, kind="stable")
    num_rows = np.bincount(codes)
    starts, remaining = (np.cumsum(num_rows) - num_rows).tolist(), num_rows.tolist()
    mixes = rng.dirichlet(np.full(len(num_rows), alpha), size=len(sizes))  # [num_clients, C]
    reached = _cumulated(mixes)
    owners = np.full(len(codes), NOBODY, dtype=np.int64)
    left, open_clients = sizes.tolist(), list(range(len(sizes)))
    num_left = sum(left)
    while num_left:
        client = open_clients[rng.integers(0, len(open_clients))]
        if left[client] == 0:
            open_clients.remove(client)
            continue
        label = int(reached[client].searchsorted(rng.random(), side="right"))
        while remaining[label] == 0:
            mixes = _without(label, mixes, np.array(remaining, dtype=np.float64))
            reached = _cumulated(mixes)
            label = int(reached[client].searchsorted(rng.random(), side="right"))
        remaining[label] -= 1
        owners[by_class[starts[label] + remaining[label]]] = client
        left[client] -= 1
        num_left -= 1
    return owners


def _without(label: int, mixes: Floats, remaining: Floats) -> Floats:
    """The mixes [num_clients, C] with one class taken out, each summing to one."""
    kept = mixes.copy()
    kept[:, label] = 0.0
    kept[kept.sum(axis=1) == 0.0] = remaining
    renormed: Floats = kept / kept.sum(axis=1, keepdims=True)
    return renormed


def _cumulated(mixes: Floats) -> list[Floats]:
    """Per client, the cumulated shares [C] of the classes, ending at one."""
    sums = np.cumsum(mixes, axis=1)
    return list(sums / sums[:, -1:])


def _refuse_sizes(sizes: Ints, num_rows: int, num_clients: int) -> None:
    faults = []
    if len(sizes) != num_clients:
        faults.append(
            f"it has {len(sizes)} entries for {num_clients} clients: set num_clients to "
            f"{len(sizes)}, or list one size per client"
        )
    if sizes.sum() > num_rows:
        faults.append(
            f"it asks for {int(sizes.sum())} training rows, there are {num_rows}: scale the sizes "
            f"by {num_rows / int(sizes.sum()):.3g} or less"
        )
    if faults:
        raise DataError(f"partition.sizes cannot be met: {'; and '.join(faults)}.")
