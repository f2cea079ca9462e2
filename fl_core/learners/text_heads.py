"""From the hidden states of a language model to scores of classes, and to features of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.language import Language
from fl_core.backbones.language_tower import Tower, build_tower, reading
from fl_core.backbones.token_rows import PADDING
from fl_core.errors import ConfigError
from fl_core.learners.base import Feature
from fl_core.types import Params

Pooling = Literal["mean", "first", "last"]


def pooled(hidden: Tensor, valid: Tensor, how: Pooling) -> Tensor:
    """One state [B, d] of hidden states [B, L, d]; valid: bool [B, L], where there is a token."""
    if how == "mean":
        weights = valid.to(hidden.dtype).unsqueeze(-1)  # [B, L, 1]
        return (hidden * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)
    order = torch.arange(valid.shape[-1], device=valid.device)
    first = torch.where(valid, order, valid.shape[-1] - 1).amin(dim=-1)
    last = torch.where(valid, order, 0).amax(dim=-1)
    at = (first if how == "first" else last)[:, None, None]  # [B, 1, 1]
    return hidden.gather(-2, at.expand(-1, -1, hidden.shape[-1])).squeeze(-2)


def text_feature(hidden: Tensor, valid: Tensor, feature: Feature, num_prompt: int) -> Tensor:
    """h [B, d] of texts whose first ``num_prompt`` places are the prompt, padding included."""
    if feature == "prompt_only":
        return pooled(hidden[:, :num_prompt], valid[:, :num_prompt], "last")
    return pooled(hidden, valid, "mean" if feature == "mean_pool" else "last")


def class_name_features(backbone: Language, classes: Sequence[str], how: Pooling) -> Tensor:
    """Normalised states [C, d] of the class names alone, of the model without adapters."""
    tower = build_tower(backbone, ())
    ids = backbone.tokenize([_words(name) for name in classes]).to(backbone.device)
    valid = ids != PADDING
    with torch.no_grad():
        hidden = tower({}, ids, *reading(valid, tower.causal))
    return F.normalize(pooled(hidden, valid, how), dim=-1)


@dataclass(frozen=True)
class LabelWords:
    """The class names as tokens that follow a text.

    ids: [C, T], PADDING where a name has fewer tokens; lengths: [C]. The rest describes all names
    side by side behind one text, each without its last token, which predicts nothing: tokens [M],
    the depth of each in its name, whom it sees [M, M], the token that it predicts, and whose score
    that counts for (one-hot [M, C]).
    """

    ids: Tensor
    lengths: Tensor
    side_ids: Tensor
    side_depths: Tensor
    side_allowed: Tensor
    side_next: Tensor
    side_class: Tensor


def label_words(backbone: Language, classes: Sequence[str]) -> LabelWords:
    """ConfigError where the longest name has no room after the longest text."""
    rows = backbone.label_tokens([_words(name) for name in classes])
    longest = max(map(len, rows))
    room = backbone.info["max_positions"]
    if room is not None and backbone.max_length + longest > room:
        name = classes[max(range(len(rows)), key=lambda c: len(rows[c]))]
        raise ConfigError(
            f"backbone.max_length = {backbone.max_length} leaves no room for the label: the model "
            f"has {room} positions, and the class name {name!r} takes {longest}. Set "
            f"backbone.max_length to at most {room - longest}."
        )
    ids = torch.full((len(rows), longest), PADDING)
    for c, row in enumerate(rows):
        ids[c, : len(row)] = torch.tensor(row)
    nodes = [(c, j) for c, row in enumerate(rows) for j in range(len(row) - 1)]
    owner = torch.tensor([c for c, _ in nodes], dtype=torch.int64)
    depth = torch.tensor([j for _, j in nodes], dtype=torch.int64)
    made = LabelWords(
        ids=ids,
        lengths=torch.tensor([len(row) for row in rows]),
        side_ids=ids[owner, depth],
        side_depths=depth,
        side_allowed=(owner[:, None] == owner) & (depth <= depth[:, None]),
        side_next=ids[owner, depth + 1],
        side_class=F.one_hot(owner, len(rows)),
    )
    return LabelWords(**{name: tensor.to(backbone.device) for name, tensor in vars(made).items()})


def response_log_likelihood(
    tower: Tower, params: Params, prompt: Tensor, response: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log p of each text's own response per token [B], hidden states, and where tokens are.

    prompt: token ids [B, L]; response: [B, T], PADDING behind; the states are [B, L + T, d], of
    text and response.
    """
    response, own = response.long(), response != PADDING
    steps = torch.arange(response.shape[-1], device=prompt.device)
    hidden, valid = _after(
        tower, params, prompt, (response, own, steps[:, None] >= steps, steps)
    )  # [B, L + T, d]
    num_prompt = prompt.shape[-1]
    start = pooled(hidden[:, :num_prompt], valid[:, :num_prompt], "last")
    before = torch.cat([start.unsqueeze(1), hidden[:, num_prompt:-1]], dim=1)  # [B, T, d]
    log_p = tower.log_probs(before)
    picked = log_p.gather(-1, response.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # [B, T]
    total = torch.where(own, picked, 0.0).sum(dim=-1)
    return total / own.sum(dim=-1).clamp(min=1), hidden, valid


def label_scores(tower: Tower, words: LabelWords, params: Params, prompt: Tensor) -> Tensor:
    """log p of every class name per token, [B, C].

    All names stand behind one copy of the text, and none sees another.
    """
    num_texts, num_prompt = prompt.shape
    side = words.side_ids.expand(num_texts, -1)  # [B, M]
    extra = side, torch.ones_like(side, dtype=torch.bool), words.side_allowed, words.side_depths
    hidden, valid = _after(tower, params, prompt, extra)
    start = pooled(hidden[:, :num_prompt], valid[:, :num_prompt], "last")
    total = tower.log_probs(start)[:, words.ids[:, 0]]  # [B, C]
    if len(words.side_next):
        log_p = tower.log_probs(hidden[:, num_prompt:])  # [B, M, V]
        following = words.side_next.expand(num_texts, -1).unsqueeze(-1)
        picked = log_p.gather(-1, following).squeeze(-1)  # [B, M]
        total = total + picked @ words.side_class.to(picked.dtype)
    return total / words.lengths


def _after(
    tower: Tower, params: Params, prompt: Tensor, extra: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Hidden states of texts [B, L] and of what follows each, and where there are tokens.

    extra: token ids [B, M], which of them there are, whom of each other they see [M, M], and how
    far behind the text each stands [M].
    """
    more, there, among, depths = extra
    in_prompt = prompt != PADDING
    seen, positions = reading(in_prompt, True)
    assert positions is not None  # a causal model counts its own positions
    num_prompt, num_more = prompt.shape[-1], more.shape[-1]
    to_prompt = in_prompt.unsqueeze(-2).expand(-1, num_more, -1)  # [B, M, L]
    to_more = among & there.unsqueeze(-2)  # [B, M, M]
    above = torch.cat([seen, torch.zeros_like(to_prompt).mT], dim=-1)
    allowed = torch.cat([above, torch.cat([to_prompt, to_more], dim=-1)], dim=-2)
    behind = in_prompt.sum(dim=-1, keepdim=True) + depths  # [B, M]
    positions = torch.cat([positions, behind], dim=-1)
    ids = torch.cat([prompt.to(more.dtype), more], dim=-1)
    hidden = tower(params, ids, allowed, positions)
    assert hidden.shape[-2] == num_prompt + num_more
    return hidden, torch.cat([in_prompt, there], dim=-1)


def _words(name: str) -> str:
    return name.replace("_", " ").strip()
