"""Ditto (Li et al., 2021, arXiv:2012.04221): a personal model held near the shared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.federation.base import (
    Averaging,
    LocalResult,
    Train,
    as_personal,
    own_copy_faults,
    personal_part,
    train_once,
)
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.local import Training


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
        def near(params: Params) -> Tensor:
            squares = [((p - broadcast[n]) ** 2).sum() for n, p in params.items()]
            return self.strength / 2 * torch.stack(squares).sum()

        result = train_once(broadcast, {}, train)
        own = train(personal_part(state), near if self.strength else None)
        metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
        return LocalResult(result.update, as_personal(own.params), metrics)
