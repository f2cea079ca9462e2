"""Clients along an order of the rows, with adjustable strictness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl_core.checks import check_fields
from fl_core.errors import DataError
from scenarios.partitions.pool import Basis, Draw, Ints, Pool, even_sizes


@dataclass(frozen=True)
class Continuous:
    """Equal blocks of the rows sorted by a noisy property, as flwr-datasets' ContinuousPartitioner.

    The property z is the domain's or the label's number, standardised. Rows are sorted by
    strictness * z + (1 - strictness) * noise, the noise standard normal: at ``strictness`` 0 the
    split is iid, at 1 it follows the property.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: Literal["continuous"] = "continuous"
    by: Literal["domain", "label"] = "label"
    strictness: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, strictness="from 0 to 1")

    @property
    def follows(self) -> Basis:
        return self.by

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        values = pool.domains if self.by == "domain" else pool.labels
        if values.min() == values.max() and self.strictness > 0:
            raise DataError(
                f"continuous partition: all training rows have one {self.by}, so there is no order "
                "to follow. Set strictness=0, or by to the other property."
            )
        # From whole numbers, so that no machine's order of summation enters the split.
        num_rows, total, squares = len(values), int(values.sum()), int((values**2).sum())
        deviation = np.sqrt(num_rows * squares - total * total) / num_rows
        z = (values - total / num_rows) / (deviation or 1.0)
        noise = draw("continuous").normal(size=num_rows)
        order = np.argsort(self.strictness * z + (1 - self.strictness) * noise, kind="stable")
        owners = np.empty(num_rows, dtype=np.int64)
        owners[order] = np.repeat(np.arange(num_clients), even_sizes(num_rows, num_clients))
        return owners
