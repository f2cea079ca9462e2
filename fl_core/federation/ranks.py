"""What rules whose clients have adapters of different ranks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_core.aggregation import Partial, WeightedMean, Weights
from fl_core.errors import ConfigError
from fl_core.federation.adapters import low_rank_faults
from fl_core.federation.averaging import Averaging, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.low_rank import Pair, pairs_of
from fl_core.types import Params, ServerState, TensorSpec
from fl_core.wire import Shapes

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class UnequalRanks(Averaging):
    """A client of rank q trains, gets and sends the first q rows of A and columns of B.

    ranks: client k has ranks[k mod len(ranks)]; none: everyone has the learner's own rank. The
    factor alpha / r is the learner's for all.
    """

    name: str
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(rank < 1 for rank in self.ranks):
            raise ConfigError(f"ranks = {list(self.ranks)} is not allowed: each must be >= 1.")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return low_rank_faults(self.name, learner)

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        have = min((len(params[pair.a]) for pair in pairs_of(specs).values()), default=None)
        if have is not None and max(self.ranks, default=1) > have:
            raise ConfigError(
                f"federation.ranks = {list(self.ranks)} is not allowed: the learner's rank is "
                f"{have}, and no client can have more. Give the learner the largest rank."
            )
        return super().init_server(params, specs, num_clients)

    def part_of(self, client: int, shapes: Shapes, specs: Mapping[str, TensorSpec]) -> Shapes:
        if not self.ranks:
            return shapes
        rank, part = self.ranks[client % len(self.ranks)], dict(shapes)
        for pair in pairs_of(specs).values():
            if pair.a in part:
                part[pair.a] = (min(rank, part[pair.a][0]), part[pair.a][1])
            if pair.b in part:
                part[pair.b] = (part[pair.b][0], min(rank, part[pair.b][1]))
        return part

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        """The rest of both factors is 0, and so has no gradient."""
        model = dict(broadcast)
        for pair in pairs_of(train.specs).values() if self.ranks else ():
            ranks = torch.tensor(self.ranks, device=train.client.device)
            rank = ranks[train.client % len(self.ranks)]
            have = torch.arange(len(broadcast[pair.a]), device=rank.device) < rank  # [r]
            model[pair.a] = broadcast[pair.a] * have[:, None]
            model[pair.b] = broadcast[pair.b] * have
        return train_once(model, state, train)


def trained_factors(start: Params, update: Params, pair: Pair) -> tuple[Tensor, Tensor]:
    """A client's (B, A) after training, of its own rank, in float64."""
    a, b = update[pair.a].double(), update[pair.b].double()
    return start[pair.b][:, : b.shape[1]] + b, start[pair.a][: a.shape[0]] + a


@dataclass(frozen=True)
class HeldFactors:
    """Aggregates what is no factor as it comes in, and holds the factors, each with its weight.

    start: the server's tensors before the round.
    """

    weights: Weights
    pairs: Mapping[str, Pair]
    start: Params

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        factors = {name for pair in self.pairs.values() for name in (pair.a, pair.b)}
        rest = {name: tensor for name, tensor in update.items() if name not in factors}
        summed = WeightedMean(self.weights).add(partial, rest, num_examples)
        weight = summed.total_weight - partial.total_weight
        held = {name: tensor for name, tensor in update.items() if name in factors}
        return Partial(
            summed.sums, summed.total_weight, summed.num_clients, (*partial.held, (held, weight))
        )
