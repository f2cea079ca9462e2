"""FedDPA-T (Yang et al., 2024, arXiv:2403.19211): shared and personal adapters, trained in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.checks import check_fields
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import Averaging, own_copy_faults, train_once
from fl_core.federation.base import Gradient, LocalResult, Step, Train
from fl_core.federation.states import as_personal, personal_part, with_scope
from fl_core.low_rank import gradient_of_phi, mixed
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FedDPAT(Averaging):
    """theta by FedAvg, alone; phi by local steps on the loss of mix phi + (1 - mix) stop(theta^t).

    It is the outputs of the adapters that are mixed, in training and when a client predicts. phi
    starts from the first theta and goes on from round to round.

    mix: 0 is FedAvg, 1 is local-only training beside it.
    """

    name: Literal["feddpa_t"] = "feddpa_t"
    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mix="from 0 to 1")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner) + own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "shared"))

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        def step(phi: Params, carried: Params, gradient: Gradient) -> Step:
            both, loss = gradient(mixed(broadcast, phi, self.mix, train.specs))
            return Step(gradient_of_phi(both, self.mix, train.specs), loss)

        result = train_once(broadcast, {}, train)
        frozen = with_scope(broadcast, train.scopes, "frozen")
        own = train({**frozen, **personal_part(state)}, step=step)
        phi = with_scope(own.params, train.scopes, "shared")
        metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
        return LocalResult(result.update, as_personal(phi), metrics)

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        return {**broadcast, **mixed(broadcast, personal_part(state), self.mix, specs)}
