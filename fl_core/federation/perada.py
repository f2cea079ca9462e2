"""PerAda (Xie et al., 2023, arXiv:2302.06637), without knowledge distillation (KD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_core.aggregation import Weights
from fl_core.federation.personal import NearShared


@dataclass(frozen=True, kw_only=True)
class PerAda(NearShared):
    """Personal adapters phi <- phi - eta (grad F(phi) + strength (phi - theta^t)) near shared ones.

    The paper then distils the mean theta on the server from the clients' ensemble, on public
    unlabelled data. There are none here, so this is its variant without KD: theta is the mean.

    strength: lambda; 0 is local-only training beside FedAvg.
    """

    name: Literal["perada"] = "perada"
    weights: Weights = "uniform"
    strength: float = 1.0
