"""PerAda (Xie et al., 2023, arXiv:2302.06637): personal adapters near a shared, distilled one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.aggregation import Aggregator, MeanAndEach, WeightedMean, Weights
from fl_core.distillation import Distillation
from fl_core.federation.personal import NearShared
from fl_core.learners.base import writes_answers
from fl_core.types import ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class PerAda(NearShared):
    """Personal adapters phi <- phi - eta (grad F(phi) + strength (phi - theta^t)) near shared ones.

    The server takes the mean of what the clients made of theta, and distils it from the ensemble of
    theirs, on public unlabelled data.

    strength: lambda; 0 is local-only training beside FedAvg. distillation: null leaves it out;
    theta is then the mean, which is the paper's variant without KD.
    """

    name: Literal["perada"] = "perada"
    weights: Weights = "uniform"
    strength: float = 1.0
    distillation: Distillation | None = None

    def faults(self, learner: Learner, training: Training) -> list[str]:
        faults, name = super().faults(learner, training), learner.name
        if self.distillation and writes_answers(learner):
            faults.append(
                f"federation.distillation of federation={self.name} compares scores of classes, "
                f"and learner={name} writes answers: set federation.distillation=null."
            )
        return faults

    def server_training(self) -> Distillation | None:
        return self.distillation

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        mean = WeightedMean(self.weights)
        return MeanAndEach(mean, self.name) if self.distillation else mean
