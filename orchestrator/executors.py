"""Where jobs run: in this process, or on Ray actors. Both give the same bits.

The inline executor is the definition. The Ray executor adds slices, one call per slice, and the
replacement of actors that die or fall silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.reserve import Slices
from fl_core.errors import ResourceError
from orchestrator.client import ClientActor
from orchestrator.jobs import Job, Reply, Setup
from orchestrator.large_message import LARGE_FROM_BYTES, LargeMessage

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 3
"""How often the actor of one task is replaced before the run gives up."""


class SliceLostError(ResourceError):
    """A slice whose node is gone found no other one; a run can go on with fewer slices."""


@dataclass(frozen=True)
class Call:
    """A job for one slot. ``make(cold)`` builds it; cold says that the actor holds no state."""

    slot: int
    make: Callable[[bool], Job]


class Executor(Protocol):
    num_slots: int

    def configure(self, setup: Setup) -> None:
        """Make every slot ready for an experiment."""

    def run(self, calls: Sequence[Call], shared: bytes = b"") -> Iterator[tuple[int, list[Reply]]]:
        """Carry out all calls, those of one slot in order; yields (slot, replies) as they end.

        Where there are actors, they begin at once, before the first reply is asked for.
        """

    def close(self) -> None:
        """Release what is held."""


class InlineExecutor:
    """Everything in this process, one call after the other: for a debugger, or a notebook."""

    def __init__(self) -> None:
        self.num_slots = 1
        self.actor = ClientActor()

    def configure(self, setup: Setup) -> None:
        self.actor.configure(setup)

    def run(self, calls: Sequence[Call], shared: bytes = b"") -> Iterator[tuple[int, list[Reply]]]:
        for call in calls:
            yield call.slot, self.actor.do(call.make(False), shared)

    def close(self) -> None:
        pass


class RayExecutor:
    """One actor per slice of a placement group. The group outlives a coordinator that dies."""

    def __init__(self, slices: Slices, timeout_s: float) -> None:
        import ray

        self._ray = ray
        self.slices, self.timeout_s = slices, timeout_s
        self.num_slots = slices.num
        self._setup: Any = None
        self._actors = [self._start(slot) for slot in range(self.num_slots)]

    def configure(self, setup: Setup) -> None:
        self._setup = self._ray.put(setup)
        started = {
            slot: actor.configure.remote(self._setup) for slot, actor in enumerate(self._actors)
        }
        for slot, reference in started.items():
            try:
                self._ray.get(reference, timeout=self.timeout_s)
            except self._losses() as error:
                self._replace(slot, error)

    def run(self, calls: Sequence[Call], shared: bytes = b"") -> Iterator[tuple[int, list[Reply]]]:
        payload: Any = shared  # a small message costs least inside the call itself
        if len(shared) >= LARGE_FROM_BYTES:
            payload = self._ray.put(LargeMessage(shared))
        pending = {self._submit(call, payload, cold=False): i for i, call in enumerate(calls)}
        return self._replies(calls, pending, payload)

    def _replies(
        self, calls: Sequence[Call], pending: dict[Any, int], payload: Any
    ) -> Iterator[tuple[int, list[Reply]]]:
        attempts = dict.fromkeys(range(len(calls)), 0)
        while pending:
            done, _ = self._ray.wait(list(pending), num_returns=1, timeout=self.timeout_s)
            if not done:  # silent for too long: end the first one, the others get their turn
                silent = calls[next(iter(pending.values()))].slot
                logger.warning("slot %d was silent for %g s", silent, self.timeout_s)
                self._ray.kill(self._actors[silent])
                continue
            index = pending.pop(done[0])
            call = calls[index]
            try:
                replies = self._ray.get(done[0])
            except self._losses() as error:
                attempts[index] += 1
                if attempts[index] > MAX_REPLACEMENTS:
                    raise ResourceError(
                        f"the actor of slot {call.slot} died {attempts[index]} times in one task: "
                        f"{error}. A slice may be too small: raise resources.slice. Or its work "
                        f"takes longer than resources.timeout_s = {self.timeout_s:g}: raise that."
                    ) from error
                self._resume_slot(call.slot, error, calls, pending, payload, index)
                continue
            yield call.slot, replies

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def pids(self) -> list[int]:
        """Process ids of the actors, by slot."""
        return self._ray.get([actor.pid.remote() for actor in self._actors])  # type: ignore[no-any-return]

    def _resume_slot(
        self,
        slot: int,
        error: Exception,
        calls: Sequence[Call],
        pending: dict[Any, int],
        payload: Any,
        index: int,
    ) -> None:
        """Replace a dead actor, and give it again what it had not finished, in order."""
        unfinished = [index, *(i for i in pending.values() if calls[i].slot == slot)]
        for reference in [r for r, i in pending.items() if calls[i].slot == slot]:
            del pending[reference]
        self._replace(slot, error)
        for i in sorted(unfinished):
            pending[self._submit(calls[i], payload, cold=True)] = i

    def _submit(self, call: Call, payload: Any, cold: bool) -> Any:
        return self._actors[call.slot].do.remote(call.make(cold), payload)

    def _losses(self) -> tuple[type[Exception], ...]:
        errors = self._ray.exceptions
        return errors.RayActorError, errors.ObjectLostError, errors.GetTimeoutError

    def _replace(self, slot: int, error: Exception) -> None:
        """Start a new actor, and another where that one dies too.

        It does where a node was lost: until the cluster notices, actors are still sent there.
        """
        for _ in range(MAX_REPLACEMENTS):
            name = type(error).__name__
            logger.warning("slot %d lost its actor (%s); a new one takes over", slot, name)
            self._ray.kill(self._actors[slot])
            self._actors[slot] = self._start(slot)
            if self._setup is None:
                return
            ready = self._actors[slot].configure.remote(self._setup)
            try:
                self._ray.get(ready, timeout=self.timeout_s)
                return
            except self._ray.exceptions.GetTimeoutError as late:
                raise SliceLostError(
                    f"slot {slot} lost its actor, and no other was ready within "
                    f"{self.timeout_s:g} s (resources.timeout_s): no node has room for a slice of "
                    f"{self.slices.bundle}, or it takes longer to start."
                ) from late
            except self._losses() as again:
                error = again
        raise ResourceError(
            f"{MAX_REPLACEMENTS} new actors of slot {slot} died before they were ready: {error}. A "
            "slice may be too small: raise resources.slice."
        ) from error

    def _start(self, slot: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            self.slices.group, placement_group_bundle_index=slot
        )
        bundle = self.slices.bundle
        return (
            self._ray.remote(ClientActor)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                memory=bundle.get("memory", 0) or None,
                scheduling_strategy=strategy,
            )
            .remote(own_process=True)
        )
