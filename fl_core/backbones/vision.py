"""Image encoders: open_clip's vision towers on memory-mapped weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.errors import ConfigError, StateError


@dataclass(frozen=True)
class ImageEncoder:
    """Pixels [B, 3, H, W] -> L2-normalised features [B, D] in float32."""

    module: nn.Module
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        pixels = _on_device(self.module, pixels, self.dtype)
        out = self.module(pixels.contiguous(memory_format=torch.channels_last))
        pooled = out[0] if isinstance(out, tuple) else out
        return F.normalize(pooled.float(), dim=-1)


@dataclass(frozen=True)
class PatchEncoder:
    """Pixels [B, 3, H, W] -> features [B, D] and patch features [B, L, D], float32, L2-normalised.

    A patch feature is what the head makes of one token or cell of the last feature map alone,
    ``proj(ln_post(token))``: the features that PLOT and FedOTP transport prompts to.
    """

    module: nn.Module
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = _on_device(self.module, pixels, self.dtype)
        native = type(self.module).__name__ == "VisionTransformer"
        pooled, patches = (_vit_patches if native else _timm_patches)(self.module, x)
        return F.normalize(pooled.float(), dim=-1), F.normalize(patches.float(), dim=-1)


@dataclass(frozen=True)
class TokenEncoder:
    """Pixels [B, 3, H, W] -> what the first block of a ViT sees, [B, 1 + L, d_v], float32.

    The class token and the patches with their positions, after the first LayerNorm: all that
    prompts in the image tower leave as it is.
    """

    module: nn.Module
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        module: Any = self.module
        tokens: Tensor = module._embeds(_on_device(module, pixels, self.dtype))
        return tokens.float()


def patch_encoder(module: nn.Module, dtype: torch.dtype) -> PatchEncoder:
    """The patch encoder of a vision tower, or a ConfigError where patches are not defined."""
    kind, reason = type(module).__name__, ""
    part: Any = module
    if kind == "VisionTransformer":
        if part.attn_pool is not None:
            reason = "its features come out of an attention pooler"
    elif kind != "TimmModel":
        reason = "its features come out of an attention pooler"
    elif not _pools_a_map(part):
        reason = f"its timm trunk {type(part.trunk).__name__} does not average a feature map"
    if reason:
        raise ConfigError(
            f"patch features are not defined for vision tower {kind}: {reason}. "
            "Use a ViT without attention pooling, or a CNN with average pooling"
        )
    return PatchEncoder(module, dtype)


def _pools_a_map(module: Any) -> bool:
    head = getattr(module.trunk, "head", None)
    pool = getattr(head, "global_pool", getattr(module.trunk, "global_pool", None))
    averages = getattr(pool, "pool_type", "") in ("avg", "fast", "fastavg")
    return averages and isinstance(getattr(module.trunk, "num_features", None), int)


def _on_device(module: nn.Module, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return pixels.to(next(module.parameters()).device, dtype)


def _vit_patches(visual: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = visual.transformer(visual._embeds(x))  # [B, 1 + L, d]
    pooled, _ = visual._pool(x)
    return pooled @ visual.proj, visual.ln_post(x[:, 1:]) @ visual.proj


def _timm_patches(visual: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    maps = visual.trunk.forward_features(x)
    if maps.ndim != 4 or maps.shape[1] != visual.trunk.num_features:
        raise ConfigError(
            f"patch features need a map [B, {visual.trunk.num_features}, H, W], the timm trunk "
            f"{type(visual.trunk).__name__} gives {list(maps.shape)}"
        )
    pooled = visual.head(visual.trunk.forward_head(maps))  # [B, D]
    cells = maps.flatten(2).transpose(1, 2)  # [B, H·W, d]
    alone = cells.flatten(0, 1)[:, :, None, None]  # the mean over a 1 x 1 map is the cell
    patches = visual.head(visual.trunk.forward_head(alone))
    return pooled, patches.unflatten(0, (len(x), -1))  # [B, H·W, D]


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that a state dict leaves out; each its own memory."""
    named = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]
    return {name: tensor.detach().clone().contiguous() for name, tensor in named.items()}


def rebuild(
    build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], device: torch.device | str
) -> nn.Module:
    """The module of ``build`` made of ``tensors`` (as ``all_tensors`` gave them), without ever
    allocating or drawing its own weights."""
    with torch.device("meta"):
        module = build()
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor.to(device)
        else:
            setattr(owner, leaf, nn.Parameter(tensor.to(device), requires_grad=False))
    left = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if left:
        raise StateError(f"prepared model lacks {len(left)} tensors, e.g. {left[0]}: prepare again")
    return module.eval()
