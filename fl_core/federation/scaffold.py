"""SCAFFOLD (Karimireddy et al., 2020, arXiv:1910.06378): control variates against client drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fl_core.aggregation import Aggregator, CountedMean
from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, add_update, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_kept, kept, model_part, with_scope
from fl_core.optim import SGD
from fl_core.types import Params, Scope, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training

NUM_CLIENTS = "num_clients"


@dataclass(frozen=True, kw_only=True)
class Scaffold(Averaging):
    """Local steps follow g_i - c_i + c (algorithm 1 of the paper, option II).

    After K steps at rate eta, c_i <- c_i - c + (theta^t - theta_i) / (K eta); the server moves by
    server_lr times the uniform mean update, and c by |S|/N times the mean change of the c_i.
    Variates exist for shared tensors; they travel both ways, so messages are twice as long.
    """

    name: Literal["scaffold"] = "scaffold"
    weights: Literal["uniform"] = "uniform"
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, server_lr="> 0")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        optimizer, reasons = training.optimizer, []
        if not isinstance(optimizer, SGD) or optimizer.momentum:
            reasons.append("training.optimizer must be sgd with momentum=0")
        if training.schedule != "constant":
            reasons.append("training.schedule must be constant")
        if training.max_grad_norm is not None:
            reasons.append("training.max_grad_norm must be null")
        if not reasons:
            return []
        return [
            "federation=scaffold reads the mean gradient off a client's way, (theta^t - theta_i) / "
            f"(K eta), which holds for plain steps of one rate only: {'; '.join(reasons)}."
        ]

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        model = with_scope(params, self.scopes(specs, 0), "shared", "frozen")
        own = _zeros(with_scope(params, self.scopes(specs, 0), "shared"))
        count = {NUM_CLIENTS: torch.tensor(float(num_clients), dtype=torch.float64)}
        return ServerState(model | as_kept(own | count, self.name))

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        own = _zeros(with_scope(params, self.scopes(specs, 0), "shared"))
        return super().init_client(params, specs) | as_kept(own, self.name)

    def broadcast(self, server: ServerState) -> Params:
        hidden = f"{self.name}.{NUM_CLIENTS}"
        return {name: tensor for name, tensor in server.tensors.items() if name != hidden}

    def update_names(self, scopes: Mapping[str, Scope]) -> frozenset[str]:
        names = super().update_names(scopes)
        return names | {f"{self.name}.{name}" for name in names}

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        c, own = kept(broadcast, self.name), kept(state, self.name)

        def correction(params: Params) -> Tensor:
            return torch.stack([((c[n] - own[n]) * params[n]).sum() for n in c]).sum()

        result = train_once(broadcast, state, train, correction)
        steps = train.num_steps.clamp(min=1) * train.lr
        new = {
            n: torch.where(
                train.num_steps > 0, own[n] - c[n] - result.update[n] / steps.to(c[n].dtype), own[n]
            )
            for n in c
        }
        change = {name: new[name] - own[name] for name in new}
        return LocalResult(
            result.update | as_kept(change, self.name),
            result.state | as_kept(new, self.name),
            result.metrics,
        )

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return CountedMean(self.weights, f"{self.name}.{NUM_CLIENTS}")

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        own, model = kept(update, self.name), model_part(update, self.name)
        share = own.pop(NUM_CLIENTS) / kept(server.tensors, self.name)[NUM_CLIENTS]
        variates = as_kept({name: share * change for name, change in own.items()}, self.name)
        return add_update(
            server, {name: self.server_lr * delta for name, delta in model.items()} | variates
        )

    def shared_model(self, server: ServerState) -> Params | None:
        return model_part(server.tensors, self.name)


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}
