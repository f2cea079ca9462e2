"""Answers in a causal model's own words: as tokens to be trained on, written, and read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fl_core.backbones.language_front import PREFIX
from fl_core.backbones.language_layers import PROMPT
from fl_core.backbones.language_tower import Tower, reading
from fl_core.backbones.token_rows import PADDING
from fl_core.errors import ConfigError, DataError
from fl_core.types import Params

if TYPE_CHECKING:
    from fl_core.backbones.language import Language


@dataclass(frozen=True)
class Answers:
    """How a model answers.

    end: the token after which an answer is over. max_new_tokens: of an answer, its end included.
    read: token ids [B, T], PADDING among them, to texts.
    """

    end: int
    max_new_tokens: int
    read: Callable[[Tensor], list[str]]


def answers_of(backbone: Language, max_new_tokens: int) -> Answers:
    """ConfigError where the model cannot write, or has no room for an answer after a text."""
    end = end_token(backbone)
    room = backbone.info["max_positions"]
    if room is not None and backbone.max_length + max_new_tokens > room:
        raise ConfigError(
            f"learner.max_new_tokens = {max_new_tokens} has no room after backbone.max_length = "
            f"{backbone.max_length}: the model has {room} positions. Their sum must be at most "
            f"{room}."
        )

    def read(ids: Tensor) -> list[str]:
        rows = [row[row != PADDING].tolist() for row in ids]
        texts = (backbone.tokenizer.decode(row, skip_special_tokens=True) for row in rows)
        return [str(text).strip() for text in texts]

    return Answers(end, max_new_tokens, read)


def end_token(backbone: Language) -> int:
    """The token that ends a text of the model's own."""
    if not backbone.causal:
        raise ConfigError(
            f"learner.head = generation needs a causal model, and {backbone.info['model']!r} is an "
            "encoder, which writes nothing. Set backbone.model to a causal one, or "
            "learner.head=classifier or similarity."
        )
    end = backbone.tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            f"learner.head = generation: the tokenizer of {backbone.info['model']!r} has no token "
            "that ends a text, so no answer would ever be over. Name its eos_token in the model's "
            "tokenizer_config.json."
        )
    return int(end)


def following(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each of some texts as they follow another text and a space."""
    bare: Callable[[str], list[int]] = lambda text: list(  # noqa: E731
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    before = bare("x")
    whole = [bare(f"x {text}") for text in texts]
    # Where the joint moves a boundary between tokens, the texts alone have to do.
    return [
        row[len(before) :] if row[: len(before)] == before else bare(f" {text}")
        for row, text in zip(whole, texts, strict=True)
    ]


def response_ids(backbone: Language, texts: Sequence[str], most: int) -> Tensor:
    """Token ids int32 [B, most] of responses and the end of each, PADDING behind.

    DataError where one has more tokens: none is cut off.
    """
    end = end_token(backbone)
    rows = [[*row, end] for row in following(backbone.tokenizer, [t.strip() for t in texts])]
    long = [len(row) for row in rows if len(row) > most]
    if long:
        raise DataError(
            f"{len(long)} of {len(rows)} responses have more than learner.max_new_tokens = {most} "
            f"tokens, the end of the text included; the longest has {max(long)}, and none is cut "
            f"off. Set learner.max_new_tokens={max(long)}, or leave the long ones out of the data."
        )
    ids = torch.full((len(rows), most), PADDING, dtype=torch.int32)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int32)
    return ids


@torch.no_grad()
def greedy(tower: Tower, params: Params, prompt: Tensor, end: int, most: int) -> Tensor:
    """The likeliest next token, again and again, after each text: token ids [B, T], T <= most.

    prompt: token ids [B, L], padded on either side. A row is PADDING behind its ``end``. What is
    before a token goes through the model once: its keys and values are kept.
    """
    text = prompt != PADDING
    seen, positions = reading(text, True)
    past = tower.open_past(params, len(prompt))
    hidden = tower(params, prompt, seen, positions, past=past)  # [B, L, d]
    order = torch.arange(text.shape[-1], device=prompt.device)
    last = torch.where(text, order, 0).amax(dim=-1)  # [B]
    state = hidden[torch.arange(len(prompt), device=prompt.device), last]  # [B, d]
    # The kept past begins with the trained tokens, which are not handed in again.
    front = [params[name] for name in (PROMPT, PREFIX) if name in params]
    rest = {name: tensor for name, tensor in params.items() if name not in (PROMPT, PREFIX)}
    num_front = sum(map(len, front))
    there = torch.cat([text.new_ones(len(text), num_front), text], dim=-1)
    place = there.sum(dim=-1, keepdim=True)  # [B, 1], of the next token
    done = torch.zeros_like(last, dtype=torch.bool)
    written: list[Tensor] = []
    for step in range(most):
        token = torch.where(done, PADDING, tower.logits(state).argmax(dim=-1))  # [B]
        written.append(token)
        done = done | (token == end)
        if step + 1 == most or bool(done.all()):
            break
        there = torch.cat([there, ~done.unsqueeze(-1)], dim=-1)
        hidden = tower(rest, token.unsqueeze(-1), there.unsqueeze(-2), place + step, past=past)
        state = hidden[:, -1]
    return torch.stack(written, dim=-1)
