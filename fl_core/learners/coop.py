"""CoOp (Zhou et al., 2022, arXiv:2109.01134); with FedAvg: PromptFL (Guo et al., arXiv:2208.11625).

A few context vectors stand before, around or after each class name in place of the words of a
template, and are all that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.backbones.text_tower import PromptLayout, TextTower
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class CoOpFrozen:
    """tower and layout: how a context becomes class features; init: [M, d_t] or None."""

    tower: TextTower
    layout: PromptLayout
    scale: float
    init: Tensor | None


@dataclass(frozen=True)
class CoOp:
    """Cross entropy on ``scale * f @ w(context).T`` (equation 2 of the paper).

    num_tokens: M, the number of context vectors, drawn from N(0, 0.02²).
    init_text: start from the embeddings of these words instead; M is then their number of tokens.
    position: where the class name stands: after, in the middle of, or before the context.
    class_specific: one context per class ([C, M, d_t]) instead of one for all ([M, d_t]).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    name: Literal["coop"] = "coop"
    num_tokens: int = 16
    init_text: str | None = None
    position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1")

    def prepare(self, backbone: Clip, task: Task) -> CoOpFrozen:
        init = backbone.embed_text(self.init_text) if self.init_text else None  # [M, d_t]
        layout = backbone.prompt_layout(
            task.classes,
            num_tokens=self.num_tokens if init is None else len(init),
            position=self.position,
            class_specific=self.class_specific,
        )
        return CoOpFrozen(backbone.text, layout, backbone.scale, init)

    def init(self, frozen: CoOpFrozen, generator: torch.Generator) -> Params:
        if frozen.init is not None:
            context = frozen.init
        else:
            shape = (self.num_tokens, frozen.tower.width)
            context = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.class_specific:
            context = context.expand(frozen.layout.num_classes, *context.shape)
        return {"context": context.to(frozen.tower.device, frozen.tower.dtype).clone()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def loss(self, params: Params, frozen: CoOpFrozen, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: CoOpFrozen, inputs: Params) -> Tensor:
        class_features = frozen.tower.encode(frozen.layout, params["context"])  # [C, D]
        return frozen.scale * inputs["features"] @ F.normalize(class_features, dim=-1).mT  # [B, C]
