"""FedOA (Yang et al., 2025, arXiv:2505.01075): personal adapters near the shared one in features.

The paper's adapters are LoRA on a language model; on prompts the features are those of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.aggregation import Weights
from fl_core.checks import check_fields
from fl_core.federation.base import (
    Averaging,
    LocalResult,
    Train,
    as_personal,
    class_feature_faults,
    own_copy_faults,
    personal_part,
    train_once,
    where,
)
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.learners import Learner
    from fl_core.local import Training

Distance = Literal["frobenius_batch", "mean_l2", "mean_sq_l2", "cosine", "l1"]
STARTED = "fedoa.started"


@dataclass(frozen=True, kw_only=True)
class FedOA(Averaging):
    """theta by FedAvg on the plain loss; phi on the loss + strength * D(h(phi), stop h(theta^t)).

    The two never mix: the personal model is phi alone. From round 1 on a client of the cohort
    takes its local steps twice, on the same batches; round 0 trains theta only. A client without
    a phi yet uses theta.

    strength: lambda; 0 is local-only training beside FedAvg. distance: D of the class features
    [C, D]: the Frobenius norm of the whole difference, or over classes the mean L2 norm, its
    square, 1 - cos, or L1 norm. personal_init: phi starts from a draw of the client's own, or as
    a copy of the shared model.
    """

    fresh_start: ClassVar[bool] = True
    name: Literal["fedoa"] = "fedoa"
    weights: Weights = "uniform"
    strength: float = 0.5
    distance: Distance = "frobenius_batch"
    personal_init: Literal["fresh", "shared"] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, strength=">= 0")

    def faults(self, learner: Learner, training: Training) -> list[str]:
        return own_copy_faults(self.name, learner) + class_feature_faults(self.name, learner)

    def init_client(self, params: Params, specs: Mapping[str, TensorSpec]) -> Params:
        some = next(iter(params.values()))
        return as_personal(params) | {STARTED: torch.zeros_like(some.flatten()[0])}

    def local_round(self, broadcast: Params, state: Params, train: Train) -> LocalResult:
        result = train_once(broadcast, {}, train)
        if train.round == 0:
            own_loss = torch.zeros_like(result.metrics["train/loss"])
            return LocalResult(
                result.update, state, result.metrics | {"train/personal_loss": own_loss}
            )
        held, started = personal_part(state), state[STARTED]
        first = train.fresh if self.personal_init == "fresh" else broadcast
        start = where(started > 0, held, {name: first[name] for name in held})
        reference = train.features(broadcast).detach()  # [C, D]

        def near(params: Params) -> Tensor:
            return self.strength * feature_distance(
                self.distance, train.features({**broadcast, **params}), reference
            )

        own = train(start, near if self.strength else None)
        took_part = train.num_steps > 0
        new = as_personal(where(took_part, own.params, held))
        mark = {STARTED: torch.where(took_part, torch.ones_like(started), started)}
        metrics = result.metrics | {"train/personal_loss": own.metrics["train/loss"]}
        return LocalResult(result.update, new | mark, metrics)

    def personal_model(self, broadcast: Params, state: Params) -> Params | None:
        held = personal_part(state)
        return {**broadcast, **where(state[STARTED] > 0, held, {n: broadcast[n] for n in held})}


def feature_distance(kind: Distance, features: Tensor, reference: Tensor) -> Tensor:
    """How far class features [C, D] are from others, a scalar; gradient 0 where they are equal."""
    difference = features - reference
    match kind:
        case "frobenius_batch":
            return _norm(difference.flatten())
        case "mean_l2":
            return _norm(difference).mean()
        case "mean_sq_l2":
            return (difference**2).sum(dim=-1).mean()
        case "l1":
            return difference.abs().sum(dim=-1).mean()
        case "cosine":
            return (1 - F.cosine_similarity(features, reference, dim=-1)).mean()


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm
