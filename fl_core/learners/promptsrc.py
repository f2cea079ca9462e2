"""PromptSRC (Khattak et al., 2023, arXiv:2307.06948): deep prompts held near the frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.backbones.vision_tower import VisionTower
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy, masked_mean
from fl_core.learners.prompts import (
    Prompts,
    check_depth,
    first_context,
    normal,
    prepare_prompts,
    template_features,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class PromptSRCFrozen:
    """reference: [C, D], the normalised mean class features of all templates."""

    prompts: Prompts
    vision: VisionTower
    reference: Tensor


@dataclass(frozen=True)
class PromptSRC:
    """Cross entropy + text_weight mean|w - w_zs| + image_weight mean|f - f_zs| + KL(zs || ours).

    Means are over all elements; the prompts of the two towers are independent.

    num_tokens: M and V, per layer, of the text and the image prompts. init_text: M words to start
    from. depth: J. kl_weight: of the KL term. kl_mean: over examples, or over examples and classes
    as in the authors' code.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("tokens", "features")
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 128
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["promptsrc"] = "promptsrc"
    num_tokens: int = 4
    init_text: str | None = "a photo of a"
    depth: int = 9
    text_weight: float = 25.0
    image_weight: float = 10.0
    kl_weight: float = 1.0
    kl_mean: Literal["examples", "elements"] = "examples"

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("text_weight", "image_weight", "kl_weight"), ">= 0")
        check_fields(self, num_tokens=">= 1", depth=">= 1", **weights)

    def prepare(self, backbone: Clip, task: Task) -> PromptSRCFrozen:
        vision = check_depth(backbone, self.name, self.depth)
        prompts = prepare_prompts(backbone, task, self.num_tokens, self.init_text)
        reference = template_features(backbone, task.classes, task.templates)
        return PromptSRCFrozen(prompts, vision, reference)

    def init(self, frozen: PromptSRCFrozen, generator: torch.Generator) -> Params:
        context = first_context(frozen.prompts, generator)  # [M, d_t]
        deep = normal(generator, self.depth - 1, *context.shape).to(context)
        seen = normal(generator, self.depth, self.num_tokens, frozen.vision.width).to(context)
        own = {"context": context, "vision": seen}  # [M, d_t], [J, V, d_v]
        return own | {"deep": deep} if self.depth > 1 else own

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        deep = ("deep",) if self.depth > 1 else ()
        return dict.fromkeys(("context", "vision", *deep), TensorSpec("shared"))

    def features(self, params: Params, frozen: PromptSRCFrozen) -> Tensor:
        tower, layout = frozen.prompts.tower, frozen.prompts.layout
        return F.normalize(tower.encode(layout, params["context"], params.get("deep")), dim=-1)

    def loss(self, params: Params, frozen: PromptSRCFrozen, batch: Batch) -> Tensor:
        w, f = self.features(params, frozen), self._seen(params, frozen, batch.inputs)
        f_zs, scale = batch.inputs["features"], frozen.prompts.scale
        logits = scale * f @ w.mT  # [B, C]
        log_p = torch.log_softmax(logits, dim=-1)
        log_q = torch.log_softmax(scale * f_zs @ frozen.reference.mT, dim=-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=-1)  # [B]
        if self.kl_mean == "elements":
            divergence = divergence / log_p.shape[-1]
        return (
            masked_cross_entropy(logits, batch)
            + self.text_weight * (w - frozen.reference).abs().mean()
            + self.image_weight * masked_mean((f - f_zs).abs().mean(dim=-1), batch)
            + self.kl_weight * masked_mean(divergence, batch)
        )

    def logits(self, params: Params, frozen: PromptSRCFrozen, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * self._seen(params, frozen, inputs) @ w.mT  # [B, C]

    def _seen(self, params: Params, frozen: PromptSRCFrozen, inputs: Params) -> Tensor:
        """Normalised image features [B, D] under the prompts."""
        seen = params["vision"]
        return F.normalize(frozen.vision.encode(inputs["tokens"], seen[0], seen[1:]), dim=-1)
