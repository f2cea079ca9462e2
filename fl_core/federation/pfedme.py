"""pFedMe (Dinh, Tran and Nguyen, 2020, arXiv:2006.08848): personal models by Moreau envelopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.aggregation import Weights
from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.federation.averaging import Averaging, add_update, own_copy_faults
from fl_core.federation.base import Gradient, LocalResult, Step, Train
from fl_core.federation.states import (
    as_personal,
    not_started,
    personal_part,
    started,
    where,
    with_scope,
)
from fl_core.optim import SGD
from fl_core.types import Params, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class PFedMe(Averaging):
    """phi ~ argmin F(phi) + strength/2 ||phi - w||^2, then w <- w - eta strength (w - phi).

    Server: theta <- (1 - beta) theta + beta mean w (algorithm 1 of the paper). phi is what a
    client predicts with; it starts each round from theta^t, and each batch from where it stands. A
    client that has not taken part yet uses theta.

    strength: lambda. inner_steps: gradient steps on phi per batch, at rate ``inner_lr``. eta is
    the rate of ``training.optimizer``; w moves once per batch.
    """

    name: Literal["pfedme"] = "pfedme"
    weights: Weights = "uniform"
    strength: float = 15.0
    inner_steps: int = 5
    inner_lr: float = 0.05
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, strength="> 0", inner_steps=">= 1", inner_lr="> 0", beta="> 0")
        if self.inner_lr * self.strength >= 2:
            raise ConfigError(
                f"inner_lr = {self.inner_lr:g} is not allowed with strength = {self.strength:g}: "
                f"it must be below 2 / strength = {2 / self.strength:g}, or phi moves away from w."
            )

    def faults(self, learner: Learner, training: Training) -> list[str]:
        found = own_copy_faults(self.name, learner)
        if not isinstance(training.optimizer, SGD) or training.optimizer.momentum:
            found.append(
                "federation=pfedme moves w by eta lambda (w - phi), a plain step: "
                "training.optimizer must be sgd with momentum=0."
            )
        return found

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return not_started(params)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        def step(w: Params, phi: Params, gradient: Gradient) -> Step:
            losses = []
            for _ in range(self.inner_steps):
                grads, loss = gradient(phi)
                losses.append(loss)
                pull = {n: grads[n] + self.strength * (phi[n] - w[n]) for n in w}
                phi = {n: phi[n] - self.inner_lr * pull[n] for n in w}
            return Step({n: self.strength * (w[n] - phi[n]) for n in w}, losses[0], phi)

        trained = train(broadcast, step=step)
        shared = with_scope(trained.params, train.scopes, "shared")
        update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
        held = personal_part(state)
        own = where(train.num_steps > 0, {**broadcast, **trained.carried}, held)
        mark = started(state, train.num_steps)
        return LocalResult(update, as_personal(own) | mark, trained.metrics)

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        return add_update(server, {name: self.beta * delta for name, delta in update.items()})
