"""Memory of processes that serve one feature store to many clients: mapped pages against copies.

100,000 images with ViT-B/16 features (512 floats each, 205 MB) are written to a store; each of
four processes, like client actors on a node, opens it and draws batches for 25 of 100 clients until
every row was read once. A second set of processes copies the features into its own memory.

    python benchmarks/feature_memory.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from fl_core.arrays import as_tensor
from scenarios.features import FeatureKey, FeatureStore

NUM_CLIENTS, BATCH = 100, 32
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder))
        store.write(KEY, chunks(args.images, args.width), (args.images, args.width))
        rows = [measure(Path(folder), args, copies) for copies in (False, True)]
    size = args.images * args.width * 4 / MIB
    print(f"{args.images:,} rows of {args.width} floats: {size:.0f} MiB, {NUM_CLIENTS} clients")
    for row in rows:
        print(
            f"{row['how']:<8} own memory +{row['own_mib']:.0f} MiB in {args.processes} processes, "
            f"proportional share +{row['pss_mib']:.0f} MiB"
        )
    if args.out:
        about = {"torch": torch.__version__, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


KEY = FeatureKey(
    weights="0" * 64,
    data="1" * 64,
    transform="none",
    output="global",
    dtype="float32",
    device="cpu",
    torch_version=torch.__version__,
    batch_size=64,
)


def chunks(num_rows: int, width: int) -> Iterator[np.ndarray]:
    draws = np.random.default_rng(0)
    for start in range(0, num_rows, 4096):
        count = min(4096, num_rows - start)
        yield draws.standard_normal((count, width), dtype=np.float32)


def measure(folder: Path, args: argparse.Namespace, copies: bool) -> dict[str, Any]:
    """MiB that all processes together grew by, when each has read the rows of its clients."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(args.processes), context.Queue()
    processes = [
        context.Process(target=serve, args=(folder, k, args, copies, barrier, results))
        for k in range(args.processes)
    ]
    for process in processes:
        process.start()
    grown = [results.get() for _ in processes]
    for process in processes:
        process.join()
    own, pss = (sum(column) / MIB for column in zip(*grown, strict=True))
    return {"how": "copies" if copies else "mapped", "own_mib": own, "pss_mib": pss}


def serve(
    folder: Path, number: int, args: argparse.Namespace, copies: bool, barrier: Any, results: Any
) -> None:
    """What an actor does with features: gather a batch of a client's rows, step after step."""
    torch.set_num_threads(1)
    values = FeatureStore(folder).open(KEY)
    assert values is not None  # written by the parent
    before = held()  # pyarrow is loaded, and no page of the features touched yet
    features = torch.from_numpy(np.array(values)) if copies else as_tensor(values)
    shards = torch.randperm(args.images, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(())
    for shard in shards.chunk(NUM_CLIENTS)[number :: args.processes]:
        for rows in shard.split(BATCH):
            total += features[rows].sum()
    barrier.wait()  # all hold their pages when each is measured
    after = held()
    results.put((after[0] - before[0], after[1] - before[1]))
    barrier.wait()


def held() -> tuple[int, int]:
    """Bytes of memory that no file backs, and of all pages this process's proportional share."""
    memory = psutil.Process().memory_full_info()
    return memory.rss - memory.shared, memory.pss


if __name__ == "__main__":
    main()
