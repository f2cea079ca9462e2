"""Slices: how many shares of a machine a cluster can hand out, and whether a request fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fl_core.errors import ResourceError

Bundle = dict[str, float]
"""What one slice reserves, in Ray's names: ``CPU``, ``GPU``, ``memory`` (bytes)."""


def slice_bundle(cpus: float, gpus: float, memory_gb: float) -> Bundle:
    """The resources of one slice; what is 0 is left out, as Ray wants it."""
    wanted = {"CPU": cpus, "GPU": gpus, "memory": memory_gb * 2**30}
    return {name: amount for name, amount in wanted.items() if amount}


def in_words(bundle: Bundle) -> str:
    """What a slice reserves, as messages have it."""
    return ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())


def equal_shares(need_bytes: float, gpu_bytes: float, most: int) -> float:
    """The largest equal share of a GPU, 1/n with n up to ``most``, of which n fit in its memory.

    ResourceError where even a whole GPU is too small. Rounded down to the 1/10,000 that Ray counts
    in, so that n of them are never more than one GPU.
    """
    num = min(most, math.floor(gpu_bytes / need_bytes))
    if num < 1:
        raise ResourceError(
            f"one client actor needs about {need_bytes / 2**30:.1f} GiB of GPU memory; a GPU of "
            f"this cluster has {gpu_bytes / 2**30:.1f} GiB to give. Make resources.group_size "
            "smaller, take a smaller backbone or fewer classes, or use larger GPUs."
        )
    return math.floor(10_000 / num) / 10_000


def slices_on(node: Mapping[str, float], bundle: Bundle) -> int:
    """How many slices fit on a node with these resources at once."""
    shares = [node.get(name, 0.0) / amount for name, amount in bundle.items()]
    return math.floor(min(shares) + 1e-9)


def count_slices(nodes: Sequence[Mapping[str, float]], bundle: Bundle) -> int:
    """How many slices fit on all nodes; a slice never spans two."""
    return sum(slices_on(node, bundle) for node in nodes)


def check_placement(wanted: int, nodes: Sequence[Mapping[str, float]], bundle: Bundle) -> None:
    """ResourceError with what was asked and what is there, unless ``wanted`` slices fit.

    Without this check the actors beyond the last slice would wait for ever, with no error.
    """
    available = count_slices(nodes, bundle)
    if wanted <= available:
        return
    per_node = "; ".join(
        ", ".join(f"{name} {node.get(name, 0.0):g}" for name in bundle) for node in nodes
    )
    raise ResourceError(
        f"asked for {wanted} client actors of ({in_words(bundle)}) each; the cluster has room for "
        f"{available} (nodes: {per_node or 'none'}). Raise resources.clients_per_actor or set it "
        "to auto, make resources.slice smaller (fractions are fine), or add nodes."
    )


def choose_num_slots(
    clients_per_actor: int | str, num_clients: int, num_groups: int, available: int
) -> int:
    """How many actors to make: what was asked for, or as many as can be busy at once."""
    if isinstance(clients_per_actor, int):
        return math.ceil(num_clients / clients_per_actor)
    return max(1, min(num_groups, available))
