"""Answers in a causal model's own words: as tokens to be trained on, written, and read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fl_core.backbones.token_rows import PADDING
from fl_core.errors import ConfigError, DataError

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
