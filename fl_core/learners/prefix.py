"""Prefix-tuning (Li and Liang, 2021, arXiv:2101.00190) on a language model: keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fl_core.backbones.language import Language
from fl_core.backbones.language_front import PREFIX, check_takes_prefix, prefix_shape
from fl_core.backbones.language_tower import build_tower
from fl_core.checks import check_fields
from fl_core.learners.text_learner import TextLearner
from fl_core.learners.text_model import TextModel, check_room
from fl_core.types import Params, Task


@dataclass(frozen=True, kw_only=True)
class Prefix(TextLearner):
    """Trained keys and values of P tokens before every text, in all layers.

    num_tokens: P. std: of the normal start; peft's is 1. head, scale, max_new_tokens: as in
    ``TextLearner``.
    """

    name: Literal["prefix"] = "prefix"
    num_tokens: int = 10
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", std=">= 0", scale="> 0", max_new_tokens=">= 1")

    def prepare(self, backbone: Language, task: Task) -> TextModel:
        tower = build_tower(backbone, ())
        check_takes_prefix(tower.body)
        model = self.model(backbone, task, tower)
        check_room(model, backbone, self.num_tokens)
        return model

    def init(self, frozen: TextModel, generator: torch.Generator) -> Params:
        shape = self.num_tokens, *prefix_shape(frozen.tower.body)
        prefix = self.std * torch.randn(shape, generator=generator, dtype=torch.float64)
        return frozen.with_head({PREFIX: prefix}, generator)
