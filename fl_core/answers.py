"""Scoring a model that answers in words of its own: per example, against one or several responses.

A response is what a data set wants; an answer is what the model writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fl_core.backbones.token_rows import shortest_first, trimmed
from fl_core.learners.base import writes_answers
from fl_core.text_metrics import exact_match, rouge
from fl_core.types import Params

if TYPE_CHECKING:
    from fl_core.local import Problem


class AnswerScores(NamedTuple):
    """One entry per example, all float32.

    exact_match: 0 or 1; rouge1, rouge2, rouge_l: F1, from 0 to 1; nll: -log p of the first response
    per token, its end included (nats).
    """

    exact_match: Tensor
    rouge1: Tensor
    rouge2: Tensor
    rouge_l: Tensor
    nll: Tensor


@torch.no_grad()
def score_answers(problem: Problem, params: Params, rows: Tensor) -> AnswerScores:
    """What one model answers to examples ``rows`` [n], held against their responses."""
    order = shortest_first(problem.inputs, rows)
    assert order is not None  # whoever writes reads texts
    told: dict[int, tuple[float, ...]] = {}
    for part in torch.split(rows[order], problem.learner.rows_at_once):
        if len(part):
            inputs = {kind: values[part] for kind, values in problem.inputs.items()}
            told |= _told(problem, params, part, trimmed(inputs))
    columns = torch.tensor([told[row] for row in rows.tolist()])  # [n, 5]
    return AnswerScores(*columns.reshape(-1, len(AnswerScores._fields)).T)


def _told(
    problem: Problem, params: Params, rows: Tensor, inputs: Params
) -> dict[int, tuple[float, ...]]:
    """By row, in the order of ``AnswerScores``."""
    learner = problem.learner
    assert writes_answers(learner)  # whoever calls has asked
    answers, nll = learner.write(params, problem.frozen, inputs)
    found: dict[int, tuple[float, ...]] = {}
    for row, answer, lost in zip(rows.tolist(), answers, nll.tolist(), strict=True):
        wanted = problem.responses[row]
        found[row] = (exact_match(answer, wanted), *rouge(answer, wanted), lost)
    return found
