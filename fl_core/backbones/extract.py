"""Text towers out of open_clip models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_core.backbones.text_tower import FunctionalTower
from fl_core.backbones.transformer import Activation, Block, TowerFacts


class NotExpressible(Exception):  # noqa: N818
    """Why a model's text tower is not one that ``FunctionalTower`` computes."""


def text_tower(model: nn.Module) -> FunctionalTower:
    """The tower of open_clip's ``CLIP`` or ``CustomTextCLIP``; raises NotExpressible with a reason.

    Matrices take the compute precision of the blocks, LayerNorms keep theirs (open_clip computes
    them in float32 when the rest is in half precision).
    """
    part = _native_text(model)
    facts = _facts(part)
    blocks = part["transformer"].resblocks
    dtype = blocks[0].attn.in_proj_weight.dtype
    weights: dict[str, Tensor] = {
        "token_embedding": part["token_embedding"].weight.to(dtype),
        "positional_embedding": part["positional_embedding"].to(dtype),
        "ln_final": part["ln_final"].weight,
        "ln_final_bias": part["ln_final"].bias,
    }
    projection = part["text_projection"]
    if isinstance(projection, nn.Linear):
        weights["projection"] = projection.weight
        if projection.bias is not None:
            weights["projection_bias"] = projection.bias
    elif projection is not None:
        weights["projection"] = projection.T.contiguous()
    for i, block in enumerate(blocks):
        named = zip(Block._fields, block_weights(block), strict=True)
        weights |= {f"blocks.{i}.{name}": w for name, w in named if w is not None}
    return FunctionalTower(facts, {name: w.detach() for name, w in weights.items()})


def _native_text(model: nn.Module) -> dict[str, Any]:
    """The parts of a text tower built from open_clip's own Transformer, wherever they live."""
    text = getattr(model, "text", model)
    if type(text).__name__ not in ("CLIP", "TextTransformer"):
        raise NotExpressible(f"its text tower is a {type(text).__name__}")
    inlined = text is model
    return {
        "transformer": text.transformer,
        "token_embedding": text.token_embedding,
        "positional_embedding": text.positional_embedding,
        "ln_final": text.ln_final,
        "text_projection": text.text_projection,
        "attn_mask": text.attn_mask,
        "pool": text.text_pool_type if inlined else text.pool_type,
        "eos_id": text.text_eos_id if inlined else text.eos_id,
        "cls_emb": None if inlined else text.cls_emb,
        "use_pad_mask": False if inlined else text.use_pad_mask,
    }


def _facts(part: dict[str, Any]) -> TowerFacts:
    blocks = part["transformer"].resblocks
    kinds = {type(block).__name__ for block in blocks}
    if kinds != {"ResidualAttentionBlock"}:
        raise NotExpressible(f"its blocks are {', '.join(sorted(kinds))}")
    if part["cls_emb"] is not None:
        raise NotExpressible("it appends a class embedding (CoCa)")
    if part["use_pad_mask"]:
        raise NotExpressible("it masks padding")
    if part["pool"] not in ("argmax", "eos", "last", "first"):
        raise NotExpressible(f"it pools by {part['pool']!r}")
    eps = {n.eps for block in blocks for n in (block.ln_1, block.ln_2)} | {part["ln_final"].eps}
    if len(eps) > 1:
        raise NotExpressible(f"its LayerNorms have different eps {sorted(eps)}")
    vocab_size, width = part["token_embedding"].weight.shape
    projection = part["text_projection"]
    embed_dim = width
    if projection is not None:
        linear = isinstance(projection, nn.Linear)
        embed_dim = projection.out_features if linear else projection.shape[1]
    return TowerFacts(
        width=width,
        heads=blocks[0].attn.num_heads,
        layers=len(blocks),
        context_length=len(part["positional_embedding"]),
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        causal=part["attn_mask"] is not None,
        activation=activation_of(blocks[0].mlp.gelu),
        pool=part["pool"],
        eos_id=part["eos_id"],
        eps=eps.pop(),
    )


def activation_of(module: nn.Module) -> Activation:
    """The name of a block's activation; raises NotExpressible for others."""
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    raise NotExpressible(f"its activation is {type(module).__name__}")


def block_weights(block: Any) -> Block:
    """The weights of open_clip's ``ResidualAttentionBlock``."""
    return Block(
        ln_1=block.ln_1.weight,
        ln_1_bias=block.ln_1.bias,
        qkv=block.attn.in_proj_weight,
        qkv_bias=block.attn.in_proj_bias,
        out=block.attn.out_proj.weight,
        out_bias=block.attn.out_proj.bias,
        ln_2=block.ln_2.weight,
        ln_2_bias=block.ln_2.bias,
        fc=block.mlp.c_fc.weight,
        fc_bias=block.mlp.c_fc.bias,
        proj=block.mlp.c_proj.weight,
        proj_bias=block.mlp.c_proj.bias,
        scale_1=_gamma(block.ls_1),
        scale_2=_gamma(block.ls_2),
    )


def _gamma(module: nn.Module) -> torch.Tensor | None:
    gamma = getattr(module, "gamma", None)
    return gamma if isinstance(gamma, torch.Tensor) else None
