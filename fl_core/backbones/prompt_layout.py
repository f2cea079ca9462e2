"""The frozen half of a set of prompts: from planned integers to tensors ready for the tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.prompt_plan import PromptLayout, PromptPlan, plan_buckets, pool_index
from fl_core.backbones.transformer import (
    Block,
    TowerFacts,
    attend,
    feed_forward,
    heads_of,
    normed,
    scaled,
)
from fl_core.errors import ConfigError


@dataclass(frozen=True)
class PackedLayout(PromptLayout):
    """All about a set of prompts that no training step changes, as tensors ready for the tower.

    The tower works on R packed rows: first ``num_prefix`` context vectors that all classes share,
    then the suffixes of the classes, bucket by bucket (n classes of L tokens each). A packed row
    is either *live* (depends on the context) or *frozen* (embeddings and, for layer 0, queries,
    keys and values computed here, once).

    live_index: [V] which context vector each live row holds, None
    for 0..M-1 in order. live_position: [V, d] its positional embedding. frozen: [F, d].
    frozen_qkv: [F, 3d]. assemble: [R] indices into cat(live, frozen), None for the identity.
    bos_k, bos_v: [layers, heads, S, d_h], the constant keys and values of ``[SOS]``.
    prefix_mask: [num_prefix, num_prefix]. own_masks: per bucket [L, L] or None. pooled: [C]
    the packed rows that become class features. pooled_masks: per bucket [n, 1, L] or None.
    order: [C] from bucket order to class order, or None.
    """

    num_prefix: int
    buckets: tuple[tuple[int, int], ...]
    live_index: Tensor | None
    live_position: Tensor
    frozen: Tensor
    frozen_qkv: Tensor
    assemble: Tensor | None
    bos_k: Tensor
    bos_v: Tensor
    prefix_mask: Tensor | None
    own_masks: tuple[Tensor | None, ...]
    pooled: Tensor
    pooled_masks: tuple[Tensor | None, ...]
    order: Tensor | None

    @property
    def num_rows(self) -> int:
        """R: tokens per layer and step; the activations grow with it."""
        return self.num_prefix + sum(n * length for n, length in self.buckets)


class Source(NamedTuple):
    """The static half of a tower, as the functions here need it."""

    facts: TowerFacts
    weights: Mapping[str, Tensor]
    blocks: tuple[Block, ...]


class _Rows(NamedTuple):
    """Suffixes in bucket order: class, tokens padded to its bucket, and pooled position therein."""

    start: int
    num_prefix: int
    classes: list[int]
    tokens: list[tuple[int, ...]]
    pooled: list[int]


@torch.no_grad()
def packed_layout(source: Source, plan: PromptPlan, bucket_cost: int) -> PackedLayout:
    """The layout of planned prompts: shared prefix where the tower allows it, else whole rows."""
    rows = _suffixes(source.facts, plan, bucket_cost)
    prefix = [(-(m + 1), plan.num_bos + m) for m in range(rows.num_prefix)]
    packed = prefix + [(t, rows.start + i) for row in rows.tokens for i, t in enumerate(row)]
    live = list(dict.fromkeys(key for key in packed if key[0] < 0))
    one_to_one = len(live) == len(prefix)
    frozen = [key for key in packed if key[0] >= 0]
    frozen = frozen if one_to_one else list(dict.fromkeys(frozen))
    assemble = None
    if not one_to_one:
        index = {key: i for i, key in enumerate([*live, *frozen])}
        assemble = _index([index[key] for key in packed], source)
    vectors = [-token - 1 for token, _ in live]
    num_vectors = plan.num_tokens * (len(plan.rows) if plan.class_specific else 1)
    in_order = vectors == list(range(num_vectors))
    x = _embedded(source, _index([t for t, _ in frozen], source), [p for _, p in frozen])
    bos = plan.rows[0][: rows.start - rows.num_prefix]
    bos_k, bos_v = _bos_cache(source, _index(bos, source))
    buckets = tuple((len(list(g)), n) for n, g in groupby(len(row) for row in rows.tokens))
    inverse = sorted(range(len(rows.classes)), key=rows.classes.__getitem__)
    return PackedLayout(
        num_classes=len(plan.rows),
        num_tokens=plan.num_tokens,
        class_specific=plan.class_specific,
        num_prefix=rows.num_prefix,
        buckets=buckets,
        live_index=None if in_order else _index(vectors, source),
        live_position=_positions(source, [p for _, p in live]),
        frozen=x,
        frozen_qkv=_qkv(source, x),
        assemble=assemble,
        bos_k=bos_k,
        bos_v=bos_v,
        prefix_mask=_own_mask(source, rows.num_prefix, x),
        own_masks=tuple(_own_mask(source, n, x) for _, n in buckets),
        pooled=_index(_pooled_rows(rows), source),
        pooled_masks=tuple(_pooled_masks(source, buckets, rows.pooled, x)),
        order=None if inverse == list(range(len(inverse))) else _index(inverse, source),
    )


@torch.no_grad()
def token_layout(source: Source, ids: Tensor) -> PackedLayout:
    """The layout of whole token rows [C, L] without any context, cut after the last pooled one."""
    facts = source.facts
    if ids.shape[1] > facts.context_length:
        raise ConfigError(
            f"token rows have {ids.shape[1]} tokens, the text tower takes {facts.context_length}"
        )
    pooled = torch.full_like(ids[:, 0], ids.shape[1] - 1 if facts.pool == "last" else 0)
    if facts.pool in ("argmax", "eos"):
        key = ids if facts.pool == "argmax" else (ids == facts.eos_id).int()
        pooled = key.argmax(-1)  # [C]
        ids = ids[:, : int(pooled.max()) + 1] if facts.causal else ids
    num, length = ids.shape
    x = _embedded(source, ids.flatten(), list(range(length)) * num)  # [C·L, d]
    empty = x.new_zeros(facts.layers, facts.heads, 0, facts.width // facts.heads)
    buckets = ((num, length),)
    return PackedLayout(
        num_classes=num,
        num_tokens=0,
        class_specific=False,
        num_prefix=0,
        buckets=buckets,
        live_index=None,
        live_position=x[:0],
        frozen=x,
        frozen_qkv=_qkv(source, x),
        assemble=None,
        bos_k=empty,
        bos_v=empty,
        prefix_mask=None,
        own_masks=(_own_mask(source, length, x),),
        pooled=pooled + length * torch.arange(num, device=ids.device),
        pooled_masks=tuple(_pooled_masks(source, buckets, pooled.tolist(), x)),
        order=None,
    )


def _suffixes(facts: TowerFacts, plan: PromptPlan, bucket_cost: int) -> _Rows:
    """What each class has on its own: all after the shared prefix up to its pooled token, or for
    towers without a causal mask the whole row with its padding."""
    pools = [pool_index(row, facts.pool, facts.eos_id, facts.context_length) for row in plan.rows]
    start = plan.num_bos + plan.num_leading
    shareable = facts.causal and facts.pool in ("argmax", "eos") and min(pools) >= start
    if not shareable:
        full = [_padded(row, facts.context_length, plan.pad) for row in plan.rows]
        return _Rows(0, 0, list(range(len(full))), full, pools)
    lengths = plan_buckets([pool + 1 - start for pool in pools], bucket_cost)
    classes = sorted(range(len(lengths)), key=lengths.__getitem__)
    tokens = [_padded(plan.rows[c][start : pools[c] + 1], lengths[c], plan.pad) for c in classes]
    return _Rows(start, plan.num_leading, classes, tokens, [pools[c] - start for c in classes])


def _padded(row: Sequence[int], length: int, pad: int) -> tuple[int, ...]:
    return (*row, *[pad] * (length - len(row)))


def _index(values: Sequence[int], source: Source) -> Tensor:
    device = source.weights["token_embedding"].device
    return torch.tensor(list(values), dtype=torch.long, device=device)


def _positions(source: Source, positions: Sequence[int]) -> Tensor:
    return source.weights["positional_embedding"][_index(positions, source)]  # [n, d]


def _embedded(source: Source, ids: Tensor, positions: Sequence[int]) -> Tensor:
    return source.weights["token_embedding"][ids] + _positions(source, positions)  # [n, d]


def _qkv(source: Source, x: Tensor, layer: int = 0) -> Tensor:
    block = source.blocks[layer]
    y = normed(x, block.ln_1, block.ln_1_bias, source.facts.eps)
    return F.linear(y, block.qkv, block.qkv_bias)  # [n, 3d]


def _bos_cache(source: Source, bos: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [layers, h, S, d_h] of what stands before all prompts: it sees only itself,
    so it is constant in every layer of a causal tower."""
    facts, keys, values = source.facts, [], []
    x = _embedded(source, bos, range(len(bos)))  # [S, d]
    mask = _own_mask(source, len(bos), x)
    for layer, block in enumerate(source.blocks):
        q, k, v = heads_of(_qkv(source, x, layer), 1, 3, facts.heads)  # [h, 1, S, d_h]
        keys.append(k[:, 0])
        values.append(v[:, 0])
        y = attend(q, (k, v), (k[:, 0, :0], v[:, 0, :0]), mask)  # [S, d]
        y = F.linear(y, block.out, block.out_bias)
        x = feed_forward(facts, block, x + scaled(y, block.scale_1))
    return torch.stack(keys), torch.stack(values)


def _own_mask(source: Source, length: int, like: Tensor) -> Tensor | None:
    """Additive mask [L, L] under which a token sees itself and what stands before it."""
    if not source.facts.causal or length < 2:
        return None
    return like.new_full((length, length), float("-inf")).triu(1)


def _pooled_rows(rows: _Rows) -> list[int]:
    offset, pooled = rows.num_prefix, []
    for tokens, position in zip(rows.tokens, rows.pooled, strict=True):
        pooled.append(offset + position)
        offset += len(tokens)
    return pooled


def _pooled_masks(
    source: Source, buckets: Sequence[tuple[int, int]], pooled: Sequence[int], like: Tensor
) -> list[Tensor | None]:
    """Per bucket [n, 1, L]: the pooled token of a causal tower does not see what follows it."""
    masks: list[Tensor | None] = []
    start = 0
    for num, length in buckets:
        last = torch.tensor(pooled[start : start + num])
        start += num
        hidden = torch.arange(length) > last[:, None]  # [n, L]
        mask = torch.zeros(num, 1, length).masked_fill(hidden[:, None], float("-inf"))
        masks.append(mask.to(like) if source.facts.causal and bool(hidden.any()) else None)
    return masks
