"""FedPGP (Cui et al., 2024, arXiv:2405.09771): a shared prompt plus a personal low-rank one."""

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
from fl_core.learners.prompts import (
    ReferencedPrompts,
    class_features,
    features_of_each,
    first_context,
    normal,
    prepare_referenced,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class FedPGP:
    """A client predicts with sigma + U V, and shares sigma alone.

    Loss: cross entropy + mu * mean_c CE([cos(w_zs, w_sigma), cos(w_sigma, w_p)] / tau, 0): the
    shared prompt stays near the template, the personal one goes away from the shared one.

    rank: b, of U [M, b] and V [b, d_t]; 0 has no personal part, and with mu 0 is CoOp.
    num_tokens: M. tau: temperature.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    name: Literal["fedpgp"] = "fedpgp"
    num_tokens: int = 16
    rank: int = 8
    mu: float = 1.0
    tau: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", rank=">= 0", mu=">= 0", tau="> 0")

    @property
    def two_parts(self) -> bool:
        return self.rank > 0

    def prepare(self, backbone: Clip, task: Task) -> ReferencedPrompts:
        return prepare_referenced(backbone, task, self.num_tokens)

    def init(self, frozen: ReferencedPrompts, generator: torch.Generator) -> Params:
        sigma = first_context(frozen.prompts, generator)  # [M, d_t]
        if not self.rank:
            return {"sigma": sigma}
        left = normal(generator, self.num_tokens, self.rank).to(sigma)
        right = normal(generator, self.rank, sigma.shape[1]).to(sigma)
        return {"sigma": sigma, "left": left, "right": right}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        shared = {"sigma": TensorSpec("shared")}
        own = {"left": TensorSpec("personal"), "right": TensorSpec("personal")}
        return shared | own if self.rank else shared

    def features(self, params: Params, frozen: ReferencedPrompts) -> Tensor:
        return class_features(frozen.prompts, personal_context(params))

    def loss(self, params: Params, frozen: ReferencedPrompts, batch: Batch) -> Tensor:
        if not self.mu:
            return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)
        both = torch.stack([params["sigma"], personal_context(params)])  # [2, M, d_t]
        w_sigma, w_p = features_of_each(frozen.prompts, both)  # [C, D] each
        logits = frozen.prompts.scale * batch.inputs["features"] @ w_p.mT  # [B, C]
        cosines = [(frozen.reference * w_sigma).sum(-1), (w_sigma * w_p).sum(-1)]
        contrast = -F.log_softmax(torch.stack(cosines) / self.tau, dim=0)[0].mean()
        return masked_cross_entropy(logits, batch) + self.mu * contrast

    def logits(self, params: Params, frozen: ReferencedPrompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * inputs["features"] @ w.mT  # [B, C]


def personal_context(params: Params) -> Tensor:
    """sigma + U V, or sigma where there is no personal part, [M, d_t]."""
    if "left" not in params:
        return params["sigma"]
    return params["sigma"] + params["left"] @ params["right"]
