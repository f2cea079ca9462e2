"""FedOA (Yang et al., 2025, arXiv:2505.01075): personal adapters near the shared one in features.

The paper's adapters are LoRA on a language model; on prompts the features are those of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from fl_core.aggregation import Weights
from fl_core.checks import check_fields
from fl_core.federation.averaging import (
    Averaging,
    class_feature_faults,
    own_copy_faults,
    train_once,
)
from fl_core.federation.base import LocalResult, Train, Trained
from fl_core.federation.distances import Distance, feature_distance, micro_batch_distance
from fl_core.federation.states import (
    as_personal,
    not_started,
    own_or,
    personal_part,
    started,
    where,
)
from fl_core.learners.base import Feature, HasExampleFeatures
from fl_core.reference import Near, Wanted
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FedOA(Averaging):
    """theta by FedAvg on the plain loss; phi on the loss + strength * D(h(phi), stop h(theta^t)).

    The two never mix: the personal model is phi alone. From round 1 on a client of the cohort
    takes its local steps twice, on the same batches; round 0 trains theta only. A client without
    a phi yet uses theta.

    strength: lambda; 0 is local-only training beside FedAvg. distance: D of h of the batch's
    examples [B, d], or of the class features [C, D] of prompts: the Frobenius norm of the whole
    difference, or over rows the mean L2 norm, its square, 1 - cos, or L1 norm. personal_init: phi
    starts from a draw of the client's own, or as a copy of the shared model. feature: h.
    micro_batch: examples within which D is taken, then averaged; null for the whole batch.
    reference_dropout: h(theta^t) with dropout, drawn in every step.
    """

    fresh_start: ClassVar[bool] = True
    name: Literal["fedoa"] = "fedoa"
    weights: Weights = "uniform"
    strength: float = 0.5
    distance: Distance = "frobenius_batch"
    personal_init: Literal["fresh", "shared"] = "fresh"
    feature: Feature = "last_token"
    micro_batch: int | None = None
    reference_dropout: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, strength=">= 0", micro_batch=">= 1")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        faults = own_copy_faults(self.name, learner)
        by_example = isinstance(learner, HasExampleFeatures)
        return faults if by_example else faults + class_feature_faults(self.name, learner)

    def reference(self, learner: Learner, round: int) -> Wanted | None:
        if round == 0 or not self.strength or not isinstance(learner, HasExampleFeatures):
            return None
        return Wanted(self.feature, self.reference_dropout)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return not_started(params)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        result = train_once(broadcast, {}, train)
        if train.round == 0:
            own_loss = torch.zeros_like(result.metrics["train/loss"])
            return LocalResult(
                result.update, state, result.metrics | {"train/personal_loss": own_loss}
            )
        held = personal_part(state)
        first = train.fresh if self.personal_init == "fresh" else broadcast
        own = self._personal_step(train, own_or(first, state), broadcast)
        new = as_personal(where(train.num_steps > 0, own.params, held))
        mark = started(state, train.num_steps)
        told = {n: own.metrics[n] for n in own.metrics if n != "train/loss"}
        told["train/personal_loss"] = own.metrics["train/loss"]
        return LocalResult(result.update, new | mark, result.metrics | told)

    def _personal_step(self, train: Train, start: Params, broadcast: Params) -> Trained:
        if not self.strength:
            return train(start)
        if train.has_reference:
            return train(start, near=Near(self.strength, self._distance))
        reference = train.features(broadcast).detach()  # [C, D]

        def near(params: Params) -> Tensor:
            return self.strength * feature_distance(
                self.distance, train.features({**broadcast, **params}), reference
            )

        return train(start, near)

    def _distance(self, features: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        return micro_batch_distance(self.distance, features, reference, mask, self.micro_batch)
