"""What a federation rule is: how rounds go, what is shared, how updates become the next state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fl_core.aggregation import Aggregator, WeightedMean, Weights
from fl_core.checks import check_fields
from fl_core.learners.base import HasClassFeatures
from fl_core.types import Params, Scope, ServerState, TensorSpec
from fl_core.wire import Shapes

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.local import Training
    from fl_core.reference import Near, Wanted

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


PERSONAL = "personal."


def personal_part(state: Params) -> Params:
    """The personal tensors of a client's private state, under their own names."""
    return {n.removeprefix(PERSONAL): t for n, t in state.items() if n.startswith(PERSONAL)}


def kept(tensors: Params, rule: str) -> Params:
    """What a rule keeps in a state under ``<rule>.<name>``, by ``<name>``."""
    start = f"{rule}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def as_kept(tensors: Params, rule: str) -> Params:
    """Tensors named as a rule keeps them in a state."""
    return {f"{rule}.{name}": tensor for name, tensor in tensors.items()}


def model_part(tensors: Params, rule: str) -> Params:
    """The model's own tensors of a state, without what the rule keeps there."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{rule}.")}


def as_personal(params: Params) -> Params:
    """Tensors named as they stand in a client's private state."""
    return {PERSONAL + name: tensor for name, tensor in params.items()}


def with_scope(params: Params, scopes: Mapping[str, Scope], *wanted: Scope) -> Params:
    """The tensors whose scope is one of ``wanted``."""
    return {name: tensor for name, tensor in params.items() if scopes[name] in wanted}


def where(condition: Tensor, new: Params, old: Params) -> Params:
    """The tensors of ``new`` where the scalar condition holds, those of ``old`` elsewhere."""
    return {name: torch.where(condition, new[name], old[name]) for name in new}


def train_once(
    broadcast: Params, state: Params, train: Train, penalty: Penalty | None = None
) -> LocalResult:
    """The client round of FedAvg and its relatives: train shared and personal tensors together.

    The update is trained minus broadcast (only of what is shared this round); the personal tensors
    become the new private state.
    """
    model = {name: tensor for name, tensor in broadcast.items() if name in train.scopes}
    params, metrics, _ = train(model | personal_part(state), penalty)
    shared = with_scope(params, train.scopes, "shared")
    update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
    own = as_personal(with_scope(params, train.scopes, "personal"))
    return LocalResult(update, state | own, metrics)


def add_update(server: ServerState, update: Params) -> ServerState:
    """The server step of FedAvg: every updated tensor moves by the mean update (in float64)."""
    old = server.tensors
    moved = {n: torch.add(delta.double(), old[n]).to(old[n].dtype) for n, delta in update.items()}
    return ServerState(old | moved, server.round + 1)


def own_copy_faults(rule: str, learner: Learner) -> list[str]:
    """Why a rule that keeps a whole personal model cannot go with a learner that has a part."""
    if not learner.two_parts:
        return []
    return [
        f"federation={rule} keeps a personal copy of the whole model, and learner={learner.name} "
        "has personal tensors of its own: use federation=fedavg with it, or another learner."
    ]


def class_feature_faults(rule: str, learner: Learner) -> list[str]:
    """Why a rule that compares class features cannot go with a learner that has none."""
    if isinstance(learner, HasClassFeatures):
        return []
    return [
        f"federation={rule} compares class features [C, D], and learner={learner.name} offers none "
        "that no image changes: use a learner that trains one prompt, such as coop or kgcoop."
    ]


@dataclass(frozen=True, kw_only=True)
class Averaging(Rounds):
    """What rules that average shared tensors have in common; each rule's file says what differs.

    weights: of a client in the mean: by its ``num_examples``, or ``uniform``.
    """

    pooled: ClassVar[bool] = False
    communicates: ClassVar[bool] = True
    fresh_start: ClassVar[bool] = False
    fresh_each_round: ClassVar[bool] = False
    weights: Weights = "num_examples"

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return {name: spec.scope for name, spec in specs.items()}

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return []

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        return ServerState(with_scope(params, self.scopes(specs, 0), "shared", "frozen"))

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "personal"))

    def broadcast(self, server: ServerState) -> Params:
        return server.tensors

    def update_names(self, scopes: Mapping[str, Scope]) -> frozenset[str]:
        return frozenset(name for name, scope in scopes.items() if scope == "shared")

    def part_of(self, client: int, shapes: Shapes, specs: Mapping[str, TensorSpec]) -> Shapes:
        return shapes

    def changes(
        self, names: Iterable[str], specs: Mapping[str, TensorSpec], round: int
    ) -> dict[str, int]:
        scopes = self.scopes(specs, round)
        return {name: round + 1 for name in names if scopes.get(name) != "frozen"}

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        return train_once(broadcast, state, train)

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return WeightedMean(self.weights)

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        return add_update(server, update)

    def shared_model(self, server: ServerState) -> Params | None:
        return server.tensors

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        own = personal_part(state)
        return {**broadcast, **own} if own else None
