"""The values that pass between the server, the clients and the learners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors. What is trained, what is sent and what a client keeps are all ``Params``."""

Scope = Literal["shared", "personal", "frozen"]
"""shared: averaged by the server. personal: never leaves the client. frozen: not trained now."""

Role = Literal["", "lora_A", "lora_B", "classifier"]


@dataclass(frozen=True)
class TensorSpec:
    """What a learner says of one of its tensors; a federation rule decides on it, never on a name.

    ``scope`` is the scope that the learner's paper gives it; ``role`` marks the two factors of a
    low-rank adapter, or a trained classifier, for the rules that treat them differently. ``group``:
    what the factors of one adapter have in common, the module that they change; ``scale``: the
    factor on their product, alpha / r.
    """

    scope: Scope = "shared"
    role: Role = ""
    group: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Task:
    """What a model has to tell apart: class names in label order, and prompt templates.

    The first template is the data set's own; all of them together are its ensemble. Each holds
    one ``{}`` for the class name.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)


class Batch(NamedTuple):
    """The examples of one gradient step of one client.

    inputs: stored features by kind, each [B, ...]; labels: [B] int64; mask: [B], 1 where the row
    is an example and 0 where it fills up the batch. key: of the step's random draws
    (``fl_core.draws``), an int64 scalar; None outside of training. candidates: bool [B, C], the
    classes that each row is chosen from; None: all. size: what private sums over the batch are
    divided by, a scalar; None: the number of examples.
    """

    inputs: Params
    labels: Tensor
    mask: Tensor
    key: Tensor | None = None
    candidates: Tensor | None = None
    size: Tensor | None = None


@dataclass(frozen=True)
class ServerState:
    """All that the server knows: its tensors by name, and how many rounds are done.

    ``tensors`` holds the shared parameters under their own names, and what a rule keeps besides
    (control variates, momentum) under ``<rule>.<name>``. ``changed`` says for each tensor after
    how many rounds it last changed, so that nothing is sent that a client already has.
    """

    tensors: Params
    round: int = 0
    changed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientResult:
    """What a client hands back: an encoded update, its new private state, and measurements."""

    client: int
    message: bytes | memoryview
    num_examples: int
    state: Params = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientFailure:
    """A client whose work of this round is lost, and why. Data, not an exception."""

    client: int
    reason: str


Outcome = ClientResult | ClientFailure
