"""FedDPA-T (Yang et al., 2024, arXiv:2403.19211): shared and personal adapters, trained in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_core.federation.averaging import train_once
from fl_core.federation.base import Gradient, LocalResult, Step, Train
from fl_core.federation.personal import MixedAdapters
from fl_core.federation.states import as_personal, personal_part, with_scope
from fl_core.low_rank import gradient_of_phi, mixed
from fl_core.types import Params


@dataclass(frozen=True, kw_only=True)
class FedDPAT(MixedAdapters):
    """theta by FedAvg, alone; phi by local steps on the loss of mix phi + (1 - mix) stop(theta^t).

    It is the outputs of the adapters that are mixed. phi starts from the first theta and goes on
    from round to round. How a client mixes when it predicts, says ``MixedAdapters``; with
    ``weighting: constant`` a mix of 0 is FedAvg, and 1 is local-only training beside it.
    """

    name: Literal["feddpa_t"] = "feddpa_t"

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        def step(phi: Params, carried: Params, gradient: Gradient) -> Step:
            both, loss = gradient(mixed(broadcast, phi, self.mix, train.specs))
            return Step(gradient_of_phi(both, self.mix, train.specs), loss)

        result = train_once(broadcast, {}, train)
        frozen = with_scope(broadcast, train.scopes, "frozen")
        own = train({**frozen, **personal_part(state)}, step=step)
        phi = with_scope(own.params, train.scopes, "shared")
        metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
        return LocalResult(result.update, as_personal(phi), metrics)
