"""Robust aggregation: medians (Yin et al., 2018, arXiv:1803.01498), Krum, geometric median.

Krum: Blanchard et al., 2017, arXiv:1703.02757. Geometric median: Pillutla et al., arXiv:1912.13445.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fl_core.aggregation import Aggregator
from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.federation.averaging import Averaging
from fl_core.robust_aggregation import Method, RobustAggregator, smallest_cohort
from fl_core.types import Params, ServerState, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Robust(Averaging):
    """FedAvg with another aggregate than the mean, for cohorts in which some clients are wrong.

    aggregation: ``median`` and ``trimmed_mean`` go coordinate by coordinate and give every client
    the same weight, as do ``krum`` and ``multi_krum``; ``geometric_median`` uses ``weights``.
    num_faulty: how many updates of a cohort may be wrong: the trimmed mean drops that many of the
    largest and of the smallest values, Krum looks at n - num_faulty - 2 neighbours and multi-Krum
    averages the n - num_faulty best. A round in which too few clients come through for that
    leaves the model as it is.
    """

    name: Literal["robust"] = "robust"
    aggregation: Method = "median"
    num_faulty: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, num_faulty=">= 0")

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        cohort = min(self.clients_per_round or num_clients, num_clients)
        least = smallest_cohort(self.aggregation, self.num_faulty)
        if cohort < least:
            raise ConfigError(
                f"federation.num_faulty = {self.num_faulty} is not allowed: {self.aggregation} "
                f"then needs {least} clients in a round, and there are {cohort}. Take a smaller "
                "num_faulty or more clients."
            )
        return super().init_server(params, specs, num_clients)

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return RobustAggregator(self.aggregation, self.num_faulty, self.weights)
