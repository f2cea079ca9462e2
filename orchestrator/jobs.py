"""What a coordinator asks of a client actor, and what it gets back. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core import wire
from fl_core.attacks import AnyAttack, NoAttack
from fl_core.federation import Federation
from fl_core.learners import Learner
from fl_core.types import ClientResult, Outcome, Task
from fl_core.work import Training
from orchestrator.large_message import LARGE_FROM_BYTES, LargeMessage
from scenarios.augment import Augmentation
from scenarios.data.dataset import Dataset
from scenarios.features import FeatureKey
from scenarios.targets import HOME

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TargetData:
    """Examples and what they are told apart by.

    features: where in the feature store each kind of input lies; labels int64 [N]. tasks int64 [N]
    and candidates bool [T, C]: row i is chosen from ``candidates[tasks[i]]``; None: from all.
    responses: what may be answered to a row that is scored, where the model is to write.
    """

    task: Task
    features: Mapping[str, FeatureKey]
    labels: Rows
    tasks: Rows | None = None
    candidates: Bools | None = None
    responses: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """All that an actor needs to know of an experiment. ``key`` names its content.

    backbone: folder of the prepared backbone. store: the folder of the feature store. shared_store:
    the URL from which a node fills both. targets: what is scored, by name; ``home`` is what is
    trained on too. references: untrained learners to compare with. views: where stored views of the
    training images lie, by kind of input; dataset: the images, where new views are made in every
    round. The clients' training rows (client k holds ``rows[offsets[k]:offsets[k + 1]]``), like all
    arrays here, are shared read-only by all actors of a node. attack: what those clients do
    that work against the others.
    """

    key: str
    learner: Learner
    rule: Federation
    training: Training
    up: wire.Codec
    down: wire.WholeCodec
    seed: int
    threads: int
    gpu_share: float
    retries: int
    backbone: Path
    store: Path
    targets: Mapping[str, TargetData]
    references: Mapping[str, Learner]
    augmentation: Augmentation
    views: Mapping[str, FeatureKey]
    dataset: Dataset | None
    offsets: Rows
    rows: Rows
    attack: AnyAttack = field(default_factory=NoAttack)
    shared_store: str | None = None

    @property
    def home(self) -> TargetData:
        return self.targets[HOME]


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
    ``peak_bytes``: the most memory that the actor has had so far, told with the last group of a
    job.
    """

    index: int
    outcomes: Sequence[Outcome]
    states: bytes = b""
    peak_bytes: int = 0

    def __reduce__(self) -> tuple[Callable[..., GroupReply], tuple[Any, ...]]:
        """Large messages travel as buffers: Ray shares their memory instead of copying them."""
        outcomes, large = list(self.outcomes), {}
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, ClientResult) and len(outcome.message) >= LARGE_FROM_BYTES:
                large[lane] = LargeMessage(outcome.message)
                outcomes[lane] = replace(outcome, message=b"")
        return _restored, (replace(self, outcomes=outcomes).__dict__, large)


def _restored(values: dict[str, Any], large: Mapping[int, memoryview]) -> GroupReply:
    outcomes = values["outcomes"]
    for lane, message in large.items():
        outcome = outcomes[lane]
        assert isinstance(outcome, ClientResult)  # a failure has no message
        outcomes[lane] = replace(outcome, message=message)
    return GroupReply(**values)


@dataclass(frozen=True)
class TrainJob:
    """One actor's share of a round."""

    round: int
    groups: tuple[GroupCall, ...]


@dataclass(frozen=True)
class RefineJob:
    """The server's own training in a round, on public rows of the data.

    The message holds the state before the round as ``server.<name>``, and the aggregate as
    ``update.<name>``.
    """

    round: int
    public: Rows


@dataclass(frozen=True)
class RefineReply:
    """The aggregate after it, as one safetensors message, and what was measured."""

    tensors: bytes
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Block:
    """Rows to score, and the classes [n, C] that each is chosen from (None: all)."""

    index: int
    rows: Rows
    candidates: Bools | None = None


@dataclass(frozen=True)
class ScoreSharedJob:
    """Score blocks of a target's rows with the shared model, or with a reference."""

    target: str
    blocks: tuple[Block, ...]
    reference: str | None = None


@dataclass(frozen=True)
class OwnPart:
    """A group of clients, the rows that each scores, and the classes it chooses from.

    candidates: as ``Target.own_candidates`` gives them.
    adapt_on: the rows that each client's model is trained on before, where the job says so.
    """

    call: GroupCall
    rows: tuple[Rows, ...]
    candidates: Bools | None = None
    adapt_on: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class ScorePersonalJob:
    """Score clients' rows of a target, each with its own model.

    adapt_steps: where above 0, with the shared model after so many steps on the rows of the part.
    """

    target: str
    parts: tuple[OwnPart, ...]
    adapt_steps: int = 0


@dataclass(frozen=True)
class ScoreReply:
    """Per row of a block, or of a group's clients one after the other; columns: by the names of
    ``Scores`` or of ``AnswerScores``, each [n].
    """

    index: int
    columns: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class EncodeJob:
    """Compute one kind of stored input of some chunks of items; needs no ``configure`` before.

    augmentation: with stored views the features are [rows, V, ...], else [rows, ...].
    """

    kind: str
    augmentation: Augmentation
    dataset: Dataset
    backbone: Path
    chunks: tuple[tuple[int, Rows], ...]
    batch_size: int
    threads: int
    gpu_share: float
    shared_store: str | None = None


@dataclass(frozen=True)
class EncodeReply:
    """Stored inputs of one chunk, [rows, ...]: features float32, token ids int32."""

    index: int
    features: npt.NDArray[Any]


Job = TrainJob | RefineJob | ScoreSharedJob | ScorePersonalJob | EncodeJob
Reply = GroupReply | RefineReply | ScoreReply | EncodeReply
