"""FLoRA (Wang et al., 2024, arXiv:2409.05976): clients' factors are stacked, not averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from fl_core.aggregation import Aggregator
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.merging import KNOWN, Merging, StackedMean, merged
from fl_core.low_rank import Pair, pairs_of
from fl_core.types import Params, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class FLoRA(Merging):
    """W0 <- W0 + scale sum_k w_k B_k A_k: the weights stand on B alone; then adapters start anew.

    Each client draws its adapters anew in every round (B = 0), so these are never sent down. What
    is no factor goes by FedAvg.
    """

    fresh_start: ClassVar[bool] = True
    fresh_each_round: ClassVar[bool] = True
    name: Literal["flora"] = "flora"

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def feedback_fault(self) -> str | None:
        return "that one is of adapters drawn anew, which the part does not belong to"

    def changes(
        self, names: Iterable[str], specs: Mapping[str, TensorSpec], round: int
    ) -> dict[str, int]:
        factors = {name for pair in pairs_of(specs).values() for name in (pair.a, pair.b)}
        return super().changes(set(names) - factors, specs, round)

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        server = super().init_server(params, specs, num_clients)
        factors = [name for pair in pairs_of(specs).values() for name in (pair.a, pair.b)]
        known = {**server.changed, **dict.fromkeys(factors, KNOWN)}
        return ServerState(server.tensors, changed=known)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        pairs = pairs_of(train.specs).values()
        fresh = {name: train.fresh[name] for pair in pairs for name in (pair.a, pair.b)}
        result = train_once({**merged(broadcast), **fresh}, state, train)
        moved = {n: result.update[n] + start - broadcast[n] for n, start in fresh.items()}
        return result._replace(update=result.update | moved)

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        start = server.tensors

        def trained(pair: Pair, update: Params, mean: Params) -> tuple[Tensor, Tensor]:
            return start[pair.b] + update[pair.b], start[pair.a] + update[pair.a]

        return StackedMean(self.weights, pairs_of(specs), trained, averaged=False)
