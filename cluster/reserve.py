"""Reserved slices: a placement group that is there as a whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.slices import Bundle, check_placement
from fl_core.errors import ResourceError


@dataclass(frozen=True)
class Slices:
    """``num`` slices of ``bundle`` each, held by Ray placement group ``group``."""

    num: int
    bundle: Bundle
    group: Any


def reserve(num: int, bundle: Bundle, wait_s: float = 60.0) -> Slices:
    """Reserve slices on the connected cluster.

    ResourceError where the cluster is too small, or where other work holds the slices for longer
    than ``wait_s`` seconds.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    check_placement(num, cluster_nodes(), bundle)
    group = placement_group([bundle] * num, strategy="PACK")
    if not group.wait(timeout_seconds=wait_s):
        remove_placement_group(group)
        raise ResourceError(
            f"{num} slices of {bundle} were not free within {wait_s:g} s, though the cluster has "
            "them: other work holds them. Wait for it, or ask for fewer or smaller slices."
        )
    return Slices(num, bundle, group)


def release(slices: Slices) -> None:
    """Give reserved slices back; actors that still live on them end."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(slices.group)


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
