"""What learners that train context vectors have in common, as functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.chunks import ChunkedTower
from fl_core.backbones.clip import Clip
from fl_core.backbones.prompt_plan import Position
from fl_core.backbones.text_tower import FunctionalTower, PromptLayout, TextTower
from fl_core.backbones.vision_tower import VisionTower
from fl_core.errors import ConfigError
from fl_core.types import Task

PROMPT_STD = 0.02
"""Standard deviation of context vectors that no words start, as in CoOp."""


@dataclass(frozen=True)
class Prompts:
    """tower and layout: how a context becomes class features; scale: s = exp(logit scale).

    init: [M, d_t], the embeddings of the words that a context starts from, or None.
    """

    tower: TextTower
    layout: PromptLayout
    scale: float
    init: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """Of what is trained, and of class features."""
        return trained_dtype(self.tower)


@dataclass(frozen=True)
class ReferencedPrompts:
    """Prompts that are held near a template; reference: [C, D], the template's normalised
    class features."""

    prompts: Prompts
    reference: Tensor


def prepare_prompts(
    backbone: Clip,
    task: Task,
    num_tokens: int | None,
    init_text: str | None = None,
    *,
    position: Position = "end",
    class_specific: bool = False,
) -> Prompts:
    """The frozen half of the prompts of a task. num_tokens: M; None: as many as ``init_text`` has.

    ConfigError where the two contradict each other, or neither says how many.
    """
    words = init_text if init_text and init_text.strip() else None
    init = backbone.embed_text(words) if words else None  # [M, d_t]
    if init is not None and num_tokens not in (None, len(init)):
        length = "1 token" if len(init) == 1 else f"{len(init)} tokens"
        raise ConfigError(
            f"learner.num_tokens = {num_tokens} contradicts learner.init_text = {init_text!r}, "
            f"which has {length}: set learner.num_tokens={len(init)}, or learner.init_text=null "
            "for a context that no words start."
        )
    num = num_tokens if init is None else len(init)
    if num is None:
        raise ConfigError(
            "learner.num_tokens = null is not allowed without learner.init_text, which would say "
            "how many tokens there are: set one of the two, such as learner.num_tokens=4."
        )
    layout = backbone.prompt_layout(
        task.classes, num_tokens=num, position=position, class_specific=class_specific
    )
    return Prompts(backbone.text, layout, backbone.scale, init)


def prepare_referenced(
    backbone: Clip, task: Task, num_tokens: int | None, init_text: str | None = None
) -> ReferencedPrompts:
    """``prepare_prompts`` beside the features of the data set's own template."""
    prompts = prepare_prompts(backbone, task, num_tokens, init_text)
    return ReferencedPrompts(prompts, template_features(backbone, task.classes, task.templates[:1]))


def first_context(prompts: Prompts, generator: torch.Generator, *leading: int) -> Tensor:
    """A context [*leading, M, d_t]: the start's words, or drawn from N(0, 0.02²)."""
    tower = prompts.tower
    if prompts.init is None:
        context = normal(generator, *leading, prompts.layout.num_tokens, tower.width)
    else:
        context = prompts.init.expand(*leading, *prompts.init.shape)
    return context.to(tower.device, prompts.dtype).clone()


def trained_dtype(tower: TextTower) -> torch.dtype:
    """Of what is trained on a tower, and of its features then: its own, and at least float32."""
    return torch.promote_types(tower.dtype, torch.float32)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draws from N(0, 0.02²) in float64, so that every precision rounds the same numbers."""
    return PROMPT_STD * torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform_linear(generator: torch.Generator, num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a fresh linear layer, as ``nn.Linear`` draws them."""
    bound = num_in**-0.5
    weight = torch.rand(num_out, num_in, generator=generator, dtype=torch.float64)
    bias = torch.rand(num_out, generator=generator, dtype=torch.float64)
    return bound * (2 * weight - 1), bound * (2 * bias - 1)


def class_features(prompts: Prompts, context: Tensor) -> Tensor:
    """Normalised class features [C, D] of one context."""
    return F.normalize(prompts.tower.encode(prompts.layout, context), dim=-1)


def features_of_each(prompts: Prompts, contexts: Tensor) -> Tensor:
    """Normalised class features [P, C, D] of P contexts [P, M, d_t]."""
    if prompts.tower.groupable:
        return torch.vmap(lambda context: class_features(prompts, context))(contexts)
    return torch.stack([class_features(prompts, context) for context in contexts])


def check_depth(backbone: Clip, learner: str, depth: int) -> VisionTower:
    """The image tower, where both towers take prompts in ``depth`` layers; else a ConfigError."""
    text = backbone.text.whole if isinstance(backbone.text, ChunkedTower) else backbone.text
    if not isinstance(text, FunctionalTower) or not text.facts.causal:
        raise ConfigError(
            f"learner={learner} prompts inside the text tower, and needs a causal CLIP text tower: "
            f"this model's is another ({backbone.info['text'].get('reason', 'not causal')})."
        )
    vision = backbone.vision_tower()
    most = min(text.facts.layers, vision.layers)
    if depth > most:
        raise ConfigError(
            f"learner.depth = {depth} is not allowed for learner={learner}: this model has "
            f"{text.facts.layers} layers in its text tower and {vision.layers} in its image tower. "
            f"Use learner.depth={most}, or less."
        )
    return vision


def template_features(
    backbone: Clip, classes: tuple[str, ...], templates: tuple[str, ...]
) -> Tensor:
    """Normalised mean over templates of each class's normalised text feature, [C, D]."""
    features = []
    for template in templates:
        ids = backbone.tokenize([template.format(name) for name in classes])
        found = backbone.text.encode_tokens(ids).to(trained_dtype(backbone.text))
        features.append(F.normalize(found, dim=-1))
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)
