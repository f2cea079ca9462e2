"""A pre-norm transformer block as functions of explicit weights (Vaswani et al., 2017,
arXiv:1706.03762; as in CLIP, arXiv:2103.00020).

Attention is written out as two matmuls and a softmax, because CPU builds of torch have no vmap
rule for ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class BlockFacts(Protocol):
    """What the parts of a block have to know of their tower."""

    @property
    def activation(self) -> Activation: ...
    @property
    def eps(self) -> float: ...


@dataclass(frozen=True)
class TowerFacts:
    """What is static about a text tower. ``eos_id`` matters for ``pool`` "eos" only."""

    width: int
    heads: int
    layers: int
    context_length: int
    vocab_size: int
    embed_dim: int
    causal: bool
    activation: Activation
    pool: Literal["argmax", "eos", "last", "first"]
    eos_id: int
    eps: float


class Block(NamedTuple):
    """The weights of one residual attention block. Matrices are [out, in], as in nn.Linear."""

    ln_1: Tensor
    ln_1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    ln_2: Tensor
    ln_2_bias: Tensor
    fc: Tensor
    fc_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    scale_1: Tensor | None
    scale_2: Tensor | None


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, in the precision of its weights."""
    y = F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps)
    return y.to(x.dtype)


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def feed_forward(facts: BlockFacts, block: Block, x: Tensor) -> Tensor:
    """The residual MLP of a block, [R, d] -> [R, d]."""
    y = F.linear(normed(x, block.ln_2, block.ln_2_bias, facts.eps), block.fc, block.fc_bias)
    if facts.activation == "quick_gelu":
        y = y * torch.sigmoid(1.702 * y)
    else:
        y = F.gelu(y, approximate="tanh" if facts.activation == "gelu_tanh" else "none")
    return x + scaled(F.linear(y, block.proj, block.proj_bias), block.scale_2)


def attend(
    q: Tensor, own: tuple[Tensor, Tensor], shared: tuple[Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    """Attention of n sequences whose keys are partly their own and partly common to all.

    q: [h, n, Q, d_h]. own: keys and values [h, n, L, d_h], under an additive mask that broadcasts
    to [h, n, Q, L]. shared: keys and values [h, P, d_h], seen by every query. Returns [n·Q, d].
    """
    q = q * q.shape[-1] ** -0.5
    scores = q @ own[0].mT  # [h, n, Q, L]
    scores = scores if mask is None else scores + mask
    num_shared = shared[0].shape[-2]
    if num_shared:
        on_shared = q.flatten(1, 2) @ shared[0].mT  # [h, n·Q, P]
        scores = torch.cat([on_shared.view(*q.shape[:-1], num_shared), scores], -1)
        sizes = [num_shared, own[0].shape[-2]]
        left, right = torch.split(torch.softmax(scores, -1), sizes, -1)
        y = (left.flatten(1, 2) @ shared[1]).view(q.shape) + right @ own[1]
    else:
        y = torch.softmax(scores, -1) @ own[1]
    return y.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def heads_of(rows: Tensor, num: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Packed projections [n·L, parts·d] -> ``parts`` tensors [h, n, L, d_h]."""
    split = rows.view(num, -1, parts, heads, rows.shape[-1] // (parts * heads))
    return split.permute(2, 3, 0, 1, 4).unbind(0)
