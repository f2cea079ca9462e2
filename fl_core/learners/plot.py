"""PLOT (Chen et al., 2023, arXiv:2210.01253): several prompts matched to patches by transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import Prompts, features_of_each, first_context, prepare_prompts
from fl_core.learners.transport import transport_scores
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class Plot:
    """logit = s * sum T* (g w^T), T* the transport plan between L patches and P prompts.

    num_prompts: P; with 1 the plan is uniform and the logit is s times the mean over patches.
    num_tokens: M. eps: the weight of the plan's entropy. max_iterations, tolerance: when the
    scaling stops, see ``transport_plan``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("patches",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 256
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["plot"] = "plot"
    num_prompts: int = 4
    num_tokens: int = 16
    eps: float = 0.1
    max_iterations: int = 100
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_prompts=">= 1",
            num_tokens=">= 1",
            eps="> 0",
            max_iterations=">= 1",
            tolerance=">= 0",
        )

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(backbone, task, self.num_tokens)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        return {"context": first_context(frozen, generator, self.num_prompts)}  # [P, M, d_t]

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        w = features_of_each(frozen, params["context"])  # [P, C, D]
        scores = transport_scores(
            inputs["patches"], w, self.eps, self.max_iterations, self.tolerance
        )
        return frozen.scale * scores  # [B, C]
