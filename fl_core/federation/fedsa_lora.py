"""FedSA-LoRA (Guo et al., 2024, arXiv:2410.01463): A is averaged, B stays with its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.federation.adapters import low_rank_faults, scopes_by_role
from fl_core.federation.averaging import Averaging
from fl_core.types import Params, Scope, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Averaging):
    """Clients train both factors; only A, and what is no factor, is sent and averaged.

    There is no shared model: without a B the adapters change nothing.
    """

    name: Literal["fedsa_lora"] = "fedsa_lora"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return scopes_by_role(specs, {"lora_B": "personal"})

    def shared_model(self, server: ServerState) -> Params | None:
        return None
