"""ProGrad (Zhu et al., 2023, arXiv:2205.14865): no step against what zero-shot CLIP knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy, masked_mean, with_gradient
from fl_core.learners.prompts import (
    ReferencedPrompts,
    class_features,
    first_context,
    prepare_referenced,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class ProGrad:
    """Follows g_ce; where g_ce . g_kl < 0, without its part along g_kl.

    g_ce is the gradient of the cross entropy, g_kl that of KL(zero-shot || prompted).

    strength: lambda, how much of the conflicting part is taken away; 0 is CoOp.
    temperature: of the KL term. num_tokens: M. init_text: M words to start from.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    sets_gradient: ClassVar[bool] = True
    name: Literal["prograd"] = "prograd"
    num_tokens: int = 16
    init_text: str | None = None
    strength: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", strength=">= 0", temperature="> 0")

    def prepare(self, backbone: Clip, task: Task) -> ReferencedPrompts:
        return prepare_referenced(backbone, task, self.num_tokens, self.init_text)

    def init(self, frozen: ReferencedPrompts, generator: torch.Generator) -> Params:
        return {"context": first_context(frozen.prompts, generator)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def features(self, params: Params, frozen: ReferencedPrompts) -> Tensor:
        return class_features(frozen.prompts, params["context"])

    def loss(self, params: Params, frozen: ReferencedPrompts, batch: Batch) -> Tensor:
        """Has the value of the cross entropy, and the projected gradient."""

        def both(context: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.logits({"context": context}, frozen, batch.inputs)
            return masked_cross_entropy(logits, batch), self._divergence(logits, frozen, batch)

        losses, pull_back, *_ = torch.func.vjp(both, params["context"].detach())
        ce = losses[0]
        one, zero = torch.ones_like(ce), torch.zeros_like(ce)
        (g_ce,), (g_kl,) = pull_back((one, zero)), pull_back((zero, one))
        along = (g_ce * g_kl).sum() / (g_kl**2).sum().clamp(min=torch.finfo(g_kl.dtype).tiny)
        projected = g_ce - self.strength * along.clamp(max=0.0) * g_kl
        return with_gradient(ce, params, {"context": projected})

    def logits(self, params: Params, frozen: ReferencedPrompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * inputs["features"] @ w.mT  # [B, C]

    def _divergence(self, logits: Tensor, frozen: ReferencedPrompts, batch: Batch) -> Tensor:
        """tau^2 * mean KL(zero-shot || prompted) at temperature tau, a scalar."""
        zero_shot = frozen.prompts.scale * batch.inputs["features"] @ frozen.reference.mT
        log_q = torch.log_softmax(zero_shot / self.temperature, dim=-1)
        log_p = torch.log_softmax(logits / self.temperature, dim=-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=-1)  # [B]
        return self.temperature**2 * masked_mean(divergence, batch)
