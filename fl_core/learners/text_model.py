"""What adapters do not change of a language model and of the classes that it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.language import Language
from fl_core.backbones.language_answers import Answers
from fl_core.backbones.language_tower import Tower, reading
from fl_core.backbones.language_writing import begin, greedy, log_likelihood
from fl_core.backbones.token_rows import BELOW_TOP, PADDING, RESPONSE_IDS, TOKEN_IDS
from fl_core.errors import ConfigError
from fl_core.learners.base import Feature, masked_cross_entropy, masked_mean
from fl_core.learners.text_heads import (
    LabelWords,
    Pooling,
    label_scores,
    pooled,
    response_log_likelihood,
    text_feature,
)
from fl_core.types import Batch, Params, TensorSpec

Head = Literal["classifier", "label_words", "similarity", "generation"]
WEIGHT, BIAS = "head.weight", "head.bias"
HEAD_STD = 0.02


@dataclass(frozen=True)
class TextModel:
    """A tower with a head.

    words: with the head label_words. names: with the head similarity, normalised [C, d]; scale: on
    cosines. answers: with the head generation. pooling: how one state is made of a text's.
    """

    tower: Tower
    num_classes: int
    width: int
    pooling: Pooling
    scale: float
    words: LabelWords | None = None
    names: Tensor | None = None
    answers: Answers | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of what is trained, which is at least float32."""
        return torch.promote_types(self.tower.dtype, torch.float32)

    def with_head(self, params: Params, generator: torch.Generator) -> Params:
        """Trained tensors and a classifier's first ones: N(0, 0.02²) as in BERT, biases 0."""
        if all(part is None for part in (self.words, self.names, self.answers)):
            shape = self.num_classes, self.width
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            params = {**params, WEIGHT: HEAD_STD * drawn, BIAS: torch.zeros(self.num_classes)}
        return {name: t.to(self.tower.device, self.dtype) for name, t in params.items()}

    def loss_and_features(
        self, params: Params, batch: Batch, feature: Feature
    ) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch's examples, and h [B, d]."""
        ids, response = batch.inputs[TOKEN_IDS], self._response(batch)
        if response is not None:
            told, hidden, valid = response_log_likelihood(self.tower, params, ids, response)
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

    def write(self, params: Params, inputs: Params, each: bool = False) -> tuple[list[str], Tensor]:
        """The answer to each text, and -log p per token [B] of the response that was wanted.

        each: ``params`` [B, ...] are those of a model for each text.
        """
        assert self.answers is not None  # with another head nobody asks
        begun = begin(self.tower, params, inputs[TOKEN_IDS], each=each)
        told = log_likelihood(begun, _response_of(inputs))
        written = greedy(begun, self.answers.end, self.answers.max_new_tokens)
        return self.answers.read(written), -told

    def _response(self, batch: Batch) -> Tensor | None:
        """What is to follow each text, [B, T]; None where classes are told in another way."""
        if self.words is not None:
            return self.words.ids[batch.labels]
        return None if self.answers is None else _response_of(batch.inputs)

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


def spec_of(name: str) -> TensorSpec:
    """Of a tensor that is no adapter's factor."""
    return TensorSpec(role="classifier") if name in (WEIGHT, BIAS) else TensorSpec()


def stored_inputs(top_layers: int | None) -> tuple[str, ...]:
    """What a learner reads whose adapters are in the top layers only, or in all (None)."""
    return (TOKEN_IDS,) if top_layers is None else (TOKEN_IDS, f"{BELOW_TOP}{top_layers}")


def check_top_layers(top_layers: int | None, head: Head) -> None:
    """ConfigError for a pair that cannot be."""
    if top_layers is not None and head in ("label_words", "generation"):
        raise ConfigError(
            f"top_layers is not allowed with head = {head}: what follows the text has to pass "
            "through all layers. Set top_layers=null, or another head."
        )


def check_modules(tower: Tower, named: Sequence[str] | None) -> None:
    """ConfigError where a config names layers that the model has not; null names none."""
    paths = [f".{place.path}" for place in tower.places]
    unknown = [n for n in named or () if not any(path.endswith(f".{n}") for path in paths)]
    if unknown:
        there = sorted({path.rpartition(".")[2] for path in paths})
        raise ConfigError(
            f"learner.modules: no adapted layer is called {', '.join(unknown)}; those that are "
            f"named beside it: {', '.join(there)}. Correct the name, or leave it out."
        )


def check_room(model: TextModel, backbone: Language, num_tokens: int) -> None:
    """ConfigError where ``num_tokens`` trained tokens, a text and a label have no room."""
    room = backbone.info["max_positions"]
    label = 0 if model.words is None else model.words.ids.shape[1]
    label += 0 if model.answers is None else model.answers.max_new_tokens
    if room is not None and num_tokens + backbone.max_length + label > room:
        what = "label" if model.answers is None else "answer"
        behind = f" and {label} of the {what}" if label else ""
        raise ConfigError(
            f"learner.num_tokens = {num_tokens} has no room: the model has {room} positions, for "
            f"these, backbone.max_length = {backbone.max_length}{behind}. Set "
            f"backbone.max_length to at most {room - label - num_tokens}, or fewer num_tokens."
        )


def _response_of(inputs: Params) -> Tensor:
    return next(ids for kind, ids in inputs.items() if kind.startswith(RESPONSE_IDS))
