"""FedEx-LoRA (Singhal et al., 2024, arXiv:2410.09432): what averaging factors loses is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from fl_core.aggregation import Aggregator
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.merging import Merging, StackedMean, merged
from fl_core.low_rank import Pair, pairs_of
from fl_core.types import Params, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Merging):
    """A and B by FedAvg; W0 <- W0 + scale (mean(B_k A_k) - mean(B_k) mean(A_k)) for everyone.

    The residual is mean((B_k - mean B) (A_k - mean A)): it needs the updates alone, and has n r
    columns for a cohort of n. Residuals of all rounds add up.
    """

    name: Literal["fedex_lora"] = "fedex_lora"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        return train_once(merged(broadcast), state, train)

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        def deviation(pair: Pair, update: Params, mean: Params) -> tuple[Tensor, Tensor]:
            return update[pair.b], update[pair.a] - mean[pair.a]

        return StackedMean(self.weights, pairs_of(specs), deviation, averaged=True)
