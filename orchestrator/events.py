"""What a run tells its audience while it goes on. Plain values, cheap to send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint import RoundRecord


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` steps of a named stage."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """The run is ready for its first round (or its next one, after a resume).

    facts: what is worth keeping beside the config: sizes, hashes, number of actors.
    """

    run: str
    folder: Path
    rounds: int
    next_round: int
    facts: Mapping[str, str | int | float]


@dataclass(frozen=True)
class Committed:
    """A round that is durable."""

    run: str
    record: RoundRecord


@dataclass(frozen=True)
class Finished:
    """The run has ended; its folder holds everything.

    not_mirrored: why its copy at ``mirror`` does not, empty where it does or there is to be none.
    """

    run: str
    folder: Path
    not_mirrored: str = ""


Event = Progress | Started | Committed | Finished
