"""Rules that keep a personal model beside the shared one: what more than one of them does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import Averaging, own_copy_faults, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_personal, personal_part, with_scope
from fl_core.low_rank import mixed
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
    """A client predicts with (1 - mix) of theta's adapters' output and mix of phi's."""

    name: str
    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mix="from 0 to 1")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner) + own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "shared"))

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        return {**broadcast, **mixed(broadcast, personal_part(state), self.mix, specs)}
