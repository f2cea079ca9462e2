"""FedOpt (Reddi et al., 2021, arXiv:2003.00295), FedAvgM (Hsu et al., 2019, arXiv:1909.06335)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, add_update
from fl_core.federation.states import as_kept, kept, model_part, with_scope
from fl_core.types import Params, ServerState, TensorSpec


@dataclass(frozen=True, kw_only=True)
class FedOpt(Averaging):
    """The server takes the mean update D for minus a gradient (algorithm 2 of the paper).

    optimizer: ``momentum`` (FedAvgM): m <- beta1 m + D, theta <- theta + server_lr m. The others:
    m <- beta1 m + (1 - beta1) D, theta <- theta + server_lr m / (sqrt(v) + tau) with
    v + D^2 (``adagrad``), v - (1 - beta2) D^2 sign(v - D^2) (``yogi``) or
    beta2 v + (1 - beta2) D^2 (``adam``), v from tau^2 on. Nothing is corrected for bias.
    Momentum with beta1 0 and server_lr 1 is FedAvg. Only theta travels.
    """

    name: Literal["fedopt"] = "fedopt"
    optimizer: Literal["momentum", "adam", "yogi", "adagrad"] = "momentum"
    server_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self,
            server_lr="> 0",
            beta1="from 0 to below 1",
            beta2="from 0 to below 1",
            tau="> 0",
        )

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        model = with_scope(params, self.scopes(specs, 0), "shared", "frozen")
        own: Params = {}
        for name, tensor in with_scope(params, self.scopes(specs, 0), "shared").items():
            own[f"mean.{name}"] = torch.zeros_like(tensor, dtype=torch.float64)
            if self.optimizer != "momentum":
                own[f"square.{name}"] = torch.full_like(tensor, self.tau**2, dtype=torch.float64)
        return ServerState(model | as_kept(own, self.name))

    def broadcast(self, server: ServerState) -> Params:
        return model_part(server.tensors, self.name)

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        old, new, moved = kept(server.tensors, self.name), Params(), Params()
        for name, delta in update.items():
            mean, square = f"mean.{name}", f"square.{name}"
            if self.optimizer == "momentum":
                new[mean] = self.beta1 * old[mean] + delta
                moved[name] = self.server_lr * new[mean]
            else:
                new[mean] = self.beta1 * old[mean] + (1 - self.beta1) * delta
                new[square] = self._square(old[square], delta**2)
                moved[name] = self.server_lr * new[mean] / (new[square].sqrt() + self.tau)
        stepped = add_update(server, moved)
        return ServerState(stepped.tensors | as_kept(new, self.name), stepped.round)

    def shared_model(self, server: ServerState) -> Params | None:
        return model_part(server.tensors, self.name)

    def _square(self, old: Tensor, square: Tensor) -> Tensor:
        if self.optimizer == "adagrad":
            return old + square
        if self.optimizer == "yogi":
            return old - (1 - self.beta2) * square * torch.sign(old - square)
        return self.beta2 * old + (1 - self.beta2) * square
