"""Named randomness: every draw has a purpose, and nothing reads a global generator."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every name, in order.

    The same on every machine and Python version (SHA-256 of the joined names).
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one named draw, e.g. ``generator(seed, "batches", round, client)``."""
    return torch.Generator().manual_seed(derive(seed, *names))
