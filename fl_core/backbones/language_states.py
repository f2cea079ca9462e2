"""Stored states of texts: what enters a model's top layers, and the state of the last token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fl_core.backbones.language import Language
from fl_core.backbones.language_layers import Skipped
from fl_core.backbones.language_tower import (
    build_tower,
    first_layer,
    layers_of,
    puts_out_a_tuple,
    reading,
)
from fl_core.backbones.token_rows import PADDING


def below_top(backbone: Language, top_layers: int) -> Callable[[Tensor], Tensor]:
    """Token ids [B, L] -> what enters the top layers, float32 [B, L, d], 0 at padding."""
    tower = build_tower(backbone, ())
    _, layers = layers_of(tower.body, backbone.num_layers)
    in_tuple = puts_out_a_tuple(tower.body, layers)
    caught: list[Tensor] = []
    first = first_layer(backbone, top_layers)
    layers[first - 1].register_forward_hook(lambda m, given, out: caught.append(_state(out)))
    for place in range(first, len(layers)):
        layers[place] = Skipped(in_tuple)

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        ids = ids.to(backbone.device)
        valid, at = ids != PADDING, _used(backbone, ids)
        caught.clear()
        tower({}, ids[:, at], *reading(valid[:, at], tower.causal))
        states = torch.zeros(*ids.shape, backbone.width)
        states[:, at] = (caught.pop() * valid[:, at, None]).float().cpu()
        return states

    return encode


def last_token(backbone: Language) -> Callable[[Tensor], Tensor]:
    """Token ids [B, L] -> the last layer's state of each text's last token, float32 [B, d].

    0 for a text without a token.
    """
    tower = build_tower(backbone, ())

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        ids = ids.to(backbone.device)
        at = _used(backbone, ids)
        ids, valid = ids[:, at], ids[:, at] != PADDING
        hidden = tower({}, ids, *reading(valid, tower.causal))
        order = torch.arange(valid.shape[-1], device=valid.device)
        last = torch.where(valid, order, 0).amax(dim=-1)  # [B]
        states = hidden[torch.arange(len(ids), device=ids.device), last]  # [B, d]
        return (states * valid.any(dim=-1, keepdim=True)).float().cpu()

    return encode


def _used(backbone: Language, ids: Tensor) -> slice:
    """The columns of token ids [B, L] up to the longest text; at least one."""
    longest = max(1, int((ids != PADDING).any(dim=0).sum()))
    return slice(-longest, None) if backbone.info["padding"] == "left" else slice(longest)


def _state(out: Any) -> Tensor:
    state: Tensor = out[0] if isinstance(out, tuple) else out
    return state
