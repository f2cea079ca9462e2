"""FedDyn (Acar et al., 2021, arXiv:2111.04263): clients' losses bent so that their minima agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fl_core.aggregation import Aggregator, CountedMean
from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, add_update, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_kept, kept, model_part, with_scope
from fl_core.types import Params, ServerState, TensorSpec

NUM_CLIENTS = "num_clients"


@dataclass(frozen=True, kw_only=True)
class FedDyn(Averaging):
    """Clients minimise F(theta) - <g_i, theta> + alpha/2 ||theta - theta^t||^2 (algorithm 1).

    Then g_i <- g_i - alpha (theta_i - theta^t); on the server
    h <- h - alpha/N sum_S (theta_i - theta^t) and theta <- mean_S theta_i - h / alpha. Only theta
    travels. Personal tensors are not bent.
    """

    name: Literal["feddyn"] = "feddyn"
    weights: Literal["uniform"] = "uniform"
    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, alpha="> 0")

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        model = with_scope(params, self.scopes(specs, 0), "shared", "frozen")
        shared = with_scope(params, self.scopes(specs, 0), "shared")
        h = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        count = {NUM_CLIENTS: torch.tensor(float(num_clients), dtype=torch.float64)}
        return ServerState(model | as_kept(h | count, self.name))

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        shared = with_scope(params, self.scopes(specs, 0), "shared")
        g = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        return super().init_client(params, specs) | as_kept(g, self.name)

    def broadcast(self, server: ServerState) -> Params:
        return model_part(server.tensors, self.name)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        g = kept(state, self.name)

        def bend(params: Params) -> Tensor:
            near = [((params[n] - broadcast[n]) ** 2).sum() for n in g]
            linear = [(g[n] * params[n]).sum() for n in g]
            return self.alpha / 2 * torch.stack(near).sum() - torch.stack(linear).sum()

        result = train_once(broadcast, state, train, bend)
        new = {name: g[name] - self.alpha * result.update[name] for name in g}
        return result._replace(state=result.state | as_kept(new, self.name))

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return CountedMean(self.weights, f"{self.name}.{NUM_CLIENTS}")

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        mine, mean = kept(server.tensors, self.name), model_part(update, self.name)
        share = kept(update, self.name)[NUM_CLIENTS] / mine[NUM_CLIENTS]
        change = {name: -self.alpha * share * delta for name, delta in mean.items()}
        moved = {n: mean[n] - (mine[n].double() + change[n]) / self.alpha for n in mean}
        return add_update(server, moved | as_kept(change, self.name))

    def shared_model(self, server: ServerState) -> Params | None:
        return model_part(server.tensors, self.name)
