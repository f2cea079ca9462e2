"""Fine-tuning after FedAvg ("FedLoRA" in the FedOA paper, 2025, arXiv:2505.01075)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.federation.averaging import Averaging, own_copy_faults, train_and_keep
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import not_started, with_scope
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
        return not_started(with_scope(params, self.scopes(specs, 0), "shared"))

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        return train_and_keep(broadcast, state, train)
