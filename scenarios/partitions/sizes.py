"""Equal label mix, and sizes that are equal or skewed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl_core.checks import check_fields
from fl_core.errors import DataError
from scenarios.partitions.pool import (
    Basis,
    Draw,
    Floats,
    Ints,
    Pool,
    apportion,
    even_sizes,
    refuse_impossible_minimum,
)


@dataclass(frozen=True)
class Iid:
    """Equal shares of the shuffled rows: sizes differ by one at most."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["iid"] = "iid"

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        return np.repeat(np.arange(num_clients), even_sizes(len(pool), num_clients))


@dataclass(frozen=True)
class Linear:
    """Quantity skew: client k of 1..K gets rows in proportion to k, of an equal label mix."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["linear"] = "linear"

    def weights(self, num_clients: int) -> Floats:
        return np.arange(1.0, num_clients + 1)

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        return _by_weight(self, len(pool), num_clients)


@dataclass(frozen=True)
class Square:
    """Quantity skew: client k of 1..K gets rows in proportion to k squared."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["square"] = "square"

    def weights(self, num_clients: int) -> Floats:
        return np.arange(1.0, num_clients + 1) ** 2

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        return _by_weight(self, len(pool), num_clients)


@dataclass(frozen=True)
class Exponential:
    """Quantity skew: client k of 1..K gets rows in proportion to e to the power of k."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["exponential"] = "exponential"

    def weights(self, num_clients: int) -> Floats:
        # Relative to the largest, since e to the power of 1,000 is no float64.
        relative: Floats = np.exp(np.arange(1.0 - num_clients, 1.0))
        return relative

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        return _by_weight(self, len(pool), num_clients)


@dataclass(frozen=True)
class LogNormal:
    """Quantity skew: sizes in proportion to lognormal draws, labels mixed equally.

    The logarithm of a weight has the standard deviation ``sigma``. Clients that would get less
    than ``min_examples`` training rows get just that, and the others share the rest by weight.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["log_normal"] = "log_normal"
    sigma: float = 1.0
    min_examples: int = 1

    def __post_init__(self) -> None:
        check_fields(self, sigma=">= 0", min_examples=">= 1")

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        refuse_impossible_minimum(self.min_examples, len(pool), num_clients)
        logs = self.sigma * draw("log_normal").standard_normal(num_clients)
        weights = np.exp(logs - logs.max())
        sizes = _sizes_from(weights, len(pool), self.min_examples)
        return np.repeat(np.arange(num_clients), sizes)


def _sizes_from(weights: Floats, total: int, minimum: int) -> Ints:
    """Sizes in proportion to ``weights``, none below ``minimum``, that sum to ``total``."""
    sizes = np.full(len(weights), minimum, dtype=np.int64)
    free = np.arange(len(weights))
    while len(free):
        rest = total - minimum * (len(weights) - len(free))
        shares = weights[free] / weights[free].sum() * rest
        if (shares >= minimum).all():
            sizes[free] = apportion(weights[free], rest)
            break
        free = free[shares >= minimum]
    return sizes


def _by_weight(partition: Linear | Square | Exponential, num_rows: int, num_clients: int) -> Ints:
    """Owners [n]. DataError where the smallest client would get nothing."""
    sizes = apportion(partition.weights(num_clients), num_rows)
    if sizes.min() < 1:
        fits = num_clients
        while apportion(partition.weights(fits), num_rows).min() < 1:
            fits -= max(1, fits // 100)
        raise DataError(
            f"{partition.name} partition: {int((sizes < 1).sum())} of {num_clients} clients would "
            f"get none of {num_rows} training rows. Set num_clients to {fits} or less, or use "
            "linear or log_normal (with min_examples)."
        )
    return np.repeat(np.arange(num_clients), sizes)
