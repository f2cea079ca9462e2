"""Ditto (Li et al., 2021, arXiv:2012.04221): a personal model held near the shared one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_core.federation.personal import NearShared


@dataclass(frozen=True, kw_only=True)
class Ditto(NearShared):
    """theta by FedAvg; phi <- phi - eta (grad F(phi) + strength (phi - theta^t)) (algorithm 1).

    Both take the same local steps on the same batches; only theta is sent. phi starts from the
    first theta and goes on from round to round.

    strength: lambda; 0 is local-only training beside FedAvg.
    """

    name: Literal["ditto"] = "ditto"
    strength: float = 0.1
