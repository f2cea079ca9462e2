"""Label skew by whole classes or blocks of them: each client holds a few classes only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import ConfigError, DataError
from scenarios.partitions.pool import NOBODY, Basis, Draw, Ints, Pool, even_sizes, owners_of_cells

Bools = npt.NDArray[np.bool_]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pathological:
    """Each client holds exactly ``num_classes_per_client`` classes; 1 is one class per client.

    Li et al., 2021, arXiv 2102.02079. The rows of a class are shared equally by the clients that
    hold it. ``class_assignment_mode``: ``random`` draws each client's classes; ``deterministic``
    gives client k the classes k, k + 1, ... modulo their number; ``first-deterministic`` gives it
    class k modulo their number and draws the others. Rows of a class that nobody got are left out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["pathological"] = "pathological"
    num_classes_per_client: int = 2
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"

    def __post_init__(self) -> None:
        check_fields(self, num_classes_per_client=">= 1")

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        sizes = np.bincount(pool.codes)
        if self.num_classes_per_client > len(sizes):
            raise DataError(
                f"partition.num_classes_per_client={self.num_classes_per_client}: the training "
                f"rows have {len(sizes)} classes. Set it to {len(sizes)} or less."
            )
        holds = self._assign(len(sizes), num_clients, draw("pathological"))
        self._refuse_small_classes(holds.sum(axis=0), sizes)
        counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
        unused = np.flatnonzero(~holds.any(axis=0))
        for label in np.flatnonzero(holds.any(axis=0)):
            holders = np.flatnonzero(holds[:, label])
            counts[label, holders] = even_sizes(int(sizes[label]), len(holders))
        if not len(unused):
            return owners_of_cells(pool.codes, counts)
        logger.warning(
            "pathological: %d of %d classes belong to no client; first-deterministic leaves none "
            "out where there are as many clients as classes",
            len(unused),
            len(sizes),
        )
        owners = np.full(len(pool), NOBODY, dtype=np.int64)
        used = ~np.isin(pool.codes, unused)
        owners[used] = owners_of_cells(pool.codes[used], counts)
        return owners

    def _assign(self, num_classes: int, num_clients: int, rng: np.random.Generator) -> Bools:
        """Which client holds which class, bool [num_clients, C]."""
        holds = np.zeros((num_clients, num_classes), dtype=np.bool_)
        clients, wanted = np.arange(num_clients), self.num_classes_per_client
        match self.class_assignment_mode:
            case "deterministic":
                for step in range(wanted):
                    holds[clients, (clients + step) % num_classes] = True
            case "first-deterministic":
                holds[clients, clients % num_classes] = True
                for row in holds:
                    while np.count_nonzero(row) < wanted:
                        row[rng.integers(0, num_classes, size=1)[0]] = True
            case "random":
                for row in holds:
                    row[rng.choice(num_classes, size=wanted, replace=False)] = True
        return holds

    def _refuse_small_classes(self, times: Ints, sizes: Ints) -> None:
        short = np.flatnonzero(times > sizes)
        if not len(short):
            return
        worst = int(short[np.argmax(times[short] - sizes[short])])
        held = len(times) * int(sizes.min()) // self.num_classes_per_client
        hint = (
            ""
            if self.class_assignment_mode == "deterministic"
            else " class_assignment_mode=deterministic spreads classes most evenly."
        )
        raise DataError(
            f"pathological partition: {len(short)} of {len(sizes)} classes go to more clients "
            f"than they have training rows; the worst goes to {int(times[worst])} clients and has "
            f"{int(sizes[worst])} rows. Set num_clients to about {max(held, 1)} or less, or "
            f"num_classes_per_client below {self.num_classes_per_client}.{hint}"
        )


