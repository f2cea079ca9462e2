"""Scoring examples with a model: per example, so that every metric can be formed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fl_core.answers import AnswerScores, score_answers, score_answers_of_each
from fl_core.backbones.token_rows import TOKEN_IDS, shortest_first, trimmed
from fl_core.learners.base import writes_answers
from fl_core.local import Problem
from fl_core.per_input import Fit
from fl_core.types import Params

MODELS_AT_ONCE = 32
"""Inputs with a model of their own that are scored in one pass; bounds the memory."""


class Scores(NamedTuple):
    """One entry per example.

    predicted: the class with the largest p (int64); nll: -log p of the true class (nats);
    confidence: the largest p; brier: sum over classes of (p_c - y_c)². The last three float32.
    """

    predicted: Tensor
    nll: Tensor
    confidence: Tensor
    brier: Tensor


AnyScores = Scores | AnswerScores


def score(
    problem: Problem, params: Params, rows: Tensor, candidates: Tensor | None = None
) -> AnyScores:
    """Score examples ``rows`` [n] with one model.

    candidates: bool [n, C], the classes that each example is chosen from; the true one must be
    among them. None: all classes.
    """
    if writes_answers(problem.learner):
        return score_answers(problem, params, rows)
    with torch.no_grad():
        return _score(problem, params, rows, candidates)


def score_group(
    problem: Problem,
    params: Params,
    rows: Sequence[Tensor],
    candidates: Tensor | None = None,
    *,
    fit: Fit | None = None,
) -> Sequence[AnyScores]:
    """Score G models, each on its own examples; ``params`` are stacked to [G, ...].

    candidates: bool [G, C], the classes that each model chooses from, or [G, L, C] for the L rows
    of the longest, where rows differ in them. None: all classes. fit: makes the
    parameters for one input of a client's; None where all inputs have the same.
    """
    if writes_answers(problem.learner):
        return score_answers_of_each(problem, params, rows)
    length = max((len(own) for own in rows), default=0)
    if not length:
        nothing = torch.zeros(0)
        return [Scores(own.clone(), nothing, nothing, nothing) for own in rows]
    if candidates is None:
        candidates = torch.ones(len(rows), 1, dtype=torch.bool)
    padded = torch.stack([torch.nn.functional.pad(own, (0, length - len(own))) for own in rows])
    device = problem.labels.device
    lanes = params, padded.to(device), candidates.to(device)  # [G, ...], [G, L], ...
    with torch.no_grad():
        # Texts are scored model by model: each batch is then as short as its own texts.
        if problem.groupable and TOKEN_IDS not in problem.inputs:
            both = torch.vmap(lambda p, r, c: _score(problem, p, r, c, fit))(*lanes)
        else:
            alone = [
                _score(problem, {n: t[g] for n, t in params.items()}, lanes[1][g], lanes[2][g], fit)
                for g in range(len(rows))
            ]
            both = Scores(*(torch.stack(part) for part in zip(*alone, strict=True)))
    return [Scores(*(part[g, : len(own)].cpu() for part in both)) for g, own in enumerate(rows)]


def _score(
    problem: Problem,
    params: Params,
    rows: Tensor,
    candidates: Tensor | None,
    fit: Fit | None = None,
) -> Scores:
    order = shortest_first(problem.inputs, rows)
    parts = torch.split(rows if order is None else rows[order], problem.learner.rows_at_once)
    logits = torch.cat([_logits(problem, params, part, fit) for part in parts])  # [n, C]
    logits = logits if order is None else logits[order.argsort()]
    if candidates is not None:
        logits = torch.where(candidates, logits, -torch.inf)
    log_p = torch.log_softmax(logits, dim=-1)
    own = log_p.gather(-1, problem.labels[rows].unsqueeze(-1)).squeeze(-1)
    p = log_p.exp()
    # sum (p_c - y_c)² = sum p_c² - 2 p_true + 1
    brier = (p.square().sum(dim=-1) - 2 * own.exp() + 1).clamp(min=0.0)
    confidence, predicted = p.max(dim=-1)
    return Scores(predicted, -own.float(), confidence.float(), brier.float())


def _logits(problem: Problem, params: Params, rows: Tensor, fit: Fit | None) -> Tensor:
    learner, frozen = problem.learner, problem.frozen
    inputs = trimmed({kind: values[rows] for kind, values in problem.inputs.items()})
    if fit is None:
        return learner.logits(params, frozen, inputs)

    def alone(one: Params) -> Tensor:  # of an input without a batch axis, [C]
        batch = {kind: value.unsqueeze(0) for kind, value in one.items()}
        return learner.logits(fit(params, one), frozen, batch)[0]

    if problem.groupable:
        return torch.vmap(alone, chunk_size=MODELS_AT_ONCE)(inputs)  # [B, C]
    each = ({kind: values[i] for kind, values in inputs.items()} for i in range(len(rows)))
    return torch.stack([alone(one) for one in each])
