"""CoOp (Zhou et al., 2022, arXiv:2109.01134); with FedAvg: PromptFL (Guo et al., arXiv:2208.11625).

A few context vectors stand before, around or after each class name in place of the words of a
template, and are all that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import Prompts, class_features, first_context, prepare_prompts
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class CoOp:
    """Cross entropy on ``scale * f @ w(context).T`` (equation 2 of the paper).

    num_tokens: M, the number of context vectors, drawn from N(0, 0.02²).
    init_text: start from the embeddings of these words instead, which must be M tokens.
    position: where the class name stands: after, in the middle of, or before the context.
    class_specific: one context per class ([C, M, d_t]) instead of one for all ([M, d_t]).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    two_parts: ClassVar[bool] = False
    name: Literal["coop"] = "coop"
    num_tokens: int = 16
    init_text: str | None = None
    position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1")

    @property
    def transfers(self) -> bool:
        return not self.class_specific

    def prepare(self, backbone: Clip, task: Task) -> Prompts:
        return prepare_prompts(
            backbone,
            task,
            self.num_tokens,
            self.init_text,
            position=self.position,
            class_specific=self.class_specific,
        )

    def init(self, frozen: Prompts, generator: torch.Generator) -> Params:
        context = first_context(frozen, generator)  # [M, d_t]
        if self.class_specific:
            context = context.expand(frozen.layout.num_classes, *context.shape).clone()
        return {"context": context}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def features(self, params: Params, frozen: Prompts) -> Tensor:
        return class_features(frozen, params["context"])

    def loss(self, params: Params, frozen: Prompts, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: Prompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.scale * inputs["features"] @ w.mT  # [B, C]
