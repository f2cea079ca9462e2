"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691) on a language model: trained inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fl_core.backbones.language import Language
from fl_core.backbones.language_layers import PROMPT
from fl_core.backbones.language_tower import build_tower
from fl_core.checks import check_fields
from fl_core.learners.text_learner import TextLearner
from fl_core.learners.text_model import TextModel, check_room
from fl_core.types import Params, Task


@dataclass(frozen=True, kw_only=True)
class PromptTuning(TextLearner):
    """Trained vectors [P, d] before the word embeddings of every text.

    num_tokens: P. start: at embeddings of random ``words``, or ``normal``, N(0, 1) as peft's
    default. head, scale, max_new_tokens: as in ``TextLearner``.
    """

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_tokens: int = 20
    start: Literal["words", "normal"] = "words"

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", scale="> 0", max_new_tokens=">= 1")

    def prepare(self, backbone: Language, task: Task) -> TextModel:
        tower = build_tower(backbone, (), prompted=True)
        model = self.model(backbone, task, tower)
        check_room(model, backbone, self.num_tokens)
        return model

    def init(self, frozen: TextModel, generator: torch.Generator) -> Params:
        words = frozen.tower.words()
        if self.start == "words":
            drawn = torch.randint(len(words), (self.num_tokens,), generator=generator)
            prompt = words[drawn.to(words.device)].clone()
        else:
            shape = self.num_tokens, words.shape[1]
            prompt = torch.randn(shape, generator=generator, dtype=torch.float64)
        return frozen.with_head({PROMPT: prompt}, generator)
