"""What costs no communication: the value that a method has to beat."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.compare.outcomes import Outcome
from scenarios.statistics import BySeed


@dataclass(frozen=True)
class Reference:
    """A row that sends nothing: the value that communication has to beat.

    by_seed: what is compared with a method's, client by client where the metric is theirs.
    values: the metric by seed; ``value`` is their mean.
    """

    name: str
    value: float
    by_seed: BySeed = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)

    def over(self, seeds: Collection[int]) -> Reference:
        """As a method is judged, over these seeds; unchanged where it has none of them."""
        values = {seed: value for seed, value in self.values.items() if seed in seeds}
        if not values:
            return self
        return replace(self, value=_mean(values), values=values)


def best_reference(outcomes: Sequence[Outcome], scenario: str, metric: str) -> Reference | None:
    """The best row that needs no communication; pooled data count as none, having no bytes."""
    own: dict[str, dict[int, float]] = {}
    by_seed: dict[str, dict[int, Sequence[float | None]]] = {}
    for outcome in outcomes:
        is_free = outcome.kind == "reference" and outcome.metrics.get("up_mb") == 0
        if is_free and outcome.scenario == scenario and metric in outcome.metrics:
            value = outcome.metrics[metric]
            own.setdefault(outcome.method, {})[outcome.seed] = value
            values = outcome.by_client.get(metric, [value])
            by_seed.setdefault(outcome.method, {})[outcome.seed] = values
    if not own:
        return None
    best = max(own, key=lambda name: _mean(own[name]))
    return Reference(best, _mean(own[best]), by_seed[best], own[best])


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)
