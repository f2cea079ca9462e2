"""Fine-tuning after FedAvg ("FedLoRA" in the FedOA paper, 2025, arXiv:2505.01075)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.federation.averaging import Averaging, own_copy_faults
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_personal, not_started, started, with_scope
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class Finetune(Averaging):
    """FedAvg whose clients also keep what they have trained from the shared model they got last.

    A client's local steps in a round are its fine-tuning of that round's broadcast, so this costs
    no step and no byte more than FedAvg. A client that has not taken part yet uses the shared
    model.
    """

    name: Literal["finetune"] = "finetune"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return not_started(params)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        params, metrics, _ = train(broadcast)
        shared = with_scope(params, train.scopes, "shared")
        update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
        mark = started(state, train.num_steps)
        return LocalResult(update, as_personal(params) | mark, metrics)
