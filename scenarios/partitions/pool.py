"""What a partition deals out, and the helpers that several partitions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Basis = Literal["label", "domain", "client"]
"""What validation and test rows have in common with the training rows whose client they follow:
the label, the domain and the label, or the natural client."""

Draw = Callable[[str], np.random.Generator]
"""The generator of one named draw."""

NOBODY = -1
"""The owner of a row that is left out."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Training rows in the order in which they are dealt out.

    ``labels`` and ``domains`` int64 [n]; ``clients`` int64 [n] where the data name natural owners,
    -1 for a row that has none.
    """

    labels: Ints
    domains: Ints
    clients: Ints | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def ordered(self, order: Ints) -> Pool:
        clients = None if self.clients is None else self.clients[order]
        return Pool(self.labels[order], self.domains[order], clients)

    @cached_property
    def codes(self) -> Ints:
        """The labels as 0..C-1 [n], C the number of classes that occur."""
        return np.unique(self.labels, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def domain_codes(self) -> Ints:
        """The domains as 0..D-1 [n], D the number of domains that occur."""
        return np.unique(self.domains, return_inverse=True)[1].astype(np.int64)


def by_owner(owners: Ints, num_clients: int) -> list[Ints]:
    """The positions of each client, ascending; those of NOBODY are left out."""
    order = np.argsort(owners, kind="stable")
    held = order[np.count_nonzero(owners == NOBODY) :]
    ends = np.cumsum(np.bincount(owners[held], minlength=num_clients))
    return np.split(held, ends[:-1])


def even_sizes(total: int, num_parts: int) -> Ints:
    """Sizes [num_parts] that differ by one at most, the larger ones first."""
    sizes = np.full(num_parts, total // num_parts, dtype=np.int64)
    sizes[: total % num_parts] += 1
    return sizes


def apportion(weights: Floats, total: int) -> Ints:
    """Whole numbers [n] in proportion to ``weights`` that sum to ``total``: largest remainders."""
    exact = weights / weights.sum() * total
    sizes: Ints = np.floor(exact).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: total - int(sizes.sum())]] += 1
    return sizes


def owners_of_cells(cells: Ints, counts: Ints) -> Ints:
    """The client [n] of each row: of cell c, in row order, client k gets counts[c, k] rows.

    ``cells`` [n] from 0; ``counts`` [num_cells, num_clients] sums to the size of each cell.
    """
    num_cells, num_clients = counts.shape
    owners = np.empty(len(cells), dtype=np.int64)
    dealt = np.repeat(np.tile(np.arange(num_clients), num_cells), counts.ravel())
    owners[np.argsort(cells, kind="stable")] = dealt
    return owners


def rows_by_value(values: Ints) -> list[tuple[int, Ints]]:
    """Each value that occurs, ascending, with its positions, ascending."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def share_out(histogram: Ints, labels: Ints, rng: np.random.Generator) -> Ints:
    """Clients [n] for further rows, so that each client's labels are distributed as before.

    ``histogram`` [num_clients, C] counts what each client holds already. Of the rows with label c,
    client k gets the share histogram[k, c] / histogram[:, c].sum(), rounded up or down at random
    without bias, so a client never gets a class that it does not hold. NOBODY owns the rows of a
    class that no client holds.
    """
    owners = np.full(len(labels), NOBODY, dtype=np.int64)
    for label, positions in rows_by_value(labels):
        rows = rng.permutation(positions)
        holders = rng.permutation(np.flatnonzero(histogram[:, label]))
        if not len(holders):
            continue
        held = np.cumsum(histogram[holders, label])
        # Systematic rounding: one random offset makes each count right in expectation.
        ends = np.floor(held * len(rows) / held[-1] + rng.random()).astype(np.int64)
        ends[-1] = len(rows)
        owners[rows] = np.repeat(holders, np.diff(ends, prepend=0))
    return owners


def top_up(counts: Ints, minimum: int, cell_groups: Ints, client_groups: Ints) -> Ints:
    """``counts`` [num_cells, num_clients] after moving rows to clients with less than ``minimum``.

    One client after the other takes rows of the fullest cell of its group from whoever holds them
    and can spare them, so what it gets is of as few classes as possible. DataError where a group
    has too few rows.
    """
    counts = counts.copy()
    held = counts.sum(axis=0)
    for client in np.flatnonzero(held < minimum):
        cells = np.flatnonzero(cell_groups == client_groups[client])
        while held[client] < minimum:
            spare = np.minimum(counts[cells], np.maximum(held - minimum, 0))
            index, donor = np.unravel_index(int(np.argmax(spare)), spare.shape)
            moved = min(int(spare[index, donor]), minimum - int(held[client]))
            if moved == 0:
                raise DataError(
                    f"top_up: no client has a row to spare for client {client}, which holds "
                    f"{held[client]} of min_examples={minimum}. Set min_examples lower, or "
                    "num_clients, or heterogeneity below 1."
                )
            counts[cells[index], donor] -= moved
            counts[cells[index], client] += moved
            held[donor] -= moved
            held[client] += moved
    return counts


def refuse_impossible_minimum(min_examples: int, num_rows: int, num_clients: int) -> None:
    if min_examples * num_clients > num_rows:
        raise DataError(
            f"partition.min_examples={min_examples} for {num_clients} clients needs "
            f"{min_examples * num_clients} training rows, there are {num_rows}. "
            f"Set min_examples to {num_rows // num_clients} or less, or num_clients to "
            f"{num_rows // min_examples} or less."
        )


def refuse_single_domain(num_domains: int, name: str) -> None:
    if num_domains < 2:
        raise DataError(
            f"partition {name} deals out by domain, but the training rows are of one domain. Use "
            "data with two domains or more, or a partition by label such as dirichlet."
        )
