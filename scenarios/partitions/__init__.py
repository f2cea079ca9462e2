"""Which client holds which training row. Names and meanings as in flwr-datasets' partitioners."""

from __future__ import annotations

from functools import partial

import numpy as np

from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.partitions.classes import DisjointClasses, Pathological, Shards
from scenarios.partitions.continuous import Continuous
from scenarios.partitions.dirichlet import Dirichlet, InnerDirichlet, dirichlet_owners
from scenarios.partitions.domains import Domain, DomainDirichlet
from scenarios.partitions.natural import Natural
from scenarios.partitions.pool import Basis, Ints, Pool, by_owner, share_out
from scenarios.partitions.sizes import Exponential, Iid, Linear, LogNormal, Square

__all__ = [
    "Basis",
    "Continuous",
    "Dirichlet",
    "DisjointClasses",
    "Domain",
    "DomainDirichlet",
    "Exponential",
    "Iid",
    "InnerDirichlet",
    "Linear",
    "LogNormal",
    "Natural",
    "Partition",
    "Pathological",
    "Pool",
    "Shards",
    "Square",
    "by_owner",
    "dirichlet_owners",
    "natural_ids",
    "share_out",
    "split",
]

Partition = (
    Iid
    | Dirichlet
    | InnerDirichlet
    | Pathological
    | DisjointClasses
    | Shards
    | Linear
    | Square
    | Exponential
    | LogNormal
    | Continuous
    | Natural
    | Domain
    | DomainDirichlet
)


def split(
    partition: Partition,
    labels: Ints,
    num_clients: int | None,
    seed: int,
    *,
    domains: Ints | None = None,
    clients: Ints | None = None,
) -> list[Ints]:
    """The positions in ``labels`` [n] that each client holds, ascending, none twice.

    The rows are shuffled, then dealt out, as flwr-datasets' ``FederatedDataset`` does. ``domains``
    and ``clients`` [n] are needed by the partitions that go by them. ``num_clients`` None: as many
    as the data name, for ``natural`` only. DataError where the request cannot be met.
    """
    pool = Pool(labels, np.zeros_like(labels) if domains is None else domains, clients)
    if isinstance(partition, Natural) and num_clients is None:
        num_clients = len(natural_ids(partition, pool, seed))
    if num_clients is None or num_clients < 1:
        raise DataError(
            f"num_clients={num_clients}: must be at least 1; null goes with partition natural."
        )
    if num_clients > len(labels):
        raise DataError(
            f"{num_clients} clients cannot share {len(labels)} training rows: each needs at least "
            f"one. Set num_clients to {len(labels)} or less, or raise `shots`, or use more data."
        )
    draw = partial(_rng, seed)
    order = draw("order").permutation(len(labels))
    owners = np.empty(len(labels), dtype=np.int64)
    owners[order] = partition.deal(pool.ordered(order), num_clients, draw)
    shares = by_owner(owners, num_clients)
    bare = [client for client, share in enumerate(shares) if not len(share)]
    if bare:
        raise DataError(
            f"partition {partition.name}: {len(bare)} of {num_clients} clients got no training "
            f"row, such as client {bare[0]}. Set num_clients to {num_clients - len(bare)} or less."
        )
    return shares


def natural_ids(partition: Natural, pool: Pool, seed: int) -> Ints:
    """The data's ids of the clients that ``split`` deals out, in their order."""
    return partition.chosen(pool, partial(_rng, seed))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", purpose))
