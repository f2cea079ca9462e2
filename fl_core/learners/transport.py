"""Entropic optimal transport between patches and prompts, in logarithms and without host syncs.

Sinkhorn's scaling (Cuturi, 2013, arXiv:1306.0895), and the variant of FedOTP (Li et al., 2024,
arXiv:2403.00041) in which not all of the patches' mass has to move.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def transport_scores(
    patches: Tensor,
    prompts: Tensor,
    eps: float,
    max_iterations: int,
    tolerance: float,
    mass: float | None = None,
) -> Tensor:
    """Similarity under the transport plan, ``sum T * (g w^T)``, for every image and class: [B, C].

    patches: [B, L, D] and prompts: [P, C, D], both normalised. The plan moves mass 1/L of each
    patch to 1/P of each prompt at cost 1 - cos; with ``mass`` at most 1/L of each patch to mass/P
    of each prompt. No gradient passes through the plan.
    """
    similarity = torch.einsum("bld,pcd->bcpl", patches, prompts)
    cost = 1 - similarity.detach()
    plan = transport_plan(cost.mT, eps, max_iterations, tolerance, mass)
    return (plan.mT * similarity).sum(dim=(-2, -1))


def transport_plan(
    cost: Tensor, eps: float, max_iterations: int, tolerance: float, mass: float | None = None
) -> Tensor:
    """The plans [..., L, P] of costs [..., L, P], each stopped by itself.

    A plan is done when an iteration moves less than the share ``tolerance`` of its row masses
    (the L1 distance between the row sums of one iteration and the next); from then on it keeps
    its bits, so that it depends on no other image, class or client in the batch.
    """
    num_rows, num_columns = cost.shape[-2:]
    log_k = (-cost / eps).mT.contiguous()  # [..., P, L]: in memory, the long axis is the last
    log_a = -math.log(num_rows)
    log_b = math.log((1.0 if mass is None else mass) / num_columns)
    log_u = torch.zeros_like(log_k[..., 0, :])  # [..., L]
    log_v = torch.zeros_like(log_k[..., 0])  # [..., P]
    reach = torch.logsumexp(log_k, dim=-2)  # log of K v, [..., L]
    rows = torch.zeros_like(log_u)
    done = torch.zeros_like(log_k[..., 0, 0], dtype=torch.bool)  # [...]
    for _ in range(max_iterations):
        new_u = log_a - reach
        if mass is not None:
            new_u = new_u.clamp(max=0.0)
        new_v = log_b - torch.logsumexp(log_k + new_u.unsqueeze(-2), dim=-1)
        log_u = torch.where(done.unsqueeze(-1), log_u, new_u)
        log_v = torch.where(done.unsqueeze(-1), log_v, new_v)
        reach = torch.logsumexp(log_k + log_v.unsqueeze(-1), dim=-2)
        moved = torch.exp(log_u + reach)
        done = done | ((moved - rows).abs().sum(dim=-1) < tolerance)
        rows = moved
    return torch.exp(log_u.unsqueeze(-2) + log_k + log_v.unsqueeze(-1)).mT
