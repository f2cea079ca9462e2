"""What a learner is: which tensors a client trains, and on which loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from fl_core.privacy import Mechanism
from fl_core.types import Batch, Params, Task, TensorSpec


class Learner(Protocol):
    """Pure functions over explicit state; the fields of a learner are its hyper-parameters.

    ``prepare`` computes once what is frozen; ``loss`` and ``logits`` see one client, and the
    client axis is added from outside by ``torch.vmap``. So: no in-place writes, no branches on
    values, no random draws but those of ``fl_core.draws`` by the batch's key.
    """

    @property
    def inputs(self) -> tuple[str, ...]:
        """The kinds of stored features that ``Batch.inputs`` must hold."""

    groupable: ClassVar[bool]
    """Whether ``loss`` may run under ``torch.vmap`` over clients."""

    rows_at_once: ClassVar[int]
    """Examples that ``logits`` takes at once when models are scored; bounds the memory."""

    @property
    def name(self) -> str: ...

    @property
    def transfers(self) -> bool:
        """Whether the trained tensors mean something for other class names than they were
        trained on: ``logits`` then takes a ``frozen`` that was prepared for another task."""

    @property
    def two_parts(self) -> bool:
        """Whether the method itself keeps tensors with each client (scope ``personal``)."""

    def prepare(self, backbone: Any, task: Task) -> Any:
        """All that no training step changes: towers, tokens, reference features.

        backbone: one that gives the kinds of ``inputs``.
        """

    def init(self, frozen: Any, generator: torch.Generator) -> Params:
        """The trainable tensors before the first round, equal for every client."""

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        """Scope and role of each tensor of ``params``."""

    def loss(self, params: Params, frozen: Any, batch: Batch) -> Tensor:
        """The mean loss over the batch's examples, a scalar."""

    def logits(self, params: Params, frozen: Any, inputs: Params) -> Tensor:
        """Scores [B, C] of the classes of the task that ``frozen`` was prepared for.

        Where ``params`` lacks the personal tensors, these are the scores of the shared model, as
        a client that nobody has seen would use it.
        """


@runtime_checkable
class HasClassFeatures(Protocol):
    """A learner whose classes have features that no image changes, for rules that compare them."""

    def features(self, params: Params, frozen: Any) -> Tensor:
        """Normalised class features [C, D]; without the personal tensors, the shared model's."""


@runtime_checkable
class LowRank(Protocol):
    """A learner of adapters B A, for rules that tell A from B.

    low_rank: whether its tensors come in pairs of the roles lora_A and lora_B, and it adds a dense
    ``<group>.delta`` to a pair's frozen weight where its parameters hold one.
    """

    low_rank: ClassVar[bool]


@runtime_checkable
class Private(Protocol):
    """A learner whose steps clip each example's gradient and add noise."""

    @property
    def mechanism(self) -> Mechanism:
        """What a step tells of an example, by which a run's epsilon is counted."""


@runtime_checkable
class SetsGradient(Protocol):
    """A learner that puts a direction of its own in the place of its loss's gradient, which then
    has no derivative (``with_gradient``); ``sets_gradient`` says whether it does."""

    sets_gradient: ClassVar[bool]


@runtime_checkable
class TakesExperts(Protocol):
    """A learner that reads other clients' tensors, for rules that hand them out.

    experts: the names of its tensors of which it reads those of K others, where there are any, as
    ``experts.<name>`` [K, ...] among its parameters.
    """

    experts: ClassVar[tuple[str, ...]]


Feature = Literal["last_token", "mean_pool", "prompt_only"]
"""h of an example: the last layer's state at its last token, or their mean; or at the last token
of the prompt, where a label follows. A learner that has one h for an example gives that one."""


@runtime_checkable
class HasExampleFeatures(Protocol):
    """A learner whose examples have features that training moves, for rules that compare them."""

    def loss_and_features(
        self, params: Params, frozen: Any, batch: Batch, feature: Feature
    ) -> tuple[Tensor, Tensor]:
        """The loss, and h [B, d] of every row, from one pass."""


@runtime_checkable
class WritesAnswers(Protocol):
    """A learner whose model may answer in words of its own; ``writes`` says whether it does."""

    @property
    def writes(self) -> bool: ...

    def write(
        self, params: Params, frozen: Any, inputs: Params, each: bool = False
    ) -> tuple[list[str], Tensor]:
        """The answer to each text, and -log p per token [B] of the response that was wanted.

        each: ``params`` [B, ...] are those of a model for each text.
        """


def writes_answers(learner: object) -> TypeGuard[WritesAnswers]:
    """Whether a learner answers in words of its own, so that it has no classes to score."""
    return isinstance(learner, WritesAnswers) and learner.writes


def log_p_of_classes(logits: Tensor, batch: Batch) -> Tensor:
    """log p [B, C]: each row is chosen from its candidates and its label, which an attack may have
    moved elsewhere."""
    if batch.candidates is not None:
        classes = torch.arange(logits.shape[-1], device=logits.device)
        is_open = batch.candidates | (batch.labels.unsqueeze(-1) == classes)  # [B, C]
        logits = torch.where(is_open, logits, -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def masked_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross entropy over the rows whose mask is 1; 0 where there is none. Scalar."""
    log_p = log_p_of_classes(logits, batch)
    picked = log_p.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)  # [B]
    kept = torch.where(batch.mask > 0, picked, 0.0)
    return -kept.sum() / batch.mask.to(logits.dtype).sum().clamp(min=1)


def masked_mean(values: Tensor, batch: Batch) -> Tensor:
    """Mean of [B] over the rows whose mask is 1; 0 where there is none. Scalar."""
    kept = torch.where(batch.mask > 0, values, 0.0)
    return kept.sum() / batch.mask.to(values.dtype).sum().clamp(min=1)


def with_gradient(value: Tensor, params: Params, gradient: Params) -> Tensor:
    """A scalar with this value whose gradient with respect to ``params`` is ``gradient``.

    For methods that change the direction of a step and not a loss: a rule's penalty, clipping and
    the optimiser then act on it as on any other loss.
    """
    terms = [(g.detach() * (params[n] - params[n].detach())).sum() for n, g in gradient.items()]
    return value.detach() + torch.stack(terms).sum()
