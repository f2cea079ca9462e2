"""Writes flwr_partitions.json: what flwr-datasets' partitioners do with small inputs.

Run it where flwr-datasets is installed (its pins do not go together with ours):
python make_flwr_partitions.py
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import Dataset
from flwr_datasets import partitioner as flwr

SEED = 11
NUM_ROWS = 240
BY = {"partition_by": "label", "shuffle": False, "seed": SEED}


def cases() -> dict[str, tuple[int, object]]:
    """Our arguments as JSON text -> (number of clients, their partitioner)."""

    def ours(name: str, num_clients: int, **fields: object) -> str:
        return json.dumps({"name": name, "num_clients": num_clients, **fields})

    found: dict[str, tuple[int, object]] = {ours("iid", 7): (7, flwr.IidPartitioner(7))}
    for alpha, balance in ((0.5, False), (0.5, True), (5.0, False)):
        key = ours("dirichlet", 6, alpha=alpha, self_balancing=balance, min_examples=1)
        made = flwr.DirichletPartitioner(
            6, alpha=alpha, self_balancing=balance, min_partition_size=1, **BY
        )
        found[key] = (6, made)
    for alpha, sizes in ((0.1, [40] * 6), (1.0, [10, 20, 30, 40, 50, 60]), (100.0, [48] * 5)):
        made = flwr.InnerDirichletPartitioner(sizes, alpha=alpha, **BY)
        found[ours("inner_dirichlet", len(sizes), alpha=alpha, sizes=sizes)] = (len(sizes), made)
    for mode in ("random", "deterministic", "first-deterministic"):
        for num_clients, num_classes in ((9, 1), (12, 2), (5, 4)):
            made = flwr.PathologicalPartitioner(
                num_clients,
                num_classes_per_partition=num_classes,
                class_assignment_mode=mode,
                **BY,
            )
            key = ours(
                "pathological",
                num_clients,
                num_classes_per_client=num_classes,
                class_assignment_mode=mode,
            )
            found[key] = (num_clients, made)
    for num_clients, shards, size, keep in (
        (6, 2, None, False),
        (7, 2, None, False),
        (7, 2, None, True),
        (7, 3, 9, False),
        (7, None, 11, False),
        (7, None, 11, True),
    ):
        made = flwr.ShardPartitioner(
            num_clients,
            num_shards_per_partition=shards,
            shard_size=size,
            keep_incomplete_shard=keep,
            **BY,
        )
        key = ours(
            "shards",
            num_clients,
            num_shards_per_client=shards,
            shard_size=size,
            keep_incomplete=keep,
        )
        found[key] = (num_clients, made)
    for name, kind in (
        ("linear", flwr.LinearPartitioner),
        ("square", flwr.SquarePartitioner),
        ("exponential", flwr.ExponentialPartitioner),
    ):
        found[ours(name, 5)] = (5, kind(5))
    found[ours("natural", 8)] = (8, flwr.NaturalIdPartitioner("client"))
    for column, strictness in (("label", 0.0), ("label", 0.6), ("domain", 0.9)):
        made = flwr.ContinuousPartitioner(
            7, partition_by=column, strictness=strictness, shuffle=False, seed=SEED
        )
        found[ours("continuous", 7, by=column, strictness=strictness)] = (7, made)
    return found


def main() -> None:
    rng = np.random.default_rng(SEED)
    columns = {
        "label": rng.integers(0, 8, NUM_ROWS),
        "domain": rng.integers(0, 4, NUM_ROWS),
        "client": rng.integers(0, 8, NUM_ROWS),
    }
    table = Dataset.from_dict({name: values.tolist() for name, values in columns.items()})
    table = table.add_column("row", list(range(NUM_ROWS)))
    made = []
    for key, (num_clients, partitioner) in cases().items():
        partitioner.dataset = table
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = [partitioner.load_partition(k)["row"] for k in range(num_clients)]
        owners = np.full(NUM_ROWS, -1)
        for client, rows in enumerate(parts):
            owners[list(rows)] = client
        made.append({"partition": json.loads(key), "owners": owners.tolist()})
    written = {
        "made_by": {name: version(name) for name in ("flwr-datasets", "numpy", "datasets")},
        "seed": SEED,
        **{name: values.tolist() for name, values in columns.items()},
        "cases": made,
    }
    path = Path(__file__).with_name("flwr_partitions.json")
    lines = json.dumps(written, separators=(",", ":")).replace('{"partition"', '\n{"partition"')
    path.write_text(lines + "\n")


if __name__ == "__main__":
    main()
