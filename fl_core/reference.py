"""What the broadcast model makes of the examples, for rules that keep clients near it.

Without dropout the features of an example are the same in every step, and for all clients: they are
computed once per example, group and round, outside of the clients' ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fl_core.backbones.token_rows import trimmed
from fl_core.learners.base import Feature, HasExampleFeatures
from fl_core.seeds import derive
from fl_core.types import Batch, Params

if TYPE_CHECKING:
    from fl_core.local import Problem
    from fl_core.work import Work


class Wanted(NamedTuple):
    """Which features of the broadcast model a rule asks for; dropout: anew in every step, with
    the learner's random draws."""

    feature: Feature
    dropout: bool = False


class Near(NamedTuple):
    """A term of the loss: ``weight`` times a distance of the batch's features [B, d] from those of
    the broadcast model; the distance gets the batch's mask [B] too, and gives a scalar."""

    weight: float
    distance: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """The features of the broadcast model. values: [U, d], None where every step draws anew."""

    wanted: Wanted
    model: Params
    values: Tensor | None

    def loss_and_distance(
        self, problem: Problem, params: Params, batch: Batch, places: Tensor, near: Near
    ) -> tuple[Tensor, Tensor]:
        """The learner's loss, and the distance; places: [B], of the examples among ``values``."""
        learner, frozen, feature = problem.learner, problem.frozen, self.wanted.feature
        assert isinstance(learner, HasExampleFeatures)  # the rule has checked it
        loss, features = learner.loss_and_features(params, frozen, batch, feature)
        if self.values is not None:
            target = self.values[places]
        else:
            own = None if batch.key is None else batch.key ^ derive(0, "reference")
            drawn = batch._replace(key=own)
            target = learner.loss_and_features(self.model, frozen, drawn, feature)[1]
        return loss, near.distance(features, target.detach(), batch.mask)


def compute_reference(
    problem: Problem, model: Params, work: Work, wanted: Wanted
) -> tuple[Reference, Tensor]:
    """The reference of a group's examples, and their places in it [G, S, B]."""
    views = max(1, problem.num_views)
    unique, places = torch.unique(work.rows * views + work.views, return_inverse=True)
    if wanted.dropout:
        return Reference(wanted, model, None), places
    values = [
        _features(problem, model, part // views, part % views, wanted.feature)
        for part in torch.split(unique, problem.learner.rows_at_once)
    ]
    return Reference(wanted, model, torch.cat(values)), places


@torch.no_grad()
def _features(
    problem: Problem, model: Params, rows: Tensor, views: Tensor, feature: Feature
) -> Tensor:
    """[n, d], always computed in a batch of one size."""
    learner = problem.learner
    assert isinstance(learner, HasExampleFeatures)  # the rule has checked it
    extra = learner.rows_at_once - len(rows)
    padded = (torch.cat([part, part[-1:].expand(extra)]) for part in (rows, views))
    rows_of_batch, views_of_batch = padded
    mask = torch.ones(len(rows_of_batch), device=rows.device)
    batch = problem.batch(rows_of_batch, mask, views_of_batch)
    batch = batch._replace(inputs=trimmed(batch.inputs))
    return learner.loss_and_features(model, problem.frozen, batch, feature)[1][: len(rows)]
