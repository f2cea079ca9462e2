"""Client rounds that train a personal model beside the shared one, for more than one rule."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_core.federation.averaging import train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_personal, personal_part
from fl_core.types import Params


def train_beside(broadcast: Params, state: Params, train: Train, strength: float) -> LocalResult:
    """theta on the plain loss, and phi on the loss + strength/2 ||phi - theta^t||^2."""

    def near(params: Params) -> Tensor:
        squares = [((p - broadcast[n]) ** 2).sum() for n, p in params.items()]
        return strength / 2 * torch.stack(squares).sum()

    result = train_once(broadcast, {}, train)
    own = train(personal_part(state), near if strength else None)
    metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
    return LocalResult(result.update, as_personal(own.params), metrics)
