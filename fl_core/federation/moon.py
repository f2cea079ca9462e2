"""MOON (Li, He and Song, 2021, arXiv:2103.16049): representations near the shared model's.

The paper contrasts image features. Those of a frozen tower have no gradient, so class features
stand in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.checks import check_fields
from fl_core.federation.averaging import Averaging, class_feature_faults, train_once
from fl_core.federation.base import LocalResult, Train
from fl_core.federation.states import as_kept, kept, personal_part, where, with_scope
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.work import Training


@dataclass(frozen=True, kw_only=True)
class Moon(Averaging):
    """Each client adds mu * mean_c CE([cos(w, w_shared), cos(w, w_last)] / tau, target 0).

    w: the class features being trained; w_shared: of the broadcast; w_last: of the model that the
    client made when it last took part, before the first time the initial one.

    mu: 0 is FedAvg. tau: temperature.
    """

    name: Literal["moon"] = "moon"
    mu: float = 1.0
    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, mu=">= 0", tau="> 0")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return class_feature_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        model = with_scope(params, self.scopes(specs, 0), "shared", "personal")
        return super().init_client(params, specs) | as_kept(model, self.name)

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        last = kept(state, self.name)
        w_shared = train.features(broadcast).detach()  # [C, D]
        w_last = train.features({**broadcast, **last}).detach()  # [C, D]

        def contrast(params: Params) -> Tensor:
            w = train.features({**broadcast, **params})  # [C, D]
            cosines = [F.cosine_similarity(w, other, dim=-1) for other in (w_shared, w_last)]
            log_p = F.log_softmax(torch.stack(cosines) / self.tau, dim=0)  # [2, C]
            return -self.mu * log_p[0].mean()

        result = train_once(broadcast, state, train, contrast if self.mu else None)
        made = {n: broadcast[n] + update for n, update in result.update.items()}
        new = where(train.num_steps > 0, {**last, **made, **personal_part(result.state)}, last)
        return result._replace(state=result.state | as_kept(new, self.name))
