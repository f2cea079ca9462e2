"""FedProx (Li et al., 2020, arXiv:1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.types import Params


@dataclass(frozen=True, kw_only=True)
class FedProx(Averaging):
    """FedAvg with mu/2 ||theta - theta^t||^2 added to each client's loss (equation 2 of the paper).

    mu: 0 is FedAvg. Personal tensors are not pulled: the server has no value for them.
    """

    name: Literal["fedprox"] = "fedprox"
    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mu=">= 0")

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        def proximal(params: Params) -> Tensor:
            squares = [((p - broadcast[n]) ** 2).sum() for n, p in params.items() if n in broadcast]
            return self.mu / 2 * torch.stack(squares).sum()

        return train_once(broadcast, state, train, proximal if self.mu else None)
