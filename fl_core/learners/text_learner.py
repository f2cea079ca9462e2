"""What learners on a language model have in common: a head, and how it is trained and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fl_core.backbones.language import NO_OUTPUT, Language
from fl_core.backbones.language_answers import answers_of
from fl_core.backbones.language_tower import Tower
from fl_core.backbones.token_rows import RESPONSE_IDS, TOKEN_IDS
from fl_core.errors import ConfigError
from fl_core.learners.base import Feature
from fl_core.learners.text_heads import Pooling, class_name_features, label_words
from fl_core.learners.text_model import Head, TextModel, spec_of
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True, kw_only=True)
class TextLearner:
    """head: ``classifier``, a trained linear layer on the pooled states; ``label_words``, for
    causal models: the class name with the largest log-likelihood per token, trained on the own
    class name's; ``similarity``: ``scale`` times the cosine of the pooled states and those of the
    bare class name without adapters; ``generation``, for causal models: no class at all but an
    answer in the model's own words, trained on the response's log-likelihood per token, its end
    included, and written greedily. pooling: over the last layer's states of a text's own tokens.
    max_new_tokens: of an answer, and the most that a response may have, its end included.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    groupable: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    rows_at_once: ClassVar[int] = 32
    head: Head = "classifier"
    pooling: Pooling = "mean"
    scale: float = 20.0
    max_new_tokens: int = 64

    @property
    def inputs(self) -> tuple[str, ...]:
        return (TOKEN_IDS, *self.response_inputs)

    @property
    def response_inputs(self) -> tuple[str, ...]:
        """What is read besides the text, where the model is to write."""
        return (f"{RESPONSE_IDS}{self.max_new_tokens}",) if self.writes else ()

    @property
    def transfers(self) -> bool:
        return self.head != "classifier"

    @property
    def writes(self) -> bool:
        return self.head == "generation"

    def model(self, backbone: Language, task: Task, tower: Tower) -> TextModel:
        """ConfigError where the backbone cannot have the head."""
        head, pooling, classes = self.head, self.pooling, task.classes
        if head == "label_words" and not backbone.causal:
            raise ConfigError(
                "learner.head = label_words needs a causal model: an encoder's log-likelihood of "
                "several masked tokens is not defined. Set learner.head=classifier or similarity."
            )
        if head in ("label_words", "generation") and backbone.info.get(NO_OUTPUT):
            raise ConfigError(
                f"learner.head = {head} reads the output layer, which the weights of "
                f"{backbone.info['model']!r} lack: save the model with its language-model head, or "
                "set learner.head=classifier."
            )
        words = label_words(backbone, classes) if head == "label_words" else None
        similar = head == "similarity"
        names = class_name_features(backbone, classes, pooling) if similar else None
        answers = answers_of(backbone, self.max_new_tokens) if self.writes else None
        return TextModel(
            tower, len(classes), backbone.width, pooling, self.scale, words, names, answers
        )

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {name: spec_of(name) for name in params}

    def loss(self, params: Params, frozen: TextModel, batch: Batch) -> Tensor:
        return self.loss_and_features(params, frozen, batch, "last_token")[0]

    def loss_and_features(
        self, params: Params, frozen: TextModel, batch: Batch, feature: Feature
    ) -> tuple[Tensor, Tensor]:
        return frozen.loss_and_features(params, batch, feature)

    def logits(self, params: Params, frozen: TextModel, inputs: Params) -> Tensor:
        return frozen.logits(params, inputs)

    def write(
        self, params: Params, frozen: TextModel, inputs: Params, each: bool = False
    ) -> tuple[list[str], Tensor]:
        return frozen.write(params, inputs, each)
