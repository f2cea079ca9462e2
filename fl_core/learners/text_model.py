"""What adapters do not change of a language model and of the classes that it tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.language import Language
from fl_core.backbones.language_tower import Tower, reading
from fl_core.backbones.token_rows import BELOW_TOP, PADDING, TOKEN_IDS
from fl_core.errors import ConfigError
from fl_core.learners.base import Feature, masked_cross_entropy, masked_mean
from fl_core.learners.text_heads import (
    LabelWords,
    Pooling,
    class_name_features,
    label_scores,
    label_words,
    pooled,
    response_log_likelihood,
    text_feature,
)
from fl_core.types import Batch, Params, Task

Head = Literal["classifier", "label_words", "similarity"]
WEIGHT, BIAS = "head.weight", "head.bias"
HEAD_STD = 0.02


@dataclass(frozen=True)
class TextModel:
    """A tower with a head.

    words: with the head label_words. names: with the head similarity, normalised [C, d]; scale: on
    cosines. pooling: how one state is made of a text's.
    """

    tower: Tower
    num_classes: int
    width: int
    pooling: Pooling
    scale: float
    words: LabelWords | None = None
    names: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of what is trained, which is at least float32."""
        return torch.promote_types(self.tower.dtype, torch.float32)

    def with_head(self, params: Params, generator: torch.Generator) -> Params:
        """Trained tensors and a classifier's first ones: N(0, 0.02²) as in BERT, biases 0."""
        if self.words is None and self.names is None:
            shape = self.num_classes, self.width
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            params = {**params, WEIGHT: HEAD_STD * drawn, BIAS: torch.zeros(self.num_classes)}
        return {name: t.to(self.tower.device, self.dtype) for name, t in params.items()}

    def loss_and_features(
        self, params: Params, batch: Batch, feature: Feature
    ) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch's examples, and h [B, d]."""
        ids = batch.inputs[TOKEN_IDS]
        if self.words is not None:
            told, hidden, valid = response_log_likelihood(
                self.tower, self.words, params, ids, batch.labels
            )
            loss = -masked_mean(told, batch)
        else:
            hidden, valid = self._hidden(params, batch.inputs)
            loss = masked_cross_entropy(self._scores(params, hidden, valid), batch)
        return loss, text_feature(hidden, valid, feature, ids.shape[-1])

    def logits(self, params: Params, inputs: Params) -> Tensor:
        """Scores of the classes, [B, C]."""
        if self.words is not None:
            return label_scores(self.tower, self.words, params, inputs[TOKEN_IDS])
        return self._scores(params, *self._hidden(params, inputs))

    def _hidden(self, params: Params, inputs: Params) -> tuple[Tensor, Tensor]:
        ids = inputs[TOKEN_IDS]
        valid = ids != PADDING
        states = next((t for kind, t in inputs.items() if kind.startswith(BELOW_TOP)), None)
        seen, positions = reading(valid, self.tower.causal)
        return self.tower(params, ids, seen, positions, states), valid

    def _scores(self, params: Params, hidden: Tensor, valid: Tensor) -> Tensor:
        h = pooled(hidden, valid, self.pooling).to(self.dtype)  # [B, d]
        if self.names is not None:
            return self.scale * F.normalize(h, dim=-1) @ self.names.to(h.dtype).mT  # [B, C]
        return F.linear(h, params[WEIGHT].to(h.dtype), params[BIAS].to(h.dtype))


def stored_inputs(top_layers: int | None) -> tuple[str, ...]:
    """What a learner reads whose adapters are in the top layers only, or in all (None)."""
    return (TOKEN_IDS,) if top_layers is None else (TOKEN_IDS, f"{BELOW_TOP}{top_layers}")


def check_top_layers(top_layers: int | None, head: Head) -> None:
    """ConfigError for a pair that cannot be."""
    if top_layers is not None and head == "label_words":
        raise ConfigError(
            "top_layers is not allowed with head = label_words: the label's tokens have to "
            "pass through all layers. Set top_layers=null, or another head."
        )


def check_room(model: TextModel, backbone: Language, num_tokens: int) -> None:
    """ConfigError where ``num_tokens`` trained tokens, a text and a label have no room."""
    room = backbone.info["max_positions"]
    label = 0 if model.words is None else model.words.ids.shape[1]
    if room is not None and num_tokens + backbone.max_length + label > room:
        behind = f" and {label} of the label" if label else ""
        raise ConfigError(
            f"learner.num_tokens = {num_tokens} has no room: the model has {room} positions, for "
            f"these, backbone.max_length = {backbone.max_length}{behind}. Set "
            f"backbone.max_length to at most {room - label - num_tokens}, or fewer num_tokens."
        )


def text_model(
    backbone: Language, task: Task, tower: Tower, head: Head, pooling: Pooling, scale: float
) -> TextModel:
    """ConfigError where the model cannot have the head."""
    if head == "label_words" and not backbone.causal:
        raise ConfigError(
            "learner.head = label_words needs a causal model: an encoder's log-likelihood of "
            "several masked tokens is not defined. Set learner.head=classifier or similarity."
        )
    words = label_words(backbone, task.classes) if head == "label_words" else None
    similar = head == "similarity"
    names = class_name_features(backbone, task.classes, pooling) if similar else None
    return TextModel(tower, len(task.classes), backbone.width, pooling, scale, words, names)
