"""Memory of a process that does the same work in every round."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT_BYTES = 64 << 20
MOST_KEPT_BYTES = 512 << 20


def peak_bytes(device: torch.device | None = None) -> int:
    """The most memory that this process has had so far: on ``device`` if that is a GPU, else
    resident in main memory, mapped features and weights included."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here goes on from before an exec
        told = status.read_bytes()
        return int(told[told.index(b"VmHWM:") + 6 :].split(maxsplit=1)[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Let the next round reuse what this one freed, instead of handing it back to the system.

    A round allocates and frees the same tensors of some megabytes again and again. By default
    glibc returns them, and every new page costs a fault: 5,000 of them, 10 of 55 ms, in a round
    with 10 clients and 2 MB. For processes of our own; elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)
