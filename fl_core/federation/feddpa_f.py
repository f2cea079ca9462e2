"""FedDPA-F (Yang et al., 2024, arXiv:2403.19211): a shared adapter, then a tuned copy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.checks import check_fields
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import Averaging, own_copy_faults
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_personal, personal_part, with_scope
from fl_core.low_rank import mixed
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FedDPAF(Averaging):
    """theta by FedAvg; phi is what a client's local steps made of the last theta^t that it got.

    A client predicts with (1 - mix) of theta's adapters' output and mix of phi's.

    mix: 0 is FedAvg, 1 is fine-tuning.
    """

    name: Literal["feddpa_f"] = "feddpa_f"
    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mix="from 0 to 1")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner) + own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "shared"))

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        params, metrics, _ = train(broadcast)
        shared = with_scope(params, train.scopes, "shared")
        update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
        return LocalResult(update, as_personal(shared), metrics)

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        return {**broadcast, **mixed(broadcast, personal_part(state), self.mix, specs)}
