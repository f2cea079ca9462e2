"""What rules that average shared tensors have in common, as functions and as default steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_core.aggregation import Aggregator, WeightedMean, Weights, moved_by
from fl_core.federation.base import LocalResult, Penalty, Rounds, Train
from fl_core.federation.states import (
    as_personal,
    own_or,
    personal_part,
    started,
    with_scope,
)
from fl_core.learners.base import HasClassFeatures
from fl_core.types import Params, Scope, ServerState, TensorSpec
from fl_core.wire import Shapes

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


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


def train_and_keep(broadcast: Params, state: Params, train: Train) -> LocalResult:
    """The client round of FedAvg by a client that keeps the model it made: that is its state."""
    params, metrics, _ = train(broadcast)
    shared = with_scope(params, train.scopes, "shared")
    update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
    return LocalResult(update, as_personal(shared) | started(state, train.num_steps), metrics)


def add_update(server: ServerState, update: Params) -> ServerState:
    """The server step of FedAvg: every updated tensor moves by the mean update (in float64)."""
    old = server.tensors
    moved = {name: moved_by(old[name], delta) for name, delta in update.items()}
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
        own = own_or(broadcast, state)
        return {**broadcast, **own} if own else None
