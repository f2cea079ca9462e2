"""A small random CLIP with a two-layer ViT, and a small problem on it for any learner."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from language_toys import BERT, language_problem, small_language
from torch.nn import functional as F

from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.language import Language
from fl_core.backbones.token_rows import TOKEN_IDS
from fl_core.backbones.union import Backbone
from fl_core.learners import (
    BPL,
    DPFPL,
    IA3,
    LEARNERS,
    VPT,
    CoCoOp,
    FedOTP,
    Learner,
    LoRA,
    LoraClip,
    MaPLe,
    PFedMoAP,
    Plot,
    Prefix,
    ProDA,
    PromptSRC,
    PromptTuning,
    ZeroShot,
)
from fl_core.local import Problem
from fl_core.seeds import generator
from fl_core.types import Task

CLASSES = ("cat", "hot dog", "fire engine", "sea animal", "fish")
NUM_EXAMPLES, NUM_PATCHES = 40, 4
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SMALL = {
    ProDA: ProDA(num_prompts=8, num_tokens=4),
    MaPLe: MaPLe(depth=2),
    VPT: VPT(num_tokens=2, depth=2),
    PromptSRC: PromptSRC(depth=2),
    CoCoOp: CoCoOp(reduction=8),
    DPFPL: DPFPL(num_tokens=4, rank=2, clip=0.5, shared_noise=0.1, personal_noise=0.1),
    LoraClip: LoraClip(alpha=8.0),
    LoRA: LoRA(rank=2, head="similarity", scale=5.0, pooling="first"),
    IA3: IA3(head="similarity", scale=5.0, pooling="first"),
    PromptTuning: PromptTuning(num_tokens=8, head="similarity", scale=10.0),
    Prefix: Prefix(num_tokens=8, head="similarity", scale=10.0, std=0.3),
    BPL: BPL(reduction=8, prior_std=0.1, kl_weight=1e-3),
    PFedMoAP: PFedMoAP(num_tokens=4, gate_width=8, heads=2),
    Plot: Plot(num_prompts=2, num_tokens=4, max_iterations=10),
    FedOTP: FedOTP(num_tokens=4, max_iterations=10),
}
"""Learners whose papers' defaults do not fit a toy; the others stand at their defaults."""


def small(kind: type[Learner]) -> Learner:
    return SMALL[kind] if kind in SMALL else kind()  # type: ignore[index]


def trained() -> list[Learner]:
    return [small(kind) for kind in LEARNERS if kind is not ZeroShot]


def write_clip(folder: Path, text: Mapping[str, object] | None = None, **vision: object) -> Path:
    """A random CLIP in open_clip's local-dir format."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {
        **MODEL,
        "vision_cfg": {**MODEL["vision_cfg"], **vision},  # type: ignore[dict-item]
        "text_cfg": {**MODEL["text_cfg"], **(text or {})},  # type: ignore[dict-item]
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**config)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def small_clip(
    folder: Path, device: str = "cpu", text: Mapping[str, object] | None = None, **vision: object
) -> Clip:
    (folder / "model").mkdir(exist_ok=True)
    source = write_clip(folder / "model", text, **vision)
    return load_clip(prepare_clip(OpenClip(model=f"local-dir:{source}"), folder, {}), device)


def in_float64(clip: Clip) -> Clip:
    return dataclasses.replace(clip, text=clip.text.to(dtype=torch.float64))  # type: ignore[attr-defined]


def backbone_of(learner: Learner, clip: Clip) -> Backbone:
    """What a learner stands on in a test: this CLIP, or a small encoder of texts."""
    if TOKEN_IDS not in learner.inputs:
        return clip
    folder = clip.folder.parent / "language"
    folder.mkdir(exist_ok=True)
    backbone = small_language(folder, BERT, clip.text.dtype, max_length=10)
    return dataclasses.replace(backbone, device=clip.device)


def problem_of(learner: Learner, clip: Clip) -> Problem:
    """Forty examples whose features lean towards the text feature of their class.

    Features, patch features and tokens are made alike: each class's direction plus noise. Tokens
    need no image: a block sees any [1 + L, d_v].
    """
    backbone = backbone_of(learner, clip)
    if isinstance(backbone, Language):
        return language_problem(learner, backbone, CLASSES)
    draws = torch.Generator().manual_seed(0)
    zero_shot = ZeroShot().prepare(clip, Task(CLASSES)).class_features
    labels = torch.randint(0, len(CLASSES), (NUM_EXAMPLES,), generator=draws)
    noise = torch.randn(NUM_EXAMPLES, zero_shot.shape[1], generator=draws).to(zero_shot)
    features = F.normalize(zero_shot[labels] + 0.1 * noise, dim=-1)
    noise = torch.randn(NUM_EXAMPLES, NUM_PATCHES, zero_shot.shape[1], generator=draws)
    patches = F.normalize(zero_shot[labels, None] + 0.3 * noise.to(zero_shot), dim=-1)
    width = MODEL["vision_cfg"]["width"]  # type: ignore[index]
    kinds = torch.randn(len(CLASSES), 1 + NUM_PATCHES, width, generator=draws)
    noise = torch.randn(NUM_EXAMPLES, 1 + NUM_PATCHES, width, generator=draws)
    tokens = (kinds[labels] + 0.3 * noise).to(zero_shot)
    every = {"features": features, "patches": patches, "tokens": tokens}
    frozen = learner.prepare(clip, Task(CLASSES))
    initial = learner.init(frozen, generator(0, "init"))
    inputs = {kind: every[kind] for kind in learner.inputs}
    labels = labels.to(clip.text.device)
    return Problem(learner, frozen, initial, inputs, labels, clip.text.groupable)
