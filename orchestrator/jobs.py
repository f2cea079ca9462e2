"""What a coordinator asks of a client actor, and what it gets back. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core import wire
from fl_core.federation import Federation
from fl_core.learners import Learner
from fl_core.local import Training
from fl_core.types import ClientResult, Outcome, Task
from scenarios.data.dataset import Dataset
from scenarios.features import FeatureKey

Rows = npt.NDArray[np.int64]

SHARED_FROM_BYTES = 64 * 1024
"""Size from which a message is worth a place of its own in Ray's shared memory."""


@dataclass(frozen=True)
class Setup:
    """All that an actor needs to know of an experiment. ``key`` names its content.

    backbone: folder of the prepared backbone. features: where in the feature store ``store`` each
    kind of input lies. labels [N] and the clients' training rows (client k holds
    ``rows[offsets[k]:offsets[k + 1]]``) are shared read-only by all actors of a node.
    """

    key: str
    learner: Learner
    rule: Federation
    training: Training
    codec: wire.Codec
    task: Task
    seed: int
    threads: int
    gpu_share: float
    retries: int
    backbone: Path
    store: Path
    features: Mapping[str, FeatureKey]
    labels: Rows
    offsets: Rows
    rows: Rows


@dataclass(frozen=True)
class GroupCall:
    """A group of clients, and which committed round each one's private state stands at.

    states: encoded private states of those clients whose state the actor does not hold already.
    """

    index: int
    clients: tuple[int, ...]
    versions: tuple[int, ...]
    states: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupReply:
    """Outcomes in the order of the group's clients; ``states`` holds their new private states.

    It is one safetensors message of tensors stacked to [G, ...]; empty where there are none.
    """

    index: int
    outcomes: Sequence[Outcome]
    states: bytes = b""

    def __reduce__(self) -> tuple[Callable[..., GroupReply], tuple[Any, ...]]:
        """Large messages travel as buffers: Ray shares their memory instead of copying them."""
        outcomes, buffers = list(self.outcomes), {}
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, ClientResult) and len(outcome.message) >= SHARED_FROM_BYTES:
                buffers[lane] = PickleBuffer(outcome.message)
                outcomes[lane] = replace(outcome, message=b"")
        return _restored, (self.index, outcomes, self.states, buffers)


def _restored(
    index: int, outcomes: list[Outcome], states: bytes, buffers: Mapping[int, Any]
) -> GroupReply:
    for lane, buffer in buffers.items():
        outcome = outcomes[lane]
        assert isinstance(outcome, ClientResult)  # a failure has no message
        outcomes[lane] = replace(outcome, message=memoryview(buffer).cast("B"))
    return GroupReply(index, outcomes, states)


@dataclass(frozen=True)
class TrainJob:
    """One actor's share of a round."""

    round: int
    groups: tuple[GroupCall, ...]


@dataclass(frozen=True)
class ScoreSharedJob:
    """Score blocks of rows with the shared model."""

    blocks: tuple[tuple[int, Rows], ...]


@dataclass(frozen=True)
class ScorePersonalJob:
    """Score each client's own rows with its own model."""

    groups: tuple[tuple[GroupCall, tuple[Rows, ...]], ...]


@dataclass(frozen=True)
class ScoreReply:
    """Per row of a block, or of a group's clients one after the other."""

    index: int
    predicted: npt.NDArray[np.int32]
    nll: npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodeJob:
    """Compute the features of some chunks of images; needs no ``configure`` before."""

    dataset: Dataset
    backbone: Path
    chunks: tuple[tuple[int, Rows], ...]
    batch_size: int
    threads: int
    gpu_share: float


@dataclass(frozen=True)
class EncodeReply:
    """Features of one chunk, [rows, ...]."""

    index: int
    features: npt.NDArray[np.float32]


Job = TrainJob | ScoreSharedJob | ScorePersonalJob | EncodeJob
Reply = GroupReply | ScoreReply | EncodeReply
