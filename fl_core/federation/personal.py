"""Rules that keep a personal model beside the shared one: what more than one of them does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fl_core.backbones.token_rows import LAST_TOKEN, TOKEN_IDS
from fl_core.checks import check_fields
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import Averaging, own_copy_faults, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import (
    as_kept,
    as_personal,
    kept,
    model_part,
    own_or,
    personal_part,
    with_scope,
)
from fl_core.learners.base import writes_answers
from fl_core.low_rank import mixed
from fl_core.per_input import CENTRE, PerInput, mean_cosine
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class NearShared(Averaging):
    """theta on the plain loss, and phi on the loss + strength/2 ||phi - theta^t||^2."""

    name: str
    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, strength=">= 0")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(params)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        def near(params: Params) -> Tensor:
            squares = [((p - broadcast[n]) ** 2).sum() for n, p in params.items()]
            return self.strength / 2 * torch.stack(squares).sum()

        result = train_once(broadcast, {}, train)
        own = train(personal_part(state), near if self.strength else None)
        metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
        return LocalResult(result.update, as_personal(own.params), metrics)


@dataclass(frozen=True, kw_only=True)
class MixedAdapters(Averaging):
    """A client predicts with (1 - a) of theta's adapters' output and a of phi's.

    weighting: ``instance``: a = max_weight times the mean cosine, at least 0, of the input to
    ``num_references`` of the client's own training examples, in the frozen backbone's features: of
    a text its last token's state, of an image its embedding. ``constant``: a = ``mix``.
    """

    name: str
    mix: float = 0.5
    weighting: Literal["instance", "constant"] = "instance"
    max_weight: float = 0.5
    num_references: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mix="from 0 to 1", max_weight="from 0 to 1", num_references=">= 1")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        faults = low_rank_faults(self.name, learner) + own_copy_faults(self.name, learner)
        name = learner.name
        if self.weighting == "instance" and writes_answers(learner):
            faults.append(
                f"federation={self.name} weighs adapters for each input where classes are scored, "
                f"and learner={name} writes answers: set federation.weighting=constant."
            )
        return faults

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "shared"))

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        own = own_or(broadcast, state)
        if self.weighting == "instance":
            return {**broadcast, **as_kept(own, self.name)}
        return {**broadcast, **mixed(broadcast, own, self.mix, specs)}

    def per_input(self, learner: Learner) -> PerInput | None:
        if self.weighting == "constant":
            return None
        kind = LAST_TOKEN if TOKEN_IDS in learner.inputs else "features"
        return PerInput(kind, self.num_references, self._model_for)

    def _model_for(
        self, model: Params, features: Tensor, specs: Mapping[str, TensorSpec]
    ) -> Params:
        theta, phi = model_part(model, self.name), kept(model, self.name)
        weight = self.max_weight * mean_cosine(features, theta.pop(CENTRE)).clamp(min=0.0)
        some = next(iter(phi.values()))
        return {**theta, **mixed(theta, phi, weight.to(some.dtype), specs)}
