"""BPL (Derakhshani et al., 2023, arXiv:2210.02390): a prompt with a Gaussian residual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.draws import normal
from fl_core.learners.base import masked_cross_entropy, masked_mean
from fl_core.learners.prompts import (
    Prompts,
    features_of_each,
    first_context,
    prepare_prompts,
    uniform_linear,
)
from fl_core.types import Batch, Params, Task, TensorSpec

SCORING_KEY = 2210_02390
"""Of the draws that a model is scored with: the same for every image and every time."""


@dataclass(frozen=True)
class BPL:
    """v_m = ctx_m + r, r ~ q(r | f) = N(prior_std mu(f), prior_std^2 diag(sigma(f)^2)).

    Loss: mean cross entropy over the samples + kl_weight * KL(q || N(0, prior_std^2 I)). Prediction
    is with the mean probability over the samples. mu and log sigma are linear in
    ReLU(Linear(D, D/reduction)(f)).

    conditional: False makes q the same for all images: mu and log sigma are vectors, and start at
    0. num_samples: residuals per image and step. num_tokens: M; None: as many as ``init_text``
    has. prior_std: p; 1 is the paper's, some 40 times the size of a token, so that short runs
    learn little; 0 with kl_weight 0 is CoOp.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["bpl"] = "bpl"
    num_tokens: int | None = None
    init_text: str | None = "a photo of a"
    num_samples: int = 4
    conditional: bool = True
    reduction: int = 16
    prior_std: float = 1.0
    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_tokens", "num_samples", "reduction"), ">= 1")
        check_fields(self, prior_std=">= 0", kl_weight=">= 0", **counts)

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(backbone, task, self.num_tokens, self.init_text)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        context = first_context(frozen, generator)  # [M, d_t]
        num_in, num_out = frozen.tower.embed_dim, frozen.tower.width
        if not self.conditional:
            return {"context": context, "moments": torch.zeros(2 * num_out).to(context)}
        hidden = max(1, num_in // self.reduction)
        weight_1, bias_1 = uniform_linear(generator, hidden, num_in)
        weight_2, bias_2 = uniform_linear(generator, 2 * num_out, hidden)
        net = {"weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}
        return {"context": context} | {name: t.to(context) for name, t in net.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        net = ("weight_1", "bias_1", "weight_2", "bias_2") if self.conditional else ("moments",)
        return dict.fromkeys(("context", *net), TensorSpec("shared"))

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        if batch.key is None:
            raise ValueError("the loss of bpl needs the key of a step's draws")
        mean, log_std = self._moments(params, batch.inputs["features"])
        rows = mean.shape[:-1]  # first, so that a row's draws do not depend on how many follow
        noise = normal(batch.key, "residual", *rows, self.num_samples, mean.shape[-1]).to(mean)
        noise = noise.movedim(-2, 0)  # [S, (B,) d_t]
        logits = self._of_each_sample(params, frozen, batch.inputs, noise)  # [S, B, C]
        losses = torch.stack([masked_cross_entropy(one, batch) for one in logits])
        square = mean**2 + torch.exp(2 * log_std) - 1 - 2 * log_std
        divergence = square.sum(dim=-1).expand(len(batch.labels)) / 2  # [B]
        return losses.mean() + self.kl_weight * masked_mean(divergence, batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        width = params["context"].shape[-1]
        key = torch.tensor(SCORING_KEY, device=params["context"].device)
        noise = normal(key, "residual", self.num_samples, width).to(params["context"])
        if self.conditional:
            noise = noise.unsqueeze(1)  # [S, 1, d_t]
        logits = self._of_each_sample(params, frozen, inputs, noise)  # [S, B, C]
        log_p = torch.log_softmax(logits, dim=-1)
        return torch.logsumexp(log_p, dim=0) - math.log(self.num_samples)  # [B, C]

    def _moments(self, params: Params, f: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma in units of the prior's deviation, each [B, d_t] or [d_t]."""
        if "moments" in params:
            both = params["moments"]
        else:
            hidden = F.relu(F.linear(f, params["weight_1"], params["bias_1"]))
            both = F.linear(hidden, params["weight_2"], params["bias_2"])
        mean, log_std = both.chunk(2, dim=-1)
        return mean, log_std

    def _of_each_sample(
        self, params: Params, frozen: Prompts, inputs: Params, noise: Tensor
    ) -> Tensor:
        """Logits [S, B, C] under residuals made of noise [S, B or 1, d_t], or [S, d_t]."""
        f = inputs["features"]
        mean, log_std = self._moments(params, f)
        residual = self.prior_std * (mean + torch.exp(log_std) * noise)  # [S, (B,) d_t]
        contexts = params["context"] + residual.unsqueeze(-2)  # [S, (B,) M, d_t]
        w = features_of_each(frozen, contexts.flatten(0, -3))
        if not self.conditional:
            return frozen.scale * f @ w.mT
        w = w.view(*contexts.shape[:2], *w.shape[1:])  # [S, B, C, D]
        return frozen.scale * (w @ f.unsqueeze(-1)).squeeze(-1)
