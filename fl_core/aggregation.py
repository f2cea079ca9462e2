"""How the updates of a cohort become one: streaming, and in client order, so that bits repeat."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fl_core.types import Params

Weights = Literal["num_examples", "uniform"]

AT_ONCE = 32_768
"""Values added at a time: fp32 is widened for the sum, and 256 KiB of that stay in the cache. A
third faster than all of 2 MB at once."""


@dataclass(frozen=True)
class Partial:
    """What has been aggregated so far; it belongs to the aggregator that made it."""

    sums: Params = field(default_factory=dict)
    total_weight: float = 0.0
    num_clients: int = 0
    held: tuple[tuple[Params, float], ...] = ()
    """Whole updates with their weights, for aggregates that are no sums."""


class Aggregator(Protocol):
    """A fold over the updates of a round, fed in the order of the client numbers.

    Both functions use up the ``partial`` they are given: sums grow in place, since a new sum per
    client costs five times as much at a few megabytes.
    """

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        """The sums with one more update, which stays as it is."""

    def finish(self, partial: Partial) -> Params:
        """The aggregated update; empty where no client's update came in, or none has a weight."""


@dataclass(frozen=True)
class WeightedMean:
    """sum_i w_i update_i / sum_i w_i, summed and returned in float64."""

    weights: Weights = "num_examples"

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        weight = float(num_examples) if self.weights == "num_examples" else 1.0
        sums = {
            name: _grown(partial.sums[name], tensor, weight)
            if name in partial.sums
            else tensor.contiguous().to(torch.float64, copy=True).mul_(weight)
            for name, tensor in update.items()
        }
        return Partial(sums, partial.total_weight + weight, partial.num_clients + 1)

    def finish(self, partial: Partial) -> Params:
        if not partial.total_weight:
            return {}
        return {name: tensor.div_(partial.total_weight) for name, tensor in partial.sums.items()}


def _grown(total: Tensor, tensor: Tensor, weight: float) -> Tensor:
    """``total`` + weight * ``tensor``, in place, in pieces that stay in a core's cache."""
    if total.numel() <= AT_ONCE:
        return total.add_(tensor, alpha=weight)
    pieces = (torch.split(flat, AT_ONCE) for flat in (total.view(-1), tensor.reshape(-1)))
    for into, values in zip(*pieces, strict=True):
        into.add_(values, alpha=weight)
    return total


def moved_by(tensor: Tensor, delta: Tensor) -> Tensor:
    """``tensor`` + ``delta``, added in float64 and rounded once, in pieces as above."""
    moved = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    flat = (torch.split(t.reshape(-1), AT_ONCE) for t in (moved, tensor, delta))
    for into, values, by in zip(*flat, strict=True):
        into.copy_(torch.add(by.double(), values))
    return moved


@dataclass(frozen=True)
class CountedMean:
    """The weighted mean, and under the name ``count`` how many clients it is over."""

    weights: Weights
    count: str

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        return WeightedMean(self.weights).add(partial, update, num_examples)

    def finish(self, partial: Partial) -> Params:
        mean = WeightedMean(self.weights).finish(partial)
        if mean:
            mean[self.count] = torch.tensor(float(partial.num_clients), dtype=torch.float64)
        return mean


@dataclass(frozen=True)
class Stacked:
    """No aggregate: every update as it is, [n, ...] in client order and in float64."""

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        held = ({name: tensor.double() for name, tensor in update.items()}, float(num_examples))
        return Partial({}, 0.0, partial.num_clients + 1, (*partial.held, held))

    def finish(self, partial: Partial) -> Params:
        if not partial.held:
            return {}
        updates = [update for update, _ in partial.held]
        return {name: torch.stack([update[name] for update in updates]) for name in updates[0]}


@dataclass(frozen=True)
class MeanAndEach:
    """The weighted mean, and every update as it is under ``<keeper>.<name>``, [n, ...]."""

    mean: WeightedMean
    keeper: str

    def add(self, partial: Partial, update: Params, num_examples: int) -> Partial:
        grown = self.mean.add(partial, update, num_examples)
        return replace(grown, held=(*partial.held, (update, float(num_examples))))

    def finish(self, partial: Partial) -> Params:
        if not partial.total_weight:
            return {}
        each = {f"{self.keeper}.{n}": t for n, t in Stacked().finish(partial).items()}
        return self.mean.finish(partial) | each
