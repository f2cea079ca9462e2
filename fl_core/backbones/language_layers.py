"""What stands in place of a language model's layers, so that tensors can be handed in by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.draws import uniform

LORA_A, LORA_B, DELTA, KEY = "lora_A", "lora_B", "delta", "key"
IA3_IN, IA3_OUT = "ia3_in", "ia3_out"
HELD = (LORA_A, LORA_B, DELTA, KEY, IA3_IN, IA3_OUT)
PROMPT = "prompt"


class Adapted(nn.Module):
    """A frozen linear layer x W' + scale (drop(x) A') B', with A [r, d_in] and B [d_out, r].

    delta [d_out, d_in] is added to W where it is given; key, an int64 scalar, is that of the draws
    of ``drop``, and nothing is dropped without it. Inputs are multiplied by ia3_in [d_in] and
    outputs by ia3_out [d_out]. What is not given is empty.
    """

    def __init__(self, layer: nn.Module, path: str, scale: float, dropout: float) -> None:
        super().__init__()
        self.layer, self.path, self.scale, self.dropout = layer, path, scale, dropout
        for name in HELD:
            self.register_buffer(name, torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b, delta, key, before, after = (self.get_buffer(name) for name in HELD)
        if before.numel():
            x = (x * before).to(x.dtype)
        out: Tensor = self.layer(x)
        if a.numel():
            kept = self._dropped(x, key) if self.dropout and key.numel() else x
            out = out + self.scale * F.linear(F.linear(kept, a.to(x.dtype)), b.to(x.dtype))
        if delta.numel():
            out = out + F.linear(x, delta.to(x.dtype))
        return (out * after).to(out.dtype) if after.numel() else out

    def _dropped(self, x: Tensor, key: Tensor) -> Tensor:
        drawn = uniform(key, f"dropout {self.path}", *x.shape)
        return torch.where(drawn < self.dropout, 0.0, x / (1 - self.dropout))


class Prompted(nn.Module):
    """Frozen word embeddings [B, L, d], of which a prompt [P, d] takes the first P places."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer(PROMPT, torch.empty(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        words: Tensor = self.layer(ids)
        prompt = self.get_buffer(PROMPT)
        if not prompt.numel():
            return words
        first = prompt.to(words.dtype).expand(len(words), -1, -1)  # [B, P, d]
        return torch.cat([first, words[:, len(prompt) :]], dim=1)


class Skipped(nn.Module):
    """Stands for a layer that is not computed: hands on what it gets."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden: Tensor, *others: Any, **named: Any) -> Any:
        return (hidden,) if self.in_tuple else hidden


class Stored(Skipped):
    """Stands for the last of the layers that are not computed: puts out stored states."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__(in_tuple)
        self.register_buffer("states", torch.empty(0), persistent=False)

    def forward(self, hidden: Tensor, *others: Any, **named: Any) -> Any:
        states = self._buffers["states"]
        assert states is not None  # handed in with every call
        return super().forward(states)
