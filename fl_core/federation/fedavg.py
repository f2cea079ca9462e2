"""FedAvg (McMahan et al., 2017, arXiv:1602.05629)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_core.federation.averaging import Averaging


@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """theta <- sum_i (n_i / n) theta_i over the cohort (algorithm 1 of the paper)."""

    name: Literal["fedavg"] = "fedavg"
