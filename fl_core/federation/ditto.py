"""Ditto (Li et al., 2021, arXiv:2012.04221): a personal model held near the shared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, own_copy_faults
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.personal import train_beside
from fl_core.federation.states import as_personal
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class Ditto(Averaging):
    """theta by FedAvg; phi <- phi - eta (grad F(phi) + strength (phi - theta^t)) (algorithm 1).

    Both take the same local steps on the same batches; only theta is sent. phi starts from the
    first theta and goes on from round to round.

    strength: lambda; 0 is local-only training beside FedAvg.
    """

    name: Literal["ditto"] = "ditto"
    strength: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, strength=">= 0")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return own_copy_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(params)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        return train_beside(broadcast, state, train, self.strength)
