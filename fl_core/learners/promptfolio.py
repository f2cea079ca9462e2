"""PromptFolio (Pan et al., 2024, arXiv:2409.19610): class features of two prompts, mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import (
    Prompts,
    class_features,
    features_of_each,
    first_context,
    prepare_prompts,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class PromptFolio:
    """w = (1 - alpha) w(theta) + alpha w(phi), each normalised before; theta shared, phi personal.

    fraction: alpha, the personal share; 0 is CoOp, and is what the shared model predicts with.
    num_tokens: M, of each prompt.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = True
    name: Literal["promptfolio"] = "promptfolio"
    num_tokens: int = 16
    fraction: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", fraction="from 0 to 1")

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(backbone, task, self.num_tokens)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        context = first_context(frozen, generator)  # [M, d_t]
        return {"context": context, "own_context": first_context(frozen, generator)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared"), "own_context": TensorSpec("personal")}

    def features(self, params: Params, frozen: Prompts) -> Tensor:
        """The mixed features, which are not normalised again."""
        if "own_context" not in params:
            return class_features(frozen, params["context"])
        both = torch.stack([params["context"], params["own_context"]])
        w_shared, w_own = features_of_each(frozen, both)  # [C, D] each
        return torch.lerp(w_shared, w_own, self.fraction)

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.scale * inputs["features"] @ w.mT  # [B, C]
