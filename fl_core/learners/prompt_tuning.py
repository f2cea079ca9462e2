"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691) on a language model: trained inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.language import Language
from fl_core.backbones.language_layers import PROMPT
from fl_core.backbones.language_tower import build_tower
from fl_core.backbones.token_rows import TOKEN_IDS
from fl_core.checks import check_fields
from fl_core.learners.base import Feature
from fl_core.learners.text_heads import Pooling
from fl_core.learners.text_model import Head, TextModel, check_room, text_model
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class PromptTuning:
    """Trained vectors [P, d] before the word embeddings of every text.

    num_tokens: P. start: at embeddings of random ``words``, or ``normal``, N(0, 1) as peft's
    default. head, scale: as those of ``lora``; pooling is over the text's own tokens.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    groupable: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    rows_at_once: ClassVar[int] = 32
    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_tokens: int = 20
    start: Literal["words", "normal"] = "words"
    head: Head = "classifier"
    pooling: Pooling = "mean"
    scale: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", scale="> 0")

    @property
    def inputs(self) -> tuple[str, ...]:
        return (TOKEN_IDS,)

    @property
    def transfers(self) -> bool:
        return self.head != "classifier"

    def prepare(self, backbone: Language, task: Task) -> TextModel:
        tower = build_tower(backbone, (), prompted=True)
        model = text_model(backbone, task, tower, self.head, self.pooling, self.scale)
        check_room(model, backbone, self.num_tokens)
        return model

    def init(self, frozen: TextModel, generator: torch.Generator) -> Params:
        words, device = frozen.tower.words(), frozen.tower.device
        if self.start == "words":
            drawn = torch.randint(len(words), (self.num_tokens,), generator=generator)
            prompt = words[drawn.to(words.device)].clone()
        else:
            shape = self.num_tokens, words.shape[1]
            prompt = torch.randn(shape, generator=generator, dtype=torch.float64)
        params = {PROMPT: prompt} | frozen.first_head(generator)
        return {name: tensor.to(device, frozen.dtype) for name, tensor in params.items()}

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
