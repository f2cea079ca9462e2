"""FedDPA-F (Yang et al., 2024, arXiv:2403.19211): a shared adapter, then a tuned copy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fl_core.federation.averaging import train_and_keep
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.personal import MixedAdapters
from fl_core.federation.states import not_started, with_scope
from fl_core.types import Params, TensorSpec


@dataclass(frozen=True, kw_only=True)
class FedDPAF(MixedAdapters):
    """theta by FedAvg; phi is what a client's local steps made of the last theta^t that it got.

    A client predicts with both; how, says ``MixedAdapters``. One that has not taken part yet uses
    theta. With ``weighting: constant`` a mix of 0 is FedAvg, and 1 is fine-tuning.
    """

    name: Literal["feddpa_f"] = "feddpa_f"

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return not_started(with_scope(params, self.scopes(specs, 0), "shared"))

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        return train_and_keep(broadcast, state, train)