@dataclass(frozen=True)
class DisjointClasses:
    """No class is at two clients: each class goes to one client, with all of its rows.

    As in FedTPG (Qiu et al., 2024, arXiv:2310.06123). The classes are shuffled and cut into one
    part for each client, as equal as can be. With ``num_classes_per_client`` every client gets
    exactly that many, and rows of the classes that remain are left out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["disjoint_classes"] = "disjoint_classes"
    num_classes_per_client: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, num_classes_per_client=">= 1")

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        num_classes = int(pool.codes.max()) + 1
        self._refuse_few_classes(num_classes, num_clients)
        wanted = self.num_classes_per_client
        parts = even_sizes(num_classes, num_clients)
        if wanted is not None:
            parts = np.full(num_clients, wanted)
        holders = np.repeat(np.arange(num_clients), parts)
        if len(holders) < num_classes:
            logger.warning(
                "disjoint_classes: %d of %d classes belong to no client",
                num_classes - len(holders),
                num_classes,
            )
        owner_of_class = np.full(num_classes, NOBODY, dtype=np.int64)
        owner_of_class[draw("disjoint classes").permutation(num_classes)[: len(holders)]] = holders
        owners: Ints = owner_of_class[pool.codes]
        return owners

    def _refuse_few_classes(self, num_classes: int, num_clients: int) -> None:
        each = self.num_classes_per_client or 1
        if each * num_clients <= num_classes:
            return
        asked = "" if each == 1 else f" with {each} classes each"
        fewer = f" or num_classes_per_client to {num_classes // num_clients} or less,"
        raise DataError(
            f"disjoint_classes partition: {num_clients} clients{asked} need {each * num_clients} "
            f"classes, the training rows have {num_classes}. Set num_clients to "
            f"{num_classes // each} or less,{fewer if num_clients <= num_classes else ''} or use a "
            "partition in which clients share classes, such as pathological."
        )


@dataclass(frozen=True)
class Shards:
    """The rows sorted by label are cut into shards, and each client draws some of them.

    McMahan et al., 2017, arXiv 1602.05629. ``num_shards_per_client``: that many for each, and null
    deals out all shards of ``shard_size`` rows, the first clients getting one more where they do
    not come out even. ``shard_size`` null: as large as the rows allow. ``keep_incomplete`` keeps
    the shorter shard at the end, unless both numbers are given. What is in no shard is left out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "label"
    name: Literal["shards"] = "shards"
    num_shards_per_client: int | None = 2
    shard_size: int | None = None
    keep_incomplete: bool = False

    def __post_init__(self) -> None:
        check_fields(self, num_shards_per_client=">= 1", shard_size=">= 1")
        if self.num_shards_per_client is None and self.shard_size is None:
            raise ConfigError(
                "num_shards_per_client and shard_size are both null: at least one must be given."
            )

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        size, num_shards = self._cut(len(pool), num_clients)
        if self.num_shards_per_client is None:
            shards_per_client = even_sizes(num_shards, num_clients)
        else:
            shards_per_client = np.full(num_clients, self.num_shards_per_client)
        owner_of_shard = np.full(-(-len(pool) // size), NOBODY, dtype=np.int64)
        drawn = draw("shards").permutation(num_shards)[: shards_per_client.sum()]
        dealt = np.repeat(np.arange(num_clients), shards_per_client)
        # Keeping the short shard can leave one shard less than asked for: the last client's.
        owner_of_shard[drawn] = dealt[: len(drawn)]
        owners = np.empty(len(pool), dtype=np.int64)
        owners[np.argsort(pool.labels, kind="stable")] = owner_of_shard[
            np.arange(len(pool)) // size
        ]
        return owners

    def _cut(self, num_rows: int, num_clients: int) -> tuple[int, int]:
        """Rows of a shard, and the number of shards that can be drawn."""
        wanted, size = self.num_shards_per_client, self.shard_size
        if wanted is not None:
            needed = wanted * num_clients * (size or 1)
            if needed > num_rows:
                raise DataError(
                    f"shards partition: {num_clients} clients with {wanted} shards of "
                    f"{size or 1} rows each need {needed} training rows, there are {num_rows}. Set "
                    f"num_clients to {num_rows // (wanted * (size or 1))} or less, or shard_size "
                    f"to {num_rows // (wanted * num_clients)} or less (0: fewer shards)."
                )
        both = wanted is not None and size is not None
        if size is None and wanted is not None:
            size = num_rows // (wanted * num_clients)
        assert size is not None  # __post_init__ refuses two nulls
        num_shards = -(-num_rows // size) if self.keep_incomplete and not both else num_rows // size
        if num_shards < num_clients:
            raise DataError(
                f"shards partition: {num_rows} training rows make {num_shards} shards of {size}, "
                f"too few for {num_clients} clients. Set shard_size to {num_rows // num_clients} "
                "or less."
            )
        return size, num_shards
