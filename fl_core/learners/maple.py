"""MaPLe (Khattak et al., 2023, arXiv:2210.03117): deep prompts in both towers, coupled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.backbones.vision_tower import VisionTower
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import (
    Prompts,
    check_depth,
    first_context,
    normal,
    prepare_prompts,
    uniform_linear,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class MaPLeFrozen:
    prompts: Prompts
    vision: VisionTower


@dataclass(frozen=True)
class MaPLe:
    """Text prompts P_0..P_{J-1} [M, d_t], and F_j(P_j) [M, d_v] in the image tower.

    Each F_j is a linear layer of its own. P_j with j > 0 replaces the hidden states of the
    prompts before layer j, in both towers.

    num_tokens: M. init_text: the words that P_0 starts from, which must be M tokens; None draws it.
    frozen_text: words that stand between the prompts and the class name. depth: J; 1 prompts the
    first layers only.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 128
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["maple"] = "maple"
    num_tokens: int = 2
    init_text: str | None = "a photo"
    frozen_text: str = "of a"
    depth: int = 9

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", depth=">= 1")

    def prepare(self, backbone: Clip, task: Task) -> MaPLeFrozen:
        vision = check_depth(backbone, self.name, self.depth)
        classes = tuple(f"{self.frozen_text} {name}".strip() for name in task.classes)
        named = replace(task, classes=classes)
        prompts = prepare_prompts(backbone, named, self.num_tokens, self.init_text)
        return MaPLeFrozen(prompts, vision)

    def init(self, frozen: MaPLeFrozen, generator: torch.Generator) -> Params:
        context = first_context(frozen.prompts, generator)  # [M, d_t]
        deep = normal(generator, self.depth - 1, *context.shape)  # [J - 1, M, d_t]
        d_v, d_t = frozen.vision.width, context.shape[1]
        layers = [uniform_linear(generator, d_v, d_t) for _ in range(self.depth)]
        params = {"context": context, "deep": deep} if self.depth > 1 else {"context": context}
        params["weight"] = torch.stack([weight for weight, _ in layers])  # [J, d_v, d_t]
        params["bias"] = torch.stack([bias for _, bias in layers])  # [J, d_v]
        return {name: tensor.to(context) for name, tensor in params.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        deep = ("deep",) if self.depth > 1 else ()
        return dict.fromkeys(("context", *deep, "weight", "bias"), TensorSpec("shared"))

    def features(self, params: Params, frozen: MaPLeFrozen) -> Tensor:
        prompts = frozen.prompts
        w = prompts.tower.encode(prompts.layout, params["context"], params.get("deep"))
        return F.normalize(w, dim=-1)

    def loss(self, params: Params, frozen: MaPLeFrozen, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: MaPLeFrozen, inputs: Params) -> Tensor:
        prompts, context, deep = frozen.prompts, params["context"], params.get("deep")
        text = context.unsqueeze(0)  # [J, M, d_t]
        text = text if deep is None else torch.cat([text, deep])
        seen = text @ params["weight"].mT + params["bias"].unsqueeze(1)  # [J, M, d_v]
        f = frozen.vision.encode(inputs["tokens"], seen[0], seen[1:])  # [B, D]
        w = self.features(params, frozen)  # [C, D]
        return prompts.scale * F.normalize(f, dim=-1) @ w.mT  # [B, C]
