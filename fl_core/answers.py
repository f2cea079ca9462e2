"""Scoring a model that answers in words of its own: per example, against one or several responses.

A response is what a data set wants; an answer is what the model writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fl_core.backbones.language_layers import DELTA
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


Texts = list[tuple[int, int]]
"""Which model answers which row."""


def score_answers(problem: Problem, params: Params, rows: Tensor) -> AnswerScores:
    """What one model answers to examples ``rows`` [n], held against their responses."""
    (scores,) = score_answers_of_each(problem, {n: t[None] for n, t in params.items()}, [rows])
    return scores


@torch.no_grad()
def score_answers_of_each(
    problem: Problem, params: Params, rows: Sequence[Tensor]
) -> list[AnswerScores]:
    """The same of G models, each on its own examples; ``params`` are stacked to [G, ...].

    Texts of several models are written to together where that saves half of the passes, since a
    token costs a pass over the model, however few texts are in it. No more texts are ever in one
    than where models take turns, each with its model's trained tensors beside it.
    """
    alone = [_parts(problem, [(g, row) for row in own.tolist()]) for g, own in enumerate(rows)]
    together = _parts(problem, [text for parts in alone for part in parts for text in part])
    parts = [part for own in alone for part in own]
    if _fits_together(problem, params) and 2 * len(together) <= len(parts):
        parts = together
    told: dict[tuple[int, int], tuple[float, ...]] = {}
    for part in parts:
        told |= _told(problem, params, part)
    columns = ([told[g, row] for row in own.tolist()] for g, own in enumerate(rows))
    num = len(AnswerScores._fields)
    return [AnswerScores(*torch.tensor(own).reshape(-1, num).T) for own in columns]


def _fits_together(problem: Problem, params: Params) -> bool:
    """Whether every text of a pass can have a model's tensors beside it: not as large as W."""
    return problem.groupable and not any(name.endswith(f".{DELTA}") for name in params)


def _parts(problem: Problem, texts: Texts) -> list[Texts]:
    """Texts of about one length, as many as go through the model at once."""
    rows = torch.tensor([row for _, row in texts], dtype=torch.int64)
    order = shortest_first(problem.inputs, rows.to(problem.labels.device))
    assert order is not None  # whoever writes reads texts
    ordered, size = [texts[i] for i in order.tolist()], problem.learner.rows_at_once
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _told(
    problem: Problem, params: Params, texts: Texts
) -> dict[tuple[int, int], tuple[float, ...]]:
    """Of each text in the order of ``AnswerScores``."""
    learner, device = problem.learner, problem.labels.device
    assert writes_answers(learner)  # whoever calls has asked
    models, rows = (torch.tensor(part, device=device) for part in zip(*texts, strict=True))
    each = bool((models != models[0]).any())
    at = models if each else int(models[0])
    own = {name: tensor[at] for name, tensor in params.items()}
    inputs = trimmed({kind: values[rows] for kind, values in problem.inputs.items()})
    answers, nll = learner.write(own, problem.frozen, inputs, each)
    found: dict[tuple[int, int], tuple[float, ...]] = {}
    for text, answer, lost in zip(texts, answers, nll.tolist(), strict=True):
        wanted = problem.responses[text[1]]
        found[text] = (exact_match(answer, wanted), *rouge(answer, wanted), lost)
    return found
