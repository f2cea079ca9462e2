"""Rows by client, as two flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Shard(NamedTuple):
    """The rows of one client, each ascending int64."""

    train: Ints
    validation: Ints
    test: Ints


@dataclass(frozen=True, eq=False)
class ClientRows:
    """Rows by client: client k holds rows[offsets[k]:offsets[k + 1]]. offsets [num_clients + 1]."""

    offsets: Ints
    rows: Ints

    @classmethod
    def of(cls, rows: Sequence[Ints]) -> ClientRows:
        """From the rows of each client."""
        return cls(np.cumsum([0, *map(len, rows)], dtype=np.int64), np.concatenate(rows))

    def __getitem__(self, client: int) -> Ints:
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    @property
    def counts(self) -> Ints:
        """Rows per client [num_clients]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Ints:
        """The client of each of ``rows``."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def at(self, rows: Ints) -> ClientRows:
        """The same with ``rows[i]`` for row i."""
        return ClientRows(self.offsets, rows[self.rows])

    def pooled(self) -> ClientRows:
        """One client that holds everything."""
        return ClientRows.of([np.sort(self.rows)])


def count_labels(owners: Ints, labels: Ints, num_clients: int, num_labels: int) -> Ints:
    """Rows per client and label, int64 [num_clients, num_labels], from those of each row."""
    cells = np.bincount(owners * num_labels + labels, minlength=num_clients * num_labels)
    return cells.reshape(num_clients, num_labels)
