"""What a federation rule is: how rounds go, what is shared, how updates become the next state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fl_core.aggregation import Aggregator
from fl_core.checks import check_fields
from fl_core.types import Params, Scope, ServerState, TensorSpec
from fl_core.wire import Shapes

if TYPE_CHECKING:
    from fl_core.distillation import Distillation
    from fl_core.learners import Learner
    from fl_core.per_input import PerInput
    from fl_core.reference import Near, Wanted
    from fl_core.work import Training

Penalty = Callable[[Params], Tensor]
"""A term that a rule adds to the learner's loss: a scalar function of the parameters."""


Gradient = Callable[[Params], tuple[Params, Tensor]]
"""Gradient and value of the learner's loss on the batch of a step, as a function of parameters."""


class Step(NamedTuple):
    """What a rule takes for the gradient of a step, a loss to report, and what it carries on."""

    gradient: Params
    loss: Tensor
    carried: Params = {}  # noqa: RUF012


TakeStep = Callable[[Params, Params, Gradient], Step]
"""A rule's own step: from the parameters, what was carried (at first the parameters that the
loop started from), and the batch's gradient."""


class Trained(NamedTuple):
    """Parameters after a client's local steps, what was measured on the way (scalars), and what
    the rule's own steps carried."""

    params: Params
    metrics: Params
    carried: Params = {}  # noqa: RUF012


class LocalResult(NamedTuple):
    """One client's round: the update to send, its new private state, scalar measurements."""

    update: Params
    state: Params
    metrics: Params


class Train(Protocol):
    """Local training of one client, as a rule sees it; the loop itself is in ``local.py``."""

    @property
    def round(self) -> int: ...
    @property
    def scopes(self) -> Mapping[str, Scope]: ...
    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def client(self) -> Tensor:
        """The client's number, a scalar."""

    @property
    def num_steps(self) -> Tensor:
        """The steps that the client takes in this round: a scalar, 0 where it has no data."""

    @property
    def lr(self) -> Tensor:
        """The learning rate of the client's first step in this round, a scalar."""

    @property
    def fresh(self) -> Params:
        """A first model drawn for this client alone, where the rule says ``fresh_start``."""

    def features(self, params: Params) -> Tensor:
        """The learner's class features [C, D]; ``class_feature_faults`` says who has none."""

    @property
    def has_reference(self) -> bool:
        """Whether there are features of the broadcast model, as ``Federation.reference`` asks."""

    def __call__(
        self,
        start: Params,
        penalty: Penalty | None = None,
        step: TakeStep | None = None,
        near: Near | None = None,
    ) -> Trained:
        """Take the client's local steps from ``start``.

        near: a term of each step's loss that compares the batch's features with the reference;
        the distance is then measured too, as ``train/feature_distance``.

        Tensors whose scope is frozen this round come back as they went in. The optimiser follows
        what ``step`` puts in the place of the batch's gradient, where a rule has one.
        """


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The fields that every rule has.

    rounds: communication rounds. clients_per_round: the size of the cohort drawn each round
    without replacement; None means every client.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    rounds: int = 10
    clients_per_round: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, rounds=">= 1", clients_per_round=">= 1")

    def reference(self, learner: Learner, round: int) -> Wanted | None:
        return None

    def per_input(self, learner: Learner) -> PerInput | None:
        return None

    def server_training(self) -> Distillation | None:
        return None

    def feedback_fault(self) -> str | None:
        return None


class Federation(Protocol):
    """Pure functions over explicit state. They see one client; the client axis is added outside.

    A client's private state is ``Params``; it holds ``personal.<name>`` for the tensors that
    never leave the client, and whatever else a rule keeps there under ``<rule>.<name>``.
    """

    pooled: ClassVar[bool]
    """Whether all training data stands with one client."""

    communicates: ClassVar[bool]
    """Whether anything crosses the network, so that bytes are counted."""

    fresh_start: ClassVar[bool]
    """Whether a client's own first model is drawn for it, and read as ``Train.fresh``."""

    fresh_each_round: ClassVar[bool]
    """Whether that model is another one in every round."""

    @property
    def name(self) -> str: ...
    @property
    def rounds(self) -> int: ...
    @property
    def clients_per_round(self) -> int | None: ...

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        """The scope of every tensor in this round. What is frozen now may be shared next round."""

    def faults(self, learner: Learner, training: Training) -> list[str]:
        """Why this rule cannot go with this learner or this way of training; empty if it can."""

    def reference(self, learner: Learner, round: int) -> Wanted | None:
        """The features of the broadcast model that clients need in this round, if any."""

    def per_input(self, learner: Learner) -> PerInput | None:
        """How the parameters of ``personal_model`` become those for one input; None where all
        inputs have the same."""

    def server_training(self) -> Distillation | None:
        """What the server trains itself, on public examples, before ``server_step``; if anything.

        The aggregate then holds each client's update too, as ``<rule>.<name>`` [K, ...].
        """

    def feedback_fault(self) -> str | None:
        """Why what a codec leaves out of a client's update cannot go with its next one; None if it
        can, since updates of several rounds add up."""

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        """The server's state before the first round; num_clients: the size of the population."""

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        """The private state of a client that has not taken part yet."""

    def broadcast(self, server: ServerState) -> Params:
        """What the cohort of the coming round has to know."""

    def update_names(self, scopes: Mapping[str, Scope]) -> frozenset[str]:
        """The names of the tensors in a client's update in a round with these scopes."""

    def part_of(self, client: int, shapes: Shapes, specs: Mapping[str, TensorSpec]) -> Shapes:
        """The shapes of what travels between the server and this client, out of these tensors.

        A client's part of a tensor is its first entries along each axis.
        """

    def changes(
        self, names: Iterable[str], specs: Mapping[str, TensorSpec], round: int
    ) -> dict[str, int]:
        """For the tensors that a round may change, out of ``names``: after how many rounds they
        then count as changed. That is ``round`` + 1, or less where clients work them out."""

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        """One client's work."""

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        """How the updates of a cohort that started from ``server`` become one.

        The updates come as they were sent: each client's part.
        """

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        """The state after the round, from the aggregated update."""

    def shared_model(self, server: ServerState) -> Params | None:
        """The parameters that a client nobody has seen would use, or None if there are none.

        They hold no personal tensors: a learner's ``logits`` takes that as the shared model.
        """

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        """The parameters that this client itself uses, or None if they are the shared ones."""
