"""Scoring examples with a model: per example, so that every metric can be formed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fl_core.local import Problem
from fl_core.types import Params


class Scores(NamedTuple):
    """One entry per example: the predicted class (int64) and -log p of the true class (float32)."""

    predicted: Tensor
    nll: Tensor


def score(problem: Problem, params: Params, rows: Tensor) -> Scores:
    """Score examples ``rows`` [n] with one model."""
    with torch.no_grad():
        return _score(problem, params, rows)


def score_group(problem: Problem, params: Params, rows: Sequence[Tensor]) -> list[Scores]:
    """Score G models, each on its own examples; ``params`` are stacked to [G, ...]."""
    length = max((len(own) for own in rows), default=0)
    if not length:
        return [Scores(own.clone(), torch.zeros(0)) for own in rows]
    padded = torch.stack([torch.nn.functional.pad(own, (0, length - len(own))) for own in rows])
    padded = padded.to(problem.labels.device)  # [G, length]
    with torch.no_grad():
        if problem.learner.groupable:
            both = torch.vmap(lambda p, r: _score(problem, p, r))(params, padded)
        else:
            lanes = [{n: t[g] for n, t in params.items()} for g in range(len(rows))]
            alone = [_score(problem, lane, own) for lane, own in zip(lanes, padded, strict=True)]
            both = Scores(*(torch.stack(part) for part in zip(*alone, strict=True)))
    return [
        Scores(both.predicted[g, : len(own)].cpu(), both.nll[g, : len(own)].cpu())
        for g, own in enumerate(rows)
    ]


def _score(problem: Problem, params: Params, rows: Tensor) -> Scores:
    inputs = {kind: values[rows] for kind, values in problem.inputs.items()}
    log_p = torch.log_softmax(problem.learner.logits(params, problem.frozen, inputs), dim=-1)
    own = log_p.gather(-1, problem.labels[rows].unsqueeze(-1)).squeeze(-1)
    return Scores(log_p.argmax(dim=-1), -own.float())
