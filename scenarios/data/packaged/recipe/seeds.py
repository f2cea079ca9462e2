"""Named random draws: one generator per purpose, none global."""

import hashlib

import numpy as np
import torch

SEED = 20240501


def number(*names: str | int) -> int:
    """A 63-bit number that depends only on the recipe's seed and the names."""
    text = "/".join(str(name) for name in (SEED, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(*names: str | int) -> np.random.Generator:
    return np.random.default_rng(number(*names))


def torch_generator(*names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(number(*names))
