"""FedTPG (Qiu et al., 2024, arXiv:2310.06123): a network writes the prompt from the class names."""

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
    normal,
    prepare_prompts,
    template_features,
    uniform_linear,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class FedTPGFrozen:
    """names: [C, D], normalised features of the bare class names; reference: of the template."""

    prompts: Prompts
    names: Tensor
    reference: Tensor


@dataclass(frozen=True)
class FedTPG:
    """context = h + FF(LN(h)), h = Q + attention(LN(Q), LN(names)); cross entropy on s f w^T.

    Q [M, d_t] is learned; the feed-forward part is GEGLU, four times as wide. The context depends
    on the set of class names, so that unseen names get a prompt of their own.

    num_tokens: M. heads: of the attention; they divide d_t. weight: omega of KgCoOp's term
    mean_c ||w_c - w_c^zs||^2; 0 leaves it out.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["fedtpg"] = "fedtpg"
    num_tokens: int = 4
    heads: int = 4
    weight: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", heads=">= 1", weight=">= 0")

    def prepare(self, backbone: Clip, task: Task) -> FedTPGFrozen:
        if backbone.width % self.heads:
            raise ConfigError(
                f"heads = {self.heads} is not allowed: it must divide the text width, "
                f"which is {backbone.width}."
            )
        prompts = prepare_prompts(backbone, task, self.num_tokens)
        names = template_features(backbone, task.classes, ("{}",))
        reference = template_features(backbone, task.classes, task.templates[:1])
        return FedTPGFrozen(prompts, names, reference)

    def init(self, frozen: FedTPGFrozen, generator: torch.Generator) -> Params:
        d, num_in = frozen.prompts.tower.width, frozen.names.shape[-1]
        params = {"query": normal(generator, self.num_tokens, d)}  # [M, d_t]
        for name, width in (("query", d), ("names", num_in), ("hidden", d)):
            params[f"norm_{name}"] = torch.stack([torch.ones(width), torch.zeros(width)])
        params["to_q"], _ = uniform_linear(generator, d, d)
        params["to_kv"], _ = uniform_linear(generator, 2 * d, num_in)
        for name, num_out, width in (("out", d, d), ("up", 8 * d, d), ("down", d, 4 * d)):
            params[name], params[f"{name}_bias"] = uniform_linear(generator, num_out, width)
        return {name: tensor.to(frozen.names) for name, tensor in params.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return dict.fromkeys(params, TensorSpec("shared"))

    def features(self, params: Params, frozen: FedTPGFrozen) -> Tensor:
        return class_features(frozen.prompts, self.context(params, frozen.names))

    def context(self, params: Params, names: Tensor) -> Tensor:
        """The prompt [M, d_t] for classes whose bare names have these features [C, D]."""
        q = F.linear(_normed(params["query"], params["norm_query"]), params["to_q"])
        kv = F.linear(_normed(names, params["norm_names"]), params["to_kv"])
        parts = (q, *kv.chunk(2, dim=-1))
        q, k, v = (part.reshape(len(part), self.heads, -1).transpose(0, 1) for part in parts)
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)  # [h, M, C]
        mixed = (weights @ v).transpose(0, 1).flatten(-2)  # [M, d_t]
        hidden = params["query"] + F.linear(mixed, params["out"], params["out_bias"])
        up = F.linear(_normed(hidden, params["norm_hidden"]), params["up"], params["up_bias"])
        value, gate = up.chunk(2, dim=-1)
        return hidden + F.linear(value * F.gelu(gate), params["down"], params["down_bias"])

    def loss(self, params: Params, frozen: FedTPGFrozen, batch: Batch) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        logits = frozen.prompts.scale * batch.inputs["features"] @ w.mT  # [B, C]
        loss = masked_cross_entropy(logits, batch)
        if not self.weight:
            return loss
        return loss + self.weight * ((w - frozen.reference) ** 2).sum(dim=-1).mean()

    def logits(self, params: Params, frozen: FedTPGFrozen, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * inputs["features"] @ w.mT  # [B, C]


def _normed(x: Tensor, weight_and_bias: Tensor) -> Tensor:
    """LayerNorm of [..., d] by weight and bias [2, d]."""
    weight, bias = weight_and_bias
    return F.layer_norm(x, x.shape[-1:], weight, bias)
