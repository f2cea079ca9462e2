"""The module of a prepared language model, on weights that are mapped once per process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_core.backbones.prepared import read_tensors
from fl_core.backbones.vision import rebuild


def mapped_module(folder: Path, causal: bool, device: str, dtype: torch.dtype) -> nn.Module:
    """A new module on the weights of a folder; its tensors are shared with every other one."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder))
    config._attn_implementation = "eager"
    kind = AutoModelForCausalLM if causal else AutoModel
    module = rebuild(lambda: kind.from_config(config), _tensors(folder, device, dtype), device)
    return module.requires_grad_(False)


@lru_cache(maxsize=2)
def _tensors(folder: Path, device: str, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """The weights on a device, held once per process however many modules use them."""
    info = json.loads((folder / "model.json").read_text())
    kept = set(info["kept_dtype"])
    found = {
        name: tensor.to(device, dtype if name not in kept else tensor.dtype)
        for name, tensor in read_tensors(folder / "model.safetensors").items()
    }
    return found | {name: found[other] for name, other in info["tied"].items()}
