"""A low-rank approximation by one power iteration (Vogels et al., 2019, arXiv:1905.13727)."""

from __future__ import annotations

import torch
from torch import Tensor


def factors(prompt: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """u [M, k] and v [k, d_t] of a prompt [M, d_t] by one power iteration from [d_t, k]."""
    u = _orthonormal(prompt @ start)
    return u, _orthonormal(prompt.mT @ u).mT


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram-Schmidt: the signs are those of the columns, whatever a library's QR prefers."""
    q, r = torch.linalg.qr(columns)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    signed: Tensor = q * torch.where(diagonal < 0, -1.0, 1.0).unsqueeze(-2)
    return signed
