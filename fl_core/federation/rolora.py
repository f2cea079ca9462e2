"""RoLoRA (Chen et al., 2025, arXiv:2502.01755): rounds train B and A in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.federation.adapters import low_rank_faults, scopes_by_role
from fl_core.federation.averaging import Averaging
from fl_core.types import Role, Scope, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class RoLoRA(Averaging):
    """FedAvg of one factor while the other rests, so that the mean product is exact.

    Round 0 trains B: while B = 0, A has no gradient.
    """

    name: Literal["rolora"] = "rolora"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        resting: Role = "lora_B" if round % 2 else "lora_A"
        return scopes_by_role(specs, {resting: "frozen"})
