"""FedGMA (Tenison et al., 2022, arXiv:2201.11986): the mean update where clients' signs agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fl_core.aggregation import Aggregator, Partial, WeightedMean, Weights
from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, add_update
from fl_core.types import Params, ServerState, TensorSpec

SIGNS = "fedgma."


@dataclass(frozen=True, kw_only=True)
class FedGMA(Averaging):
    """theta <- theta + server_lr m * mean update, with m = 1 where a >= threshold, and a elsewhere.

    a = |sum_k w_k sign(update_k)| in each coordinate: the agreement of the cohort's signs.
    Threshold 0 with server_lr 1 is FedAvg.
    """

    name: Literal["fedgma"] = "fedgma"
    threshold: float = 0.4
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, threshold="from 0 to 1", server_lr="> 0")

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return Agreed(self.weights, self.threshold)

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        return add_update(server, {name: self.server_lr * d for name, d in update.items()})


@dataclass(frozen=True)
class Agreed:
    """The weighted mean times the mask of agreement."""

    weights: Weights
    threshold: float

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        signs = {SIGNS + name: torch.sign(tensor) for name, tensor in update.items()}
        return WeightedMean(self.weights).add(partial, update | signs, num_examples)

    def finish(self, partial: Partial) -> Params:
        mean = WeightedMean(self.weights).finish(partial)
        masked = {}
        for name, tensor in mean.items():
            if not name.startswith(SIGNS):
                agreement = mean[SIGNS + name].abs()
                masked[name] = torch.where(agreement >= self.threshold, 1.0, agreement) * tensor
        return masked
