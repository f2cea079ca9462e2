"""Writing behind texts: each is read once, and what follows goes on from its keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fl_core.backbones.language_front import PREFIX
from fl_core.backbones.language_layers import PROMPT
from fl_core.backbones.language_tower import Tower, reading
from fl_core.backbones.token_rows import PADDING
from fl_core.types import Params

FRONT = (PROMPT, PREFIX)
Past = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of all layers, each [B, h, P, d_h]."""


@dataclass(frozen=True)
class Begun:
    """Texts that a model has read, or each its own one (``each``).

    params: what is still to be handed in; with ``each`` [B, ...]. state: of each text's last token,
    [B, d]. there: bool [B, P], where the past holds a token; trained ones come first in it.
    """

    tower: Tower
    each: bool
    params: Params
    state: Tensor
    there: Tensor
    past: Past

    def followed(self, ids: Tensor, own: Tensor) -> tuple[Tensor, Past]:
        """States [B, T, d] of token ids [B, T] behind the texts, and the past with them.

        own: bool [B, T], which of them are tokens; each sees those before it.
        """
        steps = torch.arange(ids.shape[-1], device=ids.device)

        def run(params: Params, ids: Tensor, own: Tensor, there: Tensor, past: Past) -> Any:
            before = there.unsqueeze(-2).expand(-1, len(steps), -1)  # [B, T, P]
            among = own.unsqueeze(-2) & (steps[:, None] >= steps)  # [B, T, T]
            positions = there.sum(dim=-1, keepdim=True) + steps
            kept = _opened(past)
            allowed = torch.cat([before, among], dim=-1)
            return self.tower(params, ids, allowed, positions, past=kept), _past(kept)

        lanes = _in_lanes(run) if self.each else run
        found: tuple[Tensor, Past] = lanes(self.params, ids, own, self.there, self.past)
        return found

    def only(self, rows: Tensor) -> Begun:
        """Some of the texts."""
        return replace(
            self,
            params={n: t[rows] for n, t in self.params.items()} if self.each else self.params,
            state=self.state[rows],
            there=self.there[rows],
            past=tuple((keys[rows], values[rows]) for keys, values in self.past),
        )

    def one_more(self, token: Tensor) -> Begun:
        """With a token [B] behind each text."""
        here = torch.ones_like(token, dtype=torch.bool).unsqueeze(-1)  # [B, 1]
        hidden, past = self.followed(token.unsqueeze(-1), here)
        there = torch.cat([self.there, here], dim=-1)
        return replace(self, state=hidden[:, -1], there=there, past=past)


@torch.no_grad()
def begin(tower: Tower, params: Params, prompt: Tensor, *, each: bool = False) -> Begun:
    """Read texts once.

    prompt: token ids [B, L], padded on either side. each: every text has a model of its own, and
    ``params`` are [B, ...]; the frozen model then still sees all texts as one batch.
    """

    def run(params: Params, prompt: Tensor) -> tuple[Tensor, Past]:
        text = prompt != PADDING
        seen, positions = reading(text, True)
        past = tower.open_past(params, len(prompt))
        hidden = tower(params, prompt, seen, positions, past=past)  # [B, L, d]
        order = torch.arange(text.shape[-1], device=prompt.device)
        last = torch.where(text, order, 0).amax(dim=-1)[:, None, None]  # [B, 1, 1]
        state = hidden.gather(-2, last.expand(-1, 1, hidden.shape[-1])).squeeze(-2)
        return state, _past(past)

    state, past = (_in_lanes(run) if each else run)(params, prompt)
    text, first = prompt != PADDING, 1 if each else 0
    num_front = sum(params[name].shape[first] for name in FRONT if name in params)
    there = torch.cat([text.new_ones(len(text), num_front), text], dim=-1)
    # What is trained in front stands in the past now, and is not handed in again.
    rest = {name: tensor for name, tensor in params.items() if name not in FRONT}
    return Begun(tower, each, rest, state, there, past)


@torch.no_grad()
def greedy(begun: Begun, end: int, most: int) -> Tensor:
    """The likeliest next token, again and again, behind each text: token ids [B, T], T <= most.

    A row is PADDING behind its ``end``, and is computed no further.
    """
    num = len(begun.state)
    rows = torch.arange(num, device=begun.state.device)
    written = torch.full((num, most), PADDING, device=rows.device)
    for step in range(most):
        token = begun.tower.logits(begun.state).argmax(dim=-1)
        written[rows, step] = token
        left = torch.nonzero(token != end).flatten()
        if step + 1 == most or not len(left):
            break
        if len(left) < len(rows):
            begun, rows, token = begun.only(left), rows[left], token[left]
        begun = begun.one_more(token)
    return written[:, : step + 1]


@torch.no_grad()
def log_likelihood(begun: Begun, response: Tensor) -> Tensor:
    """log p of each text's own response per token, [B]; response: [B, T], PADDING behind."""
    response, own = response.long(), response != PADDING
    states = begun.state.unsqueeze(1)  # of what comes before each token
    if response.shape[-1] > 1:
        more, _ = begun.followed(response[:, :-1], own[:, :-1])
        states = torch.cat([states, more], dim=1)  # [B, T, d]
    log_p = begun.tower.log_probs(states)
    picked = log_p.gather(-1, response.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # [B, T]
    total = torch.where(own, picked, 0.0).sum(dim=-1)
    return total / own.sum(dim=-1).clamp(min=1)


def _opened(past: Past) -> Any:
    """As transformers has it, without a copy."""
    from transformers import DynamicCache

    kept: Any = DynamicCache([(keys[..., :0, :], values[..., :0, :]) for keys, values in past])
    for layer, (keys, values) in zip(kept.layers, past, strict=True):
        layer.keys, layer.values = keys, values
    return kept


def _past(kept: Any) -> Past:
    return tuple((layer.keys, layer.values) for layer in kept.layers)


def _in_lanes(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` for batches of one, each with its own parameters, as one batch."""

    def one(params: Params, *given: Any) -> Any:
        return _each(run(params, *_each(given, lambda t: t.unsqueeze(0))), lambda t: t.squeeze(0))

    return torch.vmap(one)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return tuple(_each(part, change) for part in value)
