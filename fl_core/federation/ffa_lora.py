"""FFA-LoRA (Sun et al., 2024, arXiv:2403.12313): A stays at its random start, B is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.federation.adapters import low_rank_faults, scopes_by_role
from fl_core.federation.averaging import Averaging
from fl_core.types import Scope, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FFALoRA(Averaging):
    """FedAvg in which no client trains A, so that mean(B_k A) = mean(B_k) A, exactly.

    A is the same random matrix for all; a client gets it once.
    """

    name: Literal["ffa_lora"] = "ffa_lora"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return scopes_by_role(specs, {"lora_A": "frozen"})
