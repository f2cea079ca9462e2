"""Scoring examples: against a softmax by hand in float64, and a group against its models alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from toys import Linear, linear_problem

from fl_core.local import stack
from fl_core.predict import score, score_group


@dataclass(frozen=True)
class InPieces(Linear):
    rows_at_once: ClassVar = 7


@dataclass(frozen=True)
class OneByOne(Linear):
    groupable: ClassVar = False


@pytest.fixture
def problem():
    return linear_problem()


def models(problem, num_models):
    draws = torch.Generator().manual_seed(3)
    shapes = {name: tensor.shape for name, tensor in problem.initial.items()}
    return [
        {name: torch.randn(s, generator=draws, dtype=torch.float64) for name, s in shapes.items()}
        for _ in range(num_models)
    ]


def by_hand(problem, params, rows, allowed=None):
    """Predicted, nll, confidence and Brier score of each row, one at a time."""
    features, labels = problem.inputs["features"].numpy(), problem.labels.numpy()
    weight, bias = params["weight"].numpy(), params["bias"].numpy()
    found = []
    for i, row in enumerate(rows.tolist()):
        z = [float(features[row] @ weight[:, c] + bias[c]) for c in range(len(bias))]
        classes = [c for c in range(len(z)) if allowed is None or allowed[i][c]]
        total = sum(np.exp(z[c]) for c in classes)
        p = {c: np.exp(z[c]) / total for c in classes}
        truth = int(labels[row])
        best = max(classes, key=lambda c: p[c])
        brier = sum((p[c] - (c == truth)) ** 2 for c in classes)
        found.append((best, -np.log(p[truth]), p[best], brier))
    return [np.array(column) for column in zip(*found, strict=True)]


def assert_close(scores, expected):
    assert scores.predicted.tolist() == expected[0].tolist()
    for ours, theirs in zip(scores[1:], expected[1:], strict=True):
        assert ours.dtype == torch.float32
        assert np.allclose(ours.numpy(), theirs, rtol=2e-6, atol=2e-7)


def test_scores_are_those_of_a_softmax_by_hand(problem):
    (params,), rows = models(problem, 1), torch.tensor([5, 0, 17, 59, 17])
    assert_close(score(problem, params, rows), by_hand(problem, params, rows))


def test_each_example_is_chosen_from_its_own_candidates(problem):
    (params,), rows = models(problem, 1), torch.arange(40)
    allowed = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[torch.arange(40), problem.labels[rows]] = True
    scores = score(problem, params, rows, allowed)
    assert_close(scores, by_hand(problem, params, rows, allowed.tolist()))
    assert allowed[torch.arange(40), scores.predicted].all()
    assert (scores.predicted != score(problem, params, rows).predicted).any()
    alone = allowed.sum(dim=1) == 1
    assert alone.any()
    assert (scores.confidence[alone] == 1).all()
    assert (scores.nll[alone] == 0).all()


def test_a_model_that_names_the_true_class_surely_has_no_brier_score(problem):
    params = {"weight": torch.zeros(6, 3).double(), "bias": torch.tensor([800.0, 0, 0]).double()}
    right = torch.nonzero(problem.labels == 0).squeeze(1)
    wrong = torch.nonzero(problem.labels == 1).squeeze(1)
    assert (score(problem, params, right).brier == 0).all()
    scores = score(problem, params, wrong)
    assert (scores.brier == 2).all()
    assert (scores.nll == 800).all()


@pytest.mark.parametrize("kind", [Linear, InPieces, OneByOne])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_a_group_scores_as_its_models_alone(problem, kind, with_candidates):
    problem = replace(problem, learner=kind())
    own = models(problem, 4)
    rows = [torch.arange(20), torch.empty(0, dtype=torch.int64), torch.tensor([3]), torch.arange(9)]
    allowed = None
    if with_candidates:  # the third model's only example has a label that is among them
        allowed = torch.ones(4, 3, dtype=torch.bool)
        allowed[2, (problem.labels[3] + 1) % 3] = False
    together = score_group(problem, stack(own), rows, allowed)
    for lane, scores in enumerate(together):
        mask = None if allowed is None else allowed[lane].expand(len(rows[lane]), 3)
        alone = score(problem, own[lane], rows[lane], mask)
        assert torch.equal(scores.predicted, alone.predicted)
        for ours, theirs in zip(scores[1:], alone[1:], strict=True):
            assert len(ours) == len(rows[lane])
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Linear, OneByOne])
def test_the_models_of_a_group_choose_row_by_row(problem, kind):
    problem = replace(problem, learner=kind())
    own, rows = models(problem, 2), [torch.arange(20), torch.arange(5, 12)]
    allowed = torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    for lane, mine in enumerate(rows):
        allowed[lane, torch.arange(len(mine)), problem.labels[mine]] = True
        allowed[lane, len(mine) :] = True
    together = score_group(problem, stack(own), rows, allowed)
    for lane, (mine, scores) in enumerate(zip(rows, together, strict=True)):
        mask = allowed[lane, : len(mine)]
        assert_close(scores, by_hand(problem, own[lane], mine, mask.tolist()))


def test_pieces_of_an_input_score_as_the_whole(problem):
    (params,), rows = models(problem, 1), torch.arange(60)
    whole = score(problem, params, rows)
    pieces = score(replace(problem, learner=InPieces()), params, rows)
    assert torch.equal(pieces.predicted, whole.predicted)
    assert torch.allclose(pieces.nll, whole.nll, rtol=1e-6)


def test_a_group_without_any_row_has_empty_scores(problem):
    nothing = torch.empty(0, dtype=torch.int64)
    for scores in score_group(problem, stack(models(problem, 2)), [nothing, nothing]):
        assert [len(part) for part in scores] == [0] * 4
        assert scores.predicted.dtype == torch.int64


def test_scoring_changes_nothing_and_keeps_no_graph(problem):
    own = models(problem, 2)
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in own]
    for model in own:
        model["weight"].requires_grad_()
    held = {name: tensor.clone() for name, tensor in problem.inputs.items()}
    rows = [torch.arange(8), torch.arange(5)]
    scores = [score(problem, own[0], rows[0]), *score_group(problem, stack(own), rows)]
    assert not any(part.requires_grad for one in scores for part in one)
    for model, old in zip(own, before, strict=True):
        assert all(torch.equal(model[name], old[name]) for name in old)
    assert all(torch.equal(problem.inputs[name], held[name]) for name in held)
