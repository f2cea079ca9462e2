"""Large messages in Ray's object store: written in parts of a megabyte, read as one piece.

Ray copies any buffer above that size by six threads, which it starts for this one copy. On few
cores they cost more than they save: two replies of 10 MB at once took 9.0 ms on two cores, and
6.2 in such parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pickle import PickleBuffer
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core import wire

LARGE_FROM_BYTES = 64 * 1024
"""Size from which a message is worth a place of its own in Ray's shared memory."""

PART_BYTES = 1 << 20
"""The most that Ray copies by one thread. A multiple of 64, so that it leaves no gap between."""


@dataclass(frozen=True)
class LargeMessage:
    """A message whose memory is shared: when unpickled it is a read-only memoryview."""

    message: wire.Message

    def __reduce__(self) -> tuple[Callable[..., memoryview], tuple[Any, ...]]:
        whole = memoryview(self.message)
        starts = range(0, len(whole), PART_BYTES)
        return joined, tuple(PickleBuffer(whole[at : at + PART_BYTES]) for at in starts)


def joined(*parts: PickleBuffer | bytes) -> memoryview:
    """Parts as one piece of bytes; copied only where they do not follow one another in memory."""
    arrays = [np.frombuffer(memoryview(part), np.uint8) for part in parts]
    if len(arrays) == 1:
        return arrays[0].data
    places = [(_address(array), array.nbytes) for array in arrays]
    in_a_row = all(a + n == b for (a, n), (b, _) in pairwise(places))
    return np.asarray(_Row(arrays)).data if in_a_row else memoryview(b"".join(parts))


def _address(array: npt.NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


class _Row:
    """Arrays that follow one another in memory, as NumPy's array interface; it keeps them alive."""

    def __init__(self, arrays: Sequence[npt.NDArray[np.uint8]]) -> None:
        self.arrays = arrays
        size, read_only = sum(array.nbytes for array in arrays), True
        data = (_address(arrays[0]), read_only)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": data, "version": 3}
