"""What rules for low-rank adapters have in common: scopes by role, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fl_core.learners.base import LowRank
from fl_core.types import Role, Scope, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner


def scopes_by_role(
    specs: Mapping[str, TensorSpec], scopes: Mapping[Role, Scope]
) -> dict[str, Scope]:
    """The learner's own scopes, but for the shared tensors of the roles in ``scopes``."""
    return {
        name: scopes.get(spec.role, spec.scope) if spec.scope == "shared" else spec.scope
        for name, spec in specs.items()
    }


def low_rank_faults(rule: str, learner: Learner) -> list[str]:
    """Why a rule that tells A from B cannot go with a learner whose tensors are no such pairs."""
    if isinstance(learner, LowRank) and learner.low_rank:
        return []
    return [
        f"federation={rule} treats the two factors of low-rank adapters differently, and "
        f"learner={learner.name} has no tensors of the roles lora_A and lora_B: use learner=lora, "
        "or learner=lora_clip on images."
    ]
