"""What learners on a language model have in common: a head, and how it is trained and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fl_core.backbones.token_rows import TOKEN_IDS
from fl_core.learners.base import Feature
from fl_core.learners.text_heads import Pooling
from fl_core.learners.text_model import Head, TextModel
from fl_core.types import Batch, Params, TensorSpec


@dataclass(frozen=True, kw_only=True)
class TextLearner:
    """head: ``classifier``, a trained linear layer on the pooled states; ``label_words``, for
    causal models: the class name with the largest log-likelihood per token, trained on the own
    class name's; ``similarity``: ``scale`` times the cosine of the pooled states and those of the
    bare class name without adapters. pooling: over the last layer's states of a text's own tokens.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    groupable: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    rows_at_once: ClassVar[int] = 32
    head: Head = "classifier"
    pooling: Pooling = "mean"
    scale: float = 20.0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (TOKEN_IDS,)

    @property
    def transfers(self) -> bool:
        return self.head != "classifier"

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec() for name in params}

    def loss(self, params: Params, frozen: TextModel, batch: Batch) -> Tensor:
        return self.loss_and_features(params, frozen, batch, "last_token")[0]

    def loss_and_features(
        self, params: Params, frozen: TextModel, batch: Batch, feature: Feature
    ) -> tuple[Tensor, Tensor]:
        return frozen.loss_and_features(params, batch, feature)

    def logits(self, params: Params, frozen: TextModel, inputs: Params) -> Tensor:
        return frozen.logits(params, inputs)
