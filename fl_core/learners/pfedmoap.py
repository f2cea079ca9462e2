"""pFedMoAP (Luo et al., 2025, arXiv:2410.10114): other clients' prompts as frozen experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import (
    Prompts,
    class_features,
    features_of_each,
    first_context,
    prepare_prompts,
    uniform_linear,
)
from fl_core.types import Batch, Params, Task, TensorSpec

PROJECTIONS = ("query", "key", "value", "output")


@dataclass(frozen=True)
class PFedMoAP:
    """logits = local_weight * s f w^T + s norm(pool(f)) norm(m)^T.

    w: class features of the client's own prompt. m: per image and class, multi-head attention of
    pool(f) over the pooled class features of the own prompt and of the experts, which are prompts
    of other clients that federation=exchange hands in, frozen. pool: mean over equal stretches.

    num_tokens: M. gate_width: of pooled features, at most D. heads: of the gate's attention.
    local_weight: lambda.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 256
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = True
    experts: ClassVar[tuple[str, ...]] = ("context",)
    name: Literal["pfedmoap"] = "pfedmoap"
    num_tokens: int = 16
    gate_width: int = 128
    heads: int = 8
    local_weight: float = 0.5

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_tokens", "gate_width", "heads"), ">= 1")
        check_fields(self, local_weight=">= 0", **counts)
        if self.gate_width % self.heads:
            raise ConfigError(
                f"gate_width = {self.gate_width} is not allowed: it must be a multiple of heads = "
                f"{self.heads}."
            )

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        if backbone.text.embed_dim % self.gate_width:
            raise ConfigError(
                f"learner.gate_width = {self.gate_width} is not allowed: this backbone's features "
                f"have {backbone.text.embed_dim} entries, and it must divide that number."
            )
        return prepare_prompts(backbone, task, self.num_tokens)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        params = {"context": first_context(frozen, generator)}  # [M, d_t]
        for part in PROJECTIONS:
            weight, bias = uniform_linear(generator, self.gate_width, self.gate_width)
            params |= {part: weight, f"{part}_bias": bias}
        return {name: tensor.to(params["context"]) for name, tensor in params.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        gate = [name for part in PROJECTIONS for name in (part, f"{part}_bias")]
        return {"context": TensorSpec("shared")} | dict.fromkeys(gate, TensorSpec("personal"))

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        f, own = inputs["features"], class_features(frozen, params["context"])  # [B, D], [C, D]
        local = frozen.scale * f @ own.mT  # [B, C]
        if "query" not in params:
            return local
        known = own.unsqueeze(0)  # [K, C, D], the own expert first
        if "experts.context" in params:
            others = features_of_each(frozen, params["experts.context"].detach())
            known = torch.cat([known, others])
        pooled = self._pooled(f)  # [B, g]
        mixed = F.normalize(self._mixture(params, pooled, self._pooled(known)), dim=-1)
        aligned = (mixed @ F.normalize(pooled, dim=-1).unsqueeze(-1)).squeeze(-1)  # [B, C]
        return self.local_weight * local + frozen.scale * aligned

    def _pooled(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., g]: means over stretches of D / g entries."""
        return features.reshape(*features.shape[:-1], self.gate_width, -1).mean(dim=-1)

    def _mixture(self, params: Params, images: Tensor, known: Tensor) -> Tensor:
        """Attention of images [B, g] over the experts' classes [K, C, g] -> [B, C, g]."""

        def split(part: str, x: Tensor) -> Tensor:
            y = F.linear(x, params[part], params[f"{part}_bias"])
            return y.reshape(*y.shape[:-1], self.heads, -1)  # [..., h, g/h]

        q, k, v = split("query", images), split("key", known), split("value", known)
        scores = torch.einsum("bhd,kchd->bchk", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bchk,kchd->bchd", torch.softmax(scores, dim=-1), v)
        return F.linear(mixed.flatten(-2), params["output"], params["output_bias"])
