"""From NumPy to torch without a copy."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch


def as_tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """``values`` as a tensor on the same memory, which may be read-only: nobody may write to it."""
    _let_torch_warn()
    return torch.from_numpy(values)


@cache
def _let_torch_warn() -> None:
    """torch has no word for memory that nobody writes to, and warns of it, once in a process."""
    read_only = np.zeros(1)
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(read_only)
