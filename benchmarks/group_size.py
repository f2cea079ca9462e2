"""Seconds per client and step of local training, by group size and width: where grouping pays.

Every client trains CoOp (M = 16, C = 100 classes, batch 32) on cached features through
``fl_core.local.train_group``, the code that runs in an actor. A group of one is one client alone;
group sizes are timed in turn, so that a machine whose speed drifts treats them alike.

    python benchmarks/group_size.py --widths 64 128 256 512 --groups 1 4 16
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from coop_step import NAMES, small_tower
from torch.nn import functional as F

from fl_core.federation import FedAvg
from fl_core.learners.coop import CoOp
from fl_core.learners.prompts import Prompts
from fl_core.local import Problem, train_group
from fl_core.work import Moment, Training, plan_work

NUM_CLIENTS, NUM_STEPS, BATCH = 16, 4, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [measure(width, args.groups, args.repeats, args.device) for width in args.widths]
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result |= {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "machine": platform.machine()}
    result["rows"] = rows
    print("width  " + "".join(f"  group {g:<3d}     " for g in args.groups))
    for row in rows:
        cells = [
            f"{s * 1e3:7.1f} ms ({r:4.2f})" for s, r in zip(row["s"], row["share"], strict=True)
        ]
        print(f"{row['width']:5d}  " + " ".join(cells))
    print("milliseconds per client and step; in brackets the share of a client alone")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(width: int, groups: list[int], repeats: int, device: str) -> dict[str, Any]:
    """Median seconds per client and step for each group size, and their share of group one."""
    problem = make_problem(width, device)
    shards = torch.arange(NUM_CLIENTS * BATCH).split(BATCH)
    rule, training, moment = (
        FedAvg(),
        Training(local_steps=NUM_STEPS, batch_size=BATCH),
        Moment(0, 10, 0),
    )

    def round_of(group: int) -> None:
        for first in range(0, NUM_CLIENTS, group):
            clients = range(first, first + group)
            work = plan_work(training, moment, clients, [shards[c] for c in clients])
            train_group(problem, rule, training, problem.initial, {}, work, moment)
        if device != "cpu":
            torch.cuda.synchronize()

    times: dict[int, list[float]] = {group: [] for group in groups}
    for group in groups:
        round_of(group)
    for _ in range(repeats):
        for group in groups:
            start = time.perf_counter()
            round_of(group)
            times[group].append((time.perf_counter() - start) / (NUM_CLIENTS * NUM_STEPS))
    seconds = [statistics.median(times[group]) for group in groups]
    return {"width": width, "s": seconds, "share": [s / seconds[0] for s in seconds]}


def make_problem(width: int, device: str) -> Problem:
    tower, layout = small_tower(width, device)
    frozen = Prompts(tower, layout, 100.0, None)
    learner = CoOp()
    initial = learner.init(frozen, torch.Generator().manual_seed(0))
    features = F.normalize(torch.randn(NUM_CLIENTS * BATCH, width, device=device), dim=-1)
    labels = torch.randint(len(NAMES), (len(features),), device=device)
    return Problem(learner, frozen, initial, {"features": features}, labels)


if __name__ == "__main__":
    main()
