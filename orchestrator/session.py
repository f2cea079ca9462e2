"""The driver's side of a run: connect, start a coordinator, watch it, replace it if it dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.connect import connect
from cluster.reserve import Slices, release, reserve
from cluster.slices import slice_bundle
from fl_core.errors import ResourceError
from orchestrator.config import ExperimentConfig
from orchestrator.events import Event
from orchestrator.executors import SliceLostError
from orchestrator.host import CoordinatorHost, num_slots

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""How often a coordinator that died is replaced before the run gives up."""


class Session:
    """Runs experiments one after the other; on Ray all of them share warm actors.

    The slices belong to the driver, so that they survive a coordinator that dies.
    """

    def __init__(self, configs: Sequence[ExperimentConfig]) -> None:
        self._inline = CoordinatorHost()
        self._host: Any = None
        self._slices: Slices | None = None
        self._ray: Any = None
        on_ray = [c for c in configs if c.resources.executor == "ray"]
        if on_ray:
            self._ray = connect(on_ray[0].resources.address)
            for config in on_ray:
                num_slots(config)

    def run(self, config: ExperimentConfig) -> Iterator[Event]:
        """One experiment, from wherever its folder says it stands."""
        if config.resources.executor == "inline":
            yield from self._inline.run(config)
            return
        errors = self._ray.exceptions
        slices = self._reserve(config)
        for attempt in range(MAX_RESTARTS + 1):
            try:
                yield from self._watch(config, slices)
                return
            except (errors.RayActorError, errors.ObjectLostError) as error:
                self._end_host()
                if attempt == MAX_RESTARTS:
                    raise ResourceError(
                        f"the coordinator died {attempt + 1} times in one run: {error} Its "
                        "committed rounds are kept; go on with `fedarena resume`."
                    ) from error
                logger.warning("the coordinator died (%s); a new one takes over", error)
            except SliceLostError as error:
                self.close()
                if attempt == MAX_RESTARTS:
                    raise
                slices = self._reserve(config)  # results do not depend on how many there are
                logger.warning("%s The run goes on with those left: %d.", error, slices.num)

    def coordinator_pid(self) -> int | None:
        """Process id of the coordinator's actor; None where there is none."""
        return None if self._host is None else int(self._ray.get(self._host.pid.remote()))

    def close(self) -> None:
        """Let the actors and their slices go. A local cluster ends with this process."""
        self._inline.close()
        self._end_host()
        if self._slices is not None:
            release(self._slices)
            self._slices = None

    def _end_host(self) -> None:
        """End the coordinator's actor; one that only fell silent lets go of the run, too."""
        if self._host is not None:
            self._ray.kill(self._host)
            self._host = None

    def _reserve(self, config: ExperimentConfig) -> Slices:
        """The slices of the last experiment where they fit, else new ones."""
        num, bundle = num_slots(config), slice_bundle(**vars(config.resources.slice))
        if self._slices is None or (self._slices.num, self._slices.bundle) != (num, bundle):
            self.close()
            self._slices = reserve(num, bundle)
        return self._slices

    def _watch(self, config: ExperimentConfig, slices: Slices) -> Iterator[Event]:
        if self._host is None:
            host = self._ray.remote(CoordinatorHost).options(num_cpus=0)
            self._host = host.remote(own_process=True)
        events = self._host.run.options(num_returns="streaming").remote(config, slices)
        try:
            for reference in events:
                yield self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
