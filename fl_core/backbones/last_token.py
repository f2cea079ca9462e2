"""One state per text of the frozen language model, by which texts are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fl_core.backbones.language import Language
from fl_core.backbones.language_tower import build_tower, reading
from fl_core.backbones.token_rows import PADDING


def last_token(backbone: Language) -> Callable[[Tensor], Tensor]:
    """Token ids [B, L] -> the last layer's state of each text's last token, float32 [B, d].

    0 for a text without a token.
    """
    tower = build_tower(backbone, ())

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        ids = ids.to(backbone.device)
        longest = max(1, int((ids != PADDING).any(dim=0).sum()))
        at = slice(-longest, None) if backbone.info["padding"] == "left" else slice(longest)
        ids, valid = ids[:, at], ids[:, at] != PADDING
        hidden = tower({}, ids, *reading(valid, tower.causal))
        order = torch.arange(valid.shape[-1], device=valid.device)
        last = torch.where(valid, order, 0).amax(dim=-1)  # [B]
        states = hidden[torch.arange(len(ids), device=ids.device), last]  # [B, d]
        return (states * valid.any(dim=-1, keepdim=True)).float().cpu()

    return encode
