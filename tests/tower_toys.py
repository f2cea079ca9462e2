"""Small text towers of open_clip, and tokenised names for their prompts."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from fl_core.backbones.prompt_plan import NameTokens

VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 24, "vocab_size": 60, "width": 32, "heads": 4, "layers": 3}
BOS, EOS = 58, 59
PHOTO = (5, 6, 7, 5)  # "a photo of a"
NAMES = ((10,), (11, 12), (13, 14, 15, 16), (17,), (18, 19))
PERIOD = 40


def clip_model(kind: str, **text: Any) -> nn.Module:
    """A small open_clip model with weights large enough that errors would show."""
    torch.manual_seed(0)
    custom = kind != "clip"
    text = {**TEXT, **text}
    if kind == "siglip":
        text |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    build = CustomTextCLIP if custom else CLIP
    model = build(24, VISION, text, quick_gelu=kind == "quick_gelu")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def names_of(bos: tuple[int, ...] = (BOS,)) -> NameTokens:
    ids = tuple((*name, PERIOD) for name in NAMES)
    lengths = tuple(len(name) for name in NAMES)
    texts = tuple(f"class {i}" for i in range(len(NAMES)))
    return NameTokens(texts, ids, lengths, bos, (EOS,), 0, 9)
