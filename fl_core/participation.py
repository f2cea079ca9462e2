"""Which clients can be drawn for a round, and which of those that were drawn answer in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.seeds import derive


@dataclass(frozen=True)
class Participation:
    """Clients that come, go and are late. Every draw is named by round and client.

    availability: the chance that a client can be drawn in a round. trace: the clients that can be
    drawn, by round; after its last entry it begins anew; None: all. dropout: the chance that a
    client that was drawn never answers. speed_spread: sigma of the log-normal factor on a client's
    time, drawn once for the run; deadline: of a round, in times of the median client; whoever is
    slower is late in every round, and dropped.

    Who drops out or is late has received the broadcast, and that is counted.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    availability: float = 1.0
    trace: tuple[tuple[int, ...], ...] | None = None
    dropout: float = 0.0
    speed_spread: float = 0.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            availability="above 0 to 1",
            dropout="from 0 to below 1",
            speed_spread=">= 0",
            deadline="> 0",
        )
        faults = []
        if self.trace is not None and not any(self.trace):
            faults.append("trace names no client in any round: leave it out, or name some.")
        if wrong := sorted({client for here in self.trace or () for client in here if client < 0}):
            faults.append(f"trace names client {wrong[0]}: use the clients' numbers, from 0 on.")
        if self.deadline is not None and self.deadline < 1 and not self.speed_spread:
            faults.append(
                f"deadline = {self.deadline:g} is not allowed with speed_spread = 0: every client "
                "would be late in every round. Set deadline to at least 1, or speed_spread above 0."
            )
        if faults:
            raise ConfigError(faults)

    def faults(self, num_clients: int) -> list[str]:
        """What cannot be with so many clients."""
        beyond = sorted({c for here in self.trace or () for c in here if c >= num_clients})
        if not beyond:
            return []
        return [
            f"participation.trace names client {beyond[0]}, and there are {num_clients} clients: "
            f"use numbers from 0 to {num_clients - 1}."
        ]

    def available(self, seed: int, round: int, clients: Sequence[int]) -> Sequence[int]:
        """Those of ``clients`` that can be drawn in a round, in the same order."""
        found = clients
        if self.trace is not None:
            here = frozenset(self.trace[round % len(self.trace)])
            found = [client for client in found if client in here]
        if self.availability < 1:
            found = [
                client
                for client in found
                if _share(seed, "availability", round, client) < self.availability
            ]
        return found

    def absent(self, seed: int, round: int, cohort: Sequence[int]) -> dict[int, str]:
        """Clients of a cohort that do not answer, and why."""
        found: dict[int, str] = {}
        for client in cohort if self.dropout or self.deadline is not None else ():
            time = self.time(seed, client)
            if self.deadline is not None and time > self.deadline:
                found[client] = f"late: takes {time:.2f} times the median client's time"
            elif _share(seed, "dropout", round, client) < self.dropout:
                found[client] = "dropped out"
        return found

    def time(self, seed: int, client: int) -> float:
        """A client's time for a round, in times of the median client."""
        if not self.speed_spread:
            return 1.0
        share = (derive(seed, "speed", client) + 0.5) / 2**63
        return math.exp(self.speed_spread * NormalDist().inv_cdf(share))


def _share(seed: int, *names: str | int) -> float:
    """A draw that is uniform from 0 to below 1."""
    return derive(seed, *names) / 2**63
