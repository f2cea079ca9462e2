"""CLIP-Adapter (Gao et al., 2021, arXiv:2110.04544): a small network on the image feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import template_features, uniform_linear
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class ClipAdapterFrozen:
    """class_features: [C, D], the normalised features of the data set's template."""

    class_features: Tensor
    scale: float


@dataclass(frozen=True)
class ClipAdapter:
    """f' = norm(alpha ReLU(W2 ReLU(W1 f)) + (1 - alpha) f).

    alpha: the share of the adapted feature; 0 is zero-shot. reduction: how much narrower the
    hidden layer is. There are no biases.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["clip_adapter"] = "clip_adapter"
    alpha: float = 0.2
    reduction: int = 4

    def __post_init__(self) -> None:
        check_fields(self, alpha="from 0 to 1", reduction=">= 1")

    def prepare(self, backbone: Clip, task: Task) -> ClipAdapterFrozen:
        features = template_features(backbone, task.classes, task.templates[:1])
        return ClipAdapterFrozen(features, backbone.scale)

    def init(self, frozen: ClipAdapterFrozen, generator: torch.Generator) -> Params:
        width = frozen.class_features.shape[1]
        hidden = max(1, width // self.reduction)
        down, _ = uniform_linear(generator, hidden, width)
        up, _ = uniform_linear(generator, width, hidden)
        return {"down": down.to(frozen.class_features), "up": up.to(frozen.class_features)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"down": TensorSpec("shared"), "up": TensorSpec("shared")}

    def loss(self, params: Params, frozen: ClipAdapterFrozen, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: ClipAdapterFrozen, inputs: Params) -> Tensor:
        f = inputs["features"]  # [B, D]
        adapted = F.relu(F.linear(F.relu(F.linear(f, params["down"])), params["up"]))
        mixed = F.normalize(self.alpha * adapted + (1 - self.alpha) * f, dim=-1)
        return frozen.scale * mixed @ frozen.class_features.mT  # [B, C]
