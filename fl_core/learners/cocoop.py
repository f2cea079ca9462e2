"""CoCoOp (Zhou et al., 2022, arXiv:2203.05557): each image shifts the context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import (
    Prompts,
    features_of_each,
    first_context,
    prepare_prompts,
    uniform_linear,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class CoCoOp:
    """v_m(x) = v_m + pi(f): one shift for all tokens; the text tower runs once per image.

    pi is Linear(D, D/reduction), ReLU, Linear(D/reduction, d_t).

    num_tokens: M; None: as many as ``init_text`` has. reduction: how much narrower the hidden layer
    is than the image feature.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 32
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["cocoop"] = "cocoop"
    num_tokens: int | None = None
    init_text: str | None = "a photo of a"
    reduction: int = 16

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", reduction=">= 1")

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(backbone, task, self.num_tokens, self.init_text)

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        context = first_context(frozen, generator)  # [M, d_t]
        num_in, num_out = frozen.tower.embed_dim, frozen.tower.width
        hidden = max(1, num_in // self.reduction)
        weight_1, bias_1 = uniform_linear(generator, hidden, num_in)
        weight_2, bias_2 = uniform_linear(generator, num_out, hidden)
        net = {"weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}
        return {"context": context} | {name: t.to(context) for name, t in net.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        names = ("context", "weight_1", "bias_1", "weight_2", "bias_2")
        return dict.fromkeys(names, TensorSpec("shared"))

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        f = inputs["features"]  # [B, D]
        hidden = F.relu(F.linear(f, params["weight_1"], params["bias_1"]))
        shift = F.linear(hidden, params["weight_2"], params["bias_2"])  # [B, d_t]
        contexts = params["context"] + shift.unsqueeze(-2)  # [B, M, d_t]
        w = features_of_each(frozen, contexts)  # [B, C, D]
        return frozen.scale * (w @ f.unsqueeze(-1)).squeeze(-1)  # [B, C]
