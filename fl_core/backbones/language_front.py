"""What comes before a text in a language model: trained inputs, or trained keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_core.errors import ConfigError

PREFIX = "prefix"


def see_front(allowed: Tensor, num: int) -> Tensor:
    """Everyone sees ``num`` places before the text: bool [B, L, L] -> [B, L, num + L]."""
    seen = torch.ones(*allowed.shape[:-1], num, dtype=torch.bool, device=allowed.device)
    return torch.cat([seen, allowed], dim=-1)


def with_prompt(
    allowed: Tensor, positions: Tensor | None, num: int, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """``reading`` of texts with ``num`` prompt tokens before them: [B, P + L, P + L], [B, P + L].

    In an encoder the prompt sees the text, where there is any; in a causal model itself alone.
    """
    batch, device = len(allowed), allowed.device
    among = torch.ones(num, num, dtype=torch.bool, device=device)
    among = (among.tril() if causal else among).expand(batch, -1, -1)
    there = allowed.any(dim=-2, keepdim=True).expand(-1, num, -1)  # [B, P, L]
    front = torch.cat([among, torch.zeros_like(there) if causal else there], dim=-1)
    allowed = torch.cat([front, see_front(allowed, num)], dim=-2)
    if positions is None:
        return allowed, None
    first = torch.arange(num, device=device).expand(batch, -1)
    return allowed, torch.cat([first, positions + num], dim=-1)


def past_of(prefix: Tensor, batch: int, dtype: torch.dtype) -> Any:
    """A prefix [P, 2 layers, h, d_h] as the keys and values that transformers has of the past."""
    from transformers import DynamicCache

    rows = prefix.to(dtype).permute(1, 2, 0, 3).unsqueeze(1)  # [2 layers, 1, h, P, d_h]
    each = rows.expand(-1, batch, -1, -1, -1).unbind(0)
    return DynamicCache(list(zip(each[::2], each[1::2], strict=True)))


def prefix_shape(body: nn.Module) -> tuple[int, int, int]:
    """Of one prefix token: keys and values of all layers, their heads, and a head's width.

    Read off what one token leaves behind, since configs name these in many ways.
    """
    from transformers import DynamicCache

    past: Any = DynamicCache()
    with torch.no_grad():
        ids = torch.zeros(1, 1, dtype=torch.int64, device=next(body.parameters()).device)
        body(ids, past_key_values=past)
    _, heads, _, width = past.layers[0].keys.shape  # [1, h, 1, d_h]
    return 2 * len(past.layers), heads, width


def check_takes_prefix(body: nn.Module) -> None:
    """ConfigError for a model whose attention takes no keys and values besides its own."""
    from inspect import signature

    if "past_key_values" not in signature(body.forward).parameters:
        raise ConfigError(
            f"learner = prefix needs a model that takes keys and values, and {type(body).__name__} "
            "takes none. Choose learner=prompt_tuning, ia3 or lora."
        )
