"""Reserved slices: a placement group that is there as a whole or not at all."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from cluster.slices import Bundle, check_placement, in_words
from fl_core.errors import ResourceError

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 10.0
"""How often a wait for slices looks whether the cluster still has them."""


@dataclass(frozen=True)
class Slices:
    """``num`` slices of ``bundle`` each, held by Ray placement group ``group``."""

    num: int
    bundle: Bundle
    group: Any


def reserve(num: int, bundle: Bundle, wait_s: float = math.inf) -> Slices:
    """Reserve slices on the connected cluster; where other work holds them, wait, and say so.

    ResourceError where the cluster is too small, also while it waits, or where the slices are not
    free after ``wait_s`` seconds.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    check_placement(num, cluster_nodes(), bundle)
    group = placement_group([bundle] * num, strategy="PACK")
    try:
        _wait_for(group, num, bundle, wait_s)
    except BaseException:
        remove_placement_group(group)
        raise
    return Slices(num, bundle, group)


def _wait_for(group: Any, num: int, bundle: Bundle, wait_s: float) -> None:
    asked = f"{num} slice{'s' if num > 1 else ''} of ({in_words(bundle)})"
    until, told = time.monotonic() + wait_s, math.isfinite(wait_s)  # whose end tells
    while not group.wait(timeout_seconds=max(0.0, min(LOOK_AGAIN_S, until - time.monotonic()))):
        check_placement(num, cluster_nodes(), bundle)  # a node may have gone
        if time.monotonic() >= until:
            raise ResourceError(
                f"{asked} were not free within {wait_s:g} s, though the cluster has them: other "
                "work holds them. Wait for it, or ask for fewer or smaller slices."
            )
        if not told:
            logger.warning(
                "other work holds %s that the cluster has: this waits until they are free.", asked
            )
            told = True


def release(slices: Slices) -> None:
    """Give reserved slices back; actors that still live on them end."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(slices.group)


def gpu_memory() -> float:
    """Bytes of the smallest GPU of the connected cluster, as ``nvidia-smi`` tells on each node.

    ResourceError with the node's address where a node with GPUs does not tell.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_nvidia_memory).options(num_cpus=0, scheduling_strategy=there)
        return task.remote()

    asked = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": ask(node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    }
    found: dict[str, list[float]] = {
        address: ray.get(reference) for address, reference in asked.items()
    }
    if silent := sorted(address for address, sizes in found.items() if not sizes):
        raise ResourceError(
            f"resources.slice = auto needs to know how much memory a GPU has, and nvidia-smi does "
            f"not tell on node {', '.join(silent)}. Give the share, such as resources.slice.gpus="
            "0.25."
        )
    return min(size for sizes in found.values() for size in sizes)


def _nvidia_memory() -> list[float]:
    """Bytes of each NVIDIA GPU of this machine; empty where none can be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [float(line) * 2**20 for line in told.stdout.split("\n") if line.strip()]


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
