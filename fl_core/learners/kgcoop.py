"""KgCoOp (Yao et al., 2023, arXiv:2303.13283): CoOp held near the class features of a template."""

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
    ReferencedPrompts,
    class_features,
    first_context,
    prepare_referenced,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class KgCoOp:
    """Cross entropy + weight * mean_c ||w_c - w_c^zs||^2.

    weight: omega; 0 is CoOp. distance: ``squared`` is the paper's, equal to 2 (1 - cos);
    ``cosine`` is 1 - cos, half as strong, as in the authors' code.
    num_tokens: M; None: as many as ``init_text`` has.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["kgcoop"] = "kgcoop"
    num_tokens: int | None = None
    init_text: str | None = "a photo of a"
    weight: float = 8.0
    distance: Literal["squared", "cosine"] = "squared"

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", weight=">= 0")

    def prepare(self, backbone: Clip, task: Task) -> ReferencedPrompts:
        return prepare_referenced(backbone, task, self.num_tokens, self.init_text)

    def init(self, frozen: ReferencedPrompts, generator: torch.Generator) -> Params:
        return {"context": first_context(frozen.prompts, generator)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def features(self, params: Params, frozen: ReferencedPrompts) -> Tensor:
        return class_features(frozen.prompts, params["context"])

    def loss(self, params: Params, frozen: ReferencedPrompts, batch: Batch) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        logits = frozen.prompts.scale * batch.inputs["features"] @ w.mT  # [B, C]
        loss = masked_cross_entropy(logits, batch)
        if not self.weight:
            return loss
        half = 0.5 if self.distance == "cosine" else 1.0
        return loss + half * self.weight * ((w - frozen.reference) ** 2).sum(dim=-1).mean()

    def logits(self, params: Params, frozen: ReferencedPrompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * inputs["features"] @ w.mT  # [B, C]
