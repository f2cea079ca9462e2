"""Distances between features, for rules that keep a model near another one in features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["frobenius_batch", "mean_l2", "mean_sq_l2", "cosine", "l1"]


def feature_distance(
    kind: Distance, features: Tensor, reference: Tensor, mask: Tensor | None = None
) -> Tensor:
    """How far features [B, D] are from others, a scalar; gradient 0 where they are equal.

    The Frobenius norm of the whole difference, or over rows the mean L2 norm, its square, 1 - cos,
    or L1 norm. mask: [B], 0 for a row that does not count.
    """
    difference = features - reference
    if mask is not None:
        difference = torch.where(mask.unsqueeze(-1) > 0, difference, 0.0)
    match kind:
        case "frobenius_batch":
            return _norm(difference.flatten())
        case "mean_l2":
            each = _norm(difference)
        case "mean_sq_l2":
            each = (difference**2).sum(dim=-1)
        case "l1":
            each = difference.abs().sum(dim=-1)
        case "cosine":
            each = 1 - F.cosine_similarity(features, reference, dim=-1)
    if mask is None:
        return each.mean()
    kept = torch.where(mask > 0, each, 0.0)
    return kept.sum() / mask.to(kept.dtype).sum().clamp(min=1)


def micro_batch_distance(
    kind: Distance, features: Tensor, reference: Tensor, mask: Tensor, size: int | None
) -> Tensor:
    """The mean of the distances within consecutive parts of ``size`` rows that hold an example."""
    parts = [torch.split(t, size or len(mask)) for t in (features, reference, mask)]
    found = [feature_distance(kind, *part) for part in zip(*parts, strict=True)]
    present = torch.stack([part.amax(dim=-1) > 0 for part in parts[2]])
    total = torch.where(present, torch.stack(found), 0.0).sum()
    return total / present.sum().clamp(min=1)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm
