"""From NumPy to torch without a copy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch


def as_tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """``values`` as a tensor on the same memory, which may be read-only: nobody may write to it.

    torch has no word for that, so it warns; its warning is left out.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
