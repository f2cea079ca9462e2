"""Arithmetic of low-rank adapters: the change of a frozen weight is scale B A.

A is [r, d_in] and B is [d_out, r]; which tensors are the two factors of one adapter stands in their
``TensorSpec``: a role each, and the group that they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fl_core.types import Params, TensorSpec


class Pair(NamedTuple):
    """The names of an adapter's factors, and alpha / r."""

    a: str
    b: str
    scale: float


def pairs_of(specs: Mapping[str, TensorSpec]) -> dict[str, Pair]:
    """The adapters among tensors, by group, in the order of the groups."""
    a = {spec.group: name for name, spec in specs.items() if spec.role == "lora_A"}
    b = {spec.group: name for name, spec in specs.items() if spec.role == "lora_B"}
    return {g: Pair(a[g], b[g], specs[b[g]].scale) for g in sorted(a.keys() & b.keys())}


def delta_of(group: str) -> str:
    """The name of the dense [d_out, d_in] that a learner adds to this adapter's frozen weight."""
    return f"{group}.delta"


def side_by_side(b: Sequence[Tensor], a: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two factors [d_out, n] and [n, d_in] whose product is the sum of all b_k a_k."""
    return torch.cat(list(b), dim=1), torch.cat(list(a), dim=0)


def leading(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of left [d_out, n] right [n, d_in] of this rank, as U S and V^T.

    The rows of V^T are orthonormal where S is 0 too, so that nothing there stops learning.
    """
    if rank <= left.shape[1] < min(left.shape[0], right.shape[1]):
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.mT)
        u, s, v = torch.linalg.svd(r_left @ r_right.mT)
        u, v = q_left @ u, v @ q_right.mT
    else:
        u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    return u[:, :rank] * s[:rank], v[:rank]


def mixed(
    theta: Params, phi: Params, share: float | Tensor, specs: Mapping[str, TensorSpec]
) -> Params:
    """Parameters under which each module gives (1 - share) of theta's output and share of phi's.

    The factors of an adapter stand side by side, of twice the rank; every other tensor is
    interpolated, which comes to the same in a linear module. Only tensors of ``phi`` come back.
    """
    both = {name: (1 - share) * theta[name] + share * own for name, own in phi.items()}
    for pair in pairs_of(specs).values():
        if pair.a in phi:
            both[pair.a] = torch.cat([theta[pair.a], phi[pair.a]], dim=0)
        if pair.b in phi:
            both[pair.b] = torch.cat([(1 - share) * theta[pair.b], share * phi[pair.b]], dim=1)
    return both


def gradient_of_phi(gradient: Params, share: float, specs: Mapping[str, TensorSpec]) -> Params:
    """The gradient with respect to phi, from that with respect to ``mixed``."""
    own = {name: share * grad for name, grad in gradient.items()}
    for pair in pairs_of(specs).values():
        if pair.a in gradient:
            own[pair.a] = gradient[pair.a].chunk(2, dim=0)[1]
        if pair.b in gradient:
            own[pair.b] = share * gradient[pair.b].chunk(2, dim=1)[1]
    return own
