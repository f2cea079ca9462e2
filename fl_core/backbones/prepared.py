"""Folders of prepared models: written once under the hash of their content, mapped by everyone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fl_core.durable import sync_path


def is_complete(folder: Path) -> bool:
    """Whether a prepared folder has all its files at their full sizes."""
    try:
        info = json.loads((folder / "model.json").read_text())
        sizes = [((folder / name).stat().st_size, size) for name, size in info["files"].items()]
    except (OSError, ValueError, KeyError):
        return False
    return all(found == size for found, size in sizes)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def content_hash(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, and a configuration; 32 digits."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\x1f{name}\x1f{tensor.dtype}\x1f{list(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def publish(partial: Path, target: Path) -> None:
    """Make a written folder visible under its final name, durably and all at once."""
    for path in [*partial.rglob("*"), partial]:
        sync_path(path)
    if is_complete(target):
        return
    damaged = Path(f"{partial}.damaged")
    with contextlib.suppress(FileNotFoundError):
        target.rename(damaged)
    try:
        partial.rename(target)
    except OSError:
        if not is_complete(target):  # else another process was faster, with equal content
            raise
    sync_path(target.parent)
    shutil.rmtree(damaged, ignore_errors=True)
