"""A cluster of several raylets on this machine, and ways to kill parts of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

PATIENCE_S = 120.0
"""How long a victim in the wanted state is waited for."""

CLIENT, COORDINATOR, TRIAL = "ClientActor", "CoordinatorHost", "ResourceTrainable"
"""How the titles of actors' processes begin after ray::, the last one as Tune makes it."""
BUSY = f"ray::{CLIENT}.do"
"""The title of a client actor's process while it works."""


class Raylets:
    """A head without CPUs, which holds the driver, and nodes of one CPU each, with a token."""

    def __init__(self, num_nodes: int) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when it is imported
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.num_nodes = num_nodes
        self.nodes: list[Any] = []
        self.complete()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def actors(self, name: str) -> list[psutil.Process]:
        """Processes of actors of a class, on any node."""
        return [p for node in (self.cluster.head_node, *self.nodes) for p in actors_on(node, name)]

    def complete(self) -> None:
        """Let nodes join where some were lost."""
        while len(self.nodes) < self.num_nodes:
            self.nodes.append(self.cluster.add_node(num_cpus=1))

    def kill_node(self, node: Any) -> str:
        """kill -9 of a raylet and all it started; says whether a coordinator died with it."""
        held = any(actors_on(node, name) for name in (COORDINATOR, TRIAL))
        raylet = _raylet(node)
        for process in (raylet, *raylet.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)
        return "node with a coordinator" if held else "node"

    def close(self) -> None:
        self.cluster.shutdown()


def actors_on(node: Any, name: str) -> list[psutil.Process]:
    """Processes of actors of a class on one node."""
    try:
        started = _raylet(node).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in started if title(process).startswith(f"ray::{name}")]


def title(process: psutil.Process) -> str:
    """What a process calls itself: Ray says there which actor it is and what it does."""
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


# -- ways to strike ------------------------------------------------------------------------------


def kill_idle_client(raylets: Raylets, draw: int) -> str:
    """A client actor that has nothing to do, while no other has."""

    def chosen() -> psutil.Process | None:
        actors = raylets.actors(CLIENT)
        if not actors or any(_is_busy(actor) for actor in actors):
            return None
        return actors[draw % len(actors)]

    return _kill(chosen, lambda actor: not _is_busy(actor))


def kill_busy_client(raylets: Raylets, draw: int) -> str:
    """A client actor in the middle of its groups."""

    def chosen() -> psutil.Process | None:
        busy = [actor for actor in raylets.actors(CLIENT) if _is_busy(actor)]
        return busy[draw % len(busy)] if busy else None

    return _kill(chosen, _is_busy)


def kill_coordinator(raylets: Raylets, draw: int) -> str:
    return _kill_any(raylets, COORDINATOR, draw)


def kill_trial(raylets: Raylets, draw: int) -> str:
    """The actor of one trial of a sweep: its coordinator."""
    return _kill_any(raylets, TRIAL, draw)


def lose_node(raylets: Raylets, draw: int) -> str:
    """Any node but the head; no other one joins."""
    return raylets.kill_node(raylets.nodes[draw % len(raylets.nodes)])


def kill_node(raylets: Raylets, draw: int) -> str:
    """Any node but the head; another one joins at once."""
    hit = lose_node(raylets, draw)
    raylets.complete()
    return hit


def kill_coordinators_node(raylets: Raylets, draw: int) -> str:
    """The node on which the coordinator lives; any other where it lives on the head."""
    with_one = [node for node in raylets.nodes if actors_on(node, COORDINATOR)]
    hit = raylets.kill_node(with_one[0]) if with_one else lose_node(raylets, draw)
    raylets.complete()
    return hit


def _kill_any(raylets: Raylets, name: str, draw: int) -> str:
    def chosen() -> psutil.Process | None:
        actors = raylets.actors(name)
        return actors[draw % len(actors)] if actors else None

    return _kill(chosen, lambda actor: bool(title(actor)))


def _is_busy(actor: psutil.Process) -> bool:
    return title(actor).startswith(BUSY)


def _kill(
    chosen: Callable[[], psutil.Process | None], is_wanted: Callable[[psutil.Process], bool]
) -> str:
    """kill -9 in the wanted state: the victim is stopped first, looked at again, then killed."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        victim = chosen()
        if victim is None:
            time.sleep(0.001)
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP)
            if is_wanted(victim):
                found = title(victim)
                victim.kill()
                return found
            victim.send_signal(signal.SIGCONT)
    raise SystemExit(f"no victim in the wanted state within {PATIENCE_S:g} s")
