"""Zero-shot CLIP (Radford et al., 2021, arXiv:2103.00020): template prompts, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import template_features
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class ZeroShotFrozen:
    """class_features: [C, D], normalised; scale: exp of CLIP's logit scale."""

    class_features: Tensor
    scale: float


@dataclass(frozen=True)
class ZeroShot:
    """The reference that every trained method has to beat.

    ensemble: average the normalised features of all templates of the data set (section 3.1.4 of
    the paper) instead of using its first template alone.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["zero_shot"] = "zero_shot"
    ensemble: bool = False

    def prepare(self, backbone: Clip, task: Task) -> ZeroShotFrozen:
        templates = task.templates if self.ensemble else task.templates[:1]
        return ZeroShotFrozen(template_features(backbone, task.classes, templates), backbone.scale)

    def init(self, frozen: ZeroShotFrozen, generator: torch.Generator) -> Params:
        return {}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {}

    def loss(self, params: Params, frozen: ZeroShotFrozen, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: ZeroShotFrozen, inputs: Params) -> Tensor:
        return frozen.scale * inputs["features"] @ frozen.class_features.mT  # [B, C]
