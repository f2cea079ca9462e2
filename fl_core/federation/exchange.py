"""Exchange of prompts, as in pFedMoAP (Luo et al., 2025, arXiv:2410.10114): nothing is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from fl_core.aggregation import Aggregator, Stacked
from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.federation.averaging import Averaging
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import (
    as_kept,
    as_personal,
    kept,
    model_part,
    personal_part,
    with_scope,
)
from fl_core.learners.base import TakesExperts
from fl_core.types import Params, Scope, ServerState, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training

EXPERTS = "experts."
NEAR = 1e-3
"""The share of its own length within which a client takes a tensor of the pool for its own."""


@dataclass(frozen=True, kw_only=True)
class Exchange(Averaging):
    """The server keeps a pool of what clients sent, and hands it to all; none of it is averaged.

    Every client goes on with its own tensors, and trains beside the ``num_experts`` of the pool
    that are nearest to them (L2), its present ones excluded; the learner reads those, frozen, as
    ``experts.<name>`` [num_experts, ...].

    pool_size: tensors of each name in the pool, all of them sent to every client: the latest come
    first, and where a cohort is larger, its members take turns.
    """

    name: Literal["exchange"] = "exchange"
    num_experts: int = 9
    pool_size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, num_experts=">= 1", pool_size=">= 1")
        if self.num_experts > self.pool_size:
            raise ConfigError(
                f"num_experts = {self.num_experts} is not allowed: it must be at most pool_size = "
                f"{self.pool_size}."
            )

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        own = super().scopes(specs, round)
        experts = [EXPERTS + name for name, scope in own.items() if scope == "shared"]
        return own | dict.fromkeys(experts, "frozen")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        if isinstance(learner, TakesExperts):
            return super().faults(learner, training)
        return [
            f"federation=exchange hands clients the tensors of others, and learner={learner.name} "
            "reads none: use learner=pfedmoap with it, or another federation."
        ]

    def feedback_fault(self) -> str | None:
        return "each update says a client's whole prompt anew, so it has that part already"

    def init_server(
        self, params: Params, specs: Mapping[str, TensorSpec], num_clients: int
    ) -> ServerState:
        """The pool holds copies of the first tensors, until clients have sent theirs."""
        server = super().init_server(params, specs, num_clients)
        shared = with_scope(server.tensors, self.scopes(specs, 0), "shared")
        pool = {n: t.expand(self.pool_size, *t.shape).clone() for n, t in shared.items()}
        return ServerState(server.tensors | as_kept(pool, self.name))

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        return as_personal(with_scope(params, self.scopes(specs, 0), "shared", "personal"))

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        model = self._with_experts(broadcast, state)
        params, metrics, _ = train(model)
        shared = with_scope(params, train.scopes, "shared")
        update = {name: tensor - broadcast[name] for name, tensor in shared.items()}
        own = with_scope(params, train.scopes, "shared", "personal")
        return LocalResult(update, state | as_personal(own), metrics)

    def aggregator(self, server: ServerState, specs: Mapping[str, TensorSpec]) -> Aggregator:
        return Stacked()

    def server_step(self, server: ServerState, update: Params) -> ServerState:
        pool = kept(server.tensors, self.name)
        for name, rows in update.items():  # [n, ...]
            first = server.tensors[name]
            turn = server.round * self.pool_size % len(rows)
            sent = (rows.roll(-turn, dims=0) + first.double()).to(first.dtype)
            pool[name] = torch.cat([sent, pool[name]])[: self.pool_size]
        return ServerState(server.tensors | as_kept(pool, self.name), server.round + 1)

    def shared_model(self, server: ServerState) -> Params | None:
        return None

    def personal_model(
        self, broadcast: Params, state: Params, specs: Mapping[str, TensorSpec]
    ) -> Params | None:
        return self._with_experts(broadcast, state)

    def _with_experts(self, broadcast: Params, state: Params) -> Params:
        """The client's own model, frozen tensors, and the nearest of the pool as its experts."""
        own = model_part(broadcast, self.name) | personal_part(state)
        for name, pool in kept(broadcast, self.name).items():
            square = ((pool - own[name]) ** 2).flatten(1).sum(dim=1)  # [P]
            limit = NEAR**2 * (own[name] ** 2).sum()
            square = torch.where(square <= limit, torch.inf, square)
            nearest = square.argsort(stable=True)[: self.num_experts]
            own[EXPERTS + name] = pool.index_select(0, nearest)
        return own
