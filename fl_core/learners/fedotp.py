"""FedOTP (Li et al., 2024, arXiv:2403.00041): a shared and a personal prompt share the patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import Prompts, features_of_each, first_context, prepare_prompts
from fl_core.learners.transport import transport_scores
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class FedOTP:
    """logit = s * sum T* (g w^T) with an unbalanced plan T*.

    The two prompts of a class draw a total mass gamma from the patches, half each, and no patch
    gives more than 1/L. Only the shared prompt is averaged; alone it is the shared model.

    gamma: the mass; 1 is PLOT's balanced plan. num_tokens: M. eps, max_iterations, tolerance: as
    in ``transport_plan``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("patches",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 256
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = True
    name: Literal["fedotp"] = "fedotp"
    num_tokens: int = 16
    gamma: float = 0.8
    eps: float = 0.1
    max_iterations: int = 100
    tolerance: float = 0.001

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_tokens=">= 1",
            gamma="above 0 to 1",
            eps="> 0",
            max_iterations=">= 1",
            tolerance=">= 0",
        )

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(backbone, task, self.num_tokens)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        context, own = first_context(frozen, generator, 2)  # [M, d_t] each
        return {"context": context.clone(), "own_context": own.clone()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared"), "own_context": TensorSpec("personal")}

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        names = [name for name in ("context", "own_context") if name in params]
        w = features_of_each(frozen, torch.stack([params[n] for n in names]))  # [2 or 1, C, D]
        scores = transport_scores(
            inputs["patches"], w, self.eps, self.max_iterations, self.tolerance, self.gamma
        )
        return frozen.scale * scores  # [B, C]
