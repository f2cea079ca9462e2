"""The clients that the data themselves name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl_core.checks import check_fields
from fl_core.errors import DataError
from scenarios.partitions.pool import NOBODY, Basis, Draw, Ints, Pool


@dataclass(frozen=True)
class Natural:
    """Each client of the data is a client; scenario.num_clients is null or their number.

    ``min_examples``: those with fewer training rows are left out. ``max_clients``: of the others
    that many are drawn; all where it is null. Clients are in the order of the data's ids.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "client"
    name: Literal["natural"] = "natural"
    max_clients: int | None = None
    min_examples: int = 1

    def __post_init__(self) -> None:
        check_fields(self, max_clients=">= 1", min_examples=">= 1")

    def chosen(self, pool: Pool, draw: Draw) -> Ints:
        """The data's ids of the clients that take part, ascending."""
        if pool.clients is None:
            raise DataError(
                "partition natural: the data name no client for their rows. Use data with a client "
                "column, or a partition that makes clients, such as dirichlet."
            )
        sizes = np.bincount(pool.clients[pool.clients != NOBODY])
        ids = np.flatnonzero(sizes >= self.min_examples)
        if not len(ids):
            largest = int(sizes.max(initial=0))
            raise DataError(
                f"partition natural: no client has min_examples={self.min_examples} training rows; "
                f"the largest has {largest}. Set min_examples to {max(largest, 1)} or less."
            )
        if self.max_clients is not None and self.max_clients < len(ids):
            ids = np.sort(draw("natural").permutation(ids)[: self.max_clients])
        return ids

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        ids = self.chosen(pool, draw)
        assert pool.clients is not None  # chosen() refuses that
        if num_clients != len(ids):
            raise DataError(
                f"num_clients={num_clients}, but the data name {len(ids)} clients with at least "
                f"{self.min_examples} training rows. Set scenario.num_clients to null, or use "
                f"partition.max_clients={min(num_clients, len(ids))}."
            )
        return client_numbers(pool.clients, ids)


def client_numbers(clients: Ints, ids: Ints) -> Ints:
    """Which of ``ids`` [num_clients], ascending, each row's client is; NOBODY where none."""
    place = np.minimum(np.searchsorted(ids, clients), len(ids) - 1)
    return np.where(ids[place] == clients, place, NOBODY)
