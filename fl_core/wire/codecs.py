"""What each codec makes of named tensors: other, smaller tensors, and the way back.

``pack`` gives the tensors that stand in the message, ``entries`` says beforehand which they are
(from shapes alone, so that lengths are known before anything is sent), ``unpack`` undoes it. A name
that begins with ``#`` is the codec's own, so no tensor that is sent may have such a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.errors import MessageError
from fl_core.seeds import generator
from fl_core.types import Params

FORBID = {"extra": "forbid"}
Shapes = Mapping[str, tuple[int, ...]]
Draws = Callable[[str], torch.Generator]
"""The named draw for rounding a tensor, by the tensor's name."""

SCALES, INDICES = "#scales", "#indices/"
LEVELS = 127
"""Steps of int8 on either side of zero."""
MAX_FP32 = torch.finfo(torch.float32).max


class Entry(NamedTuple):
    """A tensor as it stands in a message."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Float:
    """Every value rounded to the nearest float of one type."""

    __pydantic_config__: ClassVar = FORBID
    dtype: ClassVar[torch.dtype]
    name: str
    feedback: ClassVar[bool] = False

    def entries(self, shapes: Shapes) -> dict[str, Entry]:
        return {name: Entry(self.dtype, tuple(shape)) for name, shape in shapes.items()}

    def pack(self, tensors: Params, draws: Draws) -> Params:
        small = {name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        for name, tensor in small.items():
            if self.dtype != torch.float32 and not all_finite(tensor) and all_finite(tensors[name]):
                raise MessageError(_too_large(name, tensors[name], self.name))
        return small

    def unpack(self, packed: Params, shapes: Shapes) -> Params:
        return {name: packed[name].to(torch.float32) for name in shapes}


@dataclass(frozen=True)
class FP32(_Float):
    """Every value as a 4-byte float."""

    dtype: ClassVar = torch.float32
    name: Literal["fp32"] = "fp32"


@dataclass(frozen=True)
class FP16(_Float):
    """Every value rounded to a 2-byte float; values beyond 65,504 are refused when encoding."""

    dtype: ClassVar = torch.float16
    name: Literal["fp16"] = "fp16"


@dataclass(frozen=True)
class BF16(_Float):
    """Every value rounded to 2 bytes: the range of fp32, with 8 significant bits."""

    dtype: ClassVar = torch.bfloat16
    name: Literal["bf16"] = "bf16"


@dataclass(frozen=True)
class Int8:
    """Each value as one of 255 steps of its tensor, rounded at random so that the mean is kept.

    q = floor(x / s + u), u uniform in [0, 1), s = max|x| / 127 rounded up to fp32; s q is what
    arrives, and its expectation is x. One scale s per tensor, [num_tensors], in order of the names.
    """

    __pydantic_config__: ClassVar = FORBID
    feedback: ClassVar[bool] = False
    name: Literal["int8"] = "int8"

    def entries(self, shapes: Shapes) -> dict[str, Entry]:
        steps = {name: Entry(torch.int8, tuple(shape)) for name, shape in shapes.items()}
        return steps | {SCALES: Entry(torch.float32, (len(shapes),))} if shapes else {}

    def pack(self, tensors: Params, draws: Draws) -> Params:
        scales = {name: _scale(name, tensors[name]) for name in sorted(tensors)}
        steps = {
            name: _at_random(tensor.double() / (scales[name] or 1.0), draws(name))
            for name, tensor in tensors.items()
        }
        return steps | {SCALES: torch.tensor(list(scales.values()), dtype=torch.float32)}

    def unpack(self, packed: Params, shapes: Shapes) -> Params:
        if not shapes:
            return {}
        if (packed[SCALES] < 0).any():
            raise MessageError("a scale is below zero")
        scales = dict(zip(sorted(shapes), packed[SCALES], strict=True))
        return {name: packed[name].to(torch.float32) * scales[name] for name in shapes}


WholeCodec = FP32 | FP16 | BF16 | Int8
"""Codecs whose messages say something of every value: what a broadcast can be sent in."""


@dataclass(frozen=True)
class TopK:
    """Of each tensor only the entries that are largest in magnitude, with their positions.

    k = max(1, round(``fraction`` n)) of n values, in the codec ``values``, beside their positions
    [k] in the smallest unsigned type that holds n - 1. What is left out is not lost: the client
    adds it to its next update (error feedback; Stich et al., 2018, arXiv:1809.07599).
    """

    __pydantic_config__: ClassVar = FORBID
    feedback: ClassVar[bool] = True
    fraction: float = 0.1
    values: WholeCodec = field(default_factory=FP32)
    name: Literal["top_k"] = "top_k"

    def __post_init__(self) -> None:
        check_fields(self, fraction="above 0 to 1")

    def num_kept(self, num: int) -> int:
        """How many of ``num`` values are sent."""
        return min(num, max(1, round(self.fraction * num)))

    def entries(self, shapes: Shapes) -> dict[str, Entry]:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        kept = {name: (self.num_kept(num),) for name, num in sizes.items()}
        where = {INDICES + n: Entry(_index_type(num), kept[n]) for n, num in sizes.items()}
        return self.values.entries(kept) | where

    def pack(self, tensors: Params, draws: Draws) -> Params:
        flat = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
        kept = {name: _largest(name, t, self.num_kept(len(t))) for name, t in flat.items()}
        values = {name: tensor[kept[name]] for name, tensor in flat.items()}
        where = {INDICES + n: i.to(_index_type(len(flat[n]))) for n, i in kept.items()}
        return self.values.pack(values, draws) | where

    def unpack(self, packed: Params, shapes: Shapes) -> Params:
        where = {name: packed[INDICES + name].to(torch.int64) for name in shapes}
        values = self.values.unpack(packed, {name: tuple(i.shape) for name, i in where.items()})
        return {n: _scattered(n, values[n], where[n], shape) for n, shape in shapes.items()}


Codec = FP32 | FP16 | BF16 | Int8 | TopK
CODECS: tuple[type[Codec], ...] = (FP32, FP16, BF16, Int8, TopK)


def shapes_of(tensors: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def named_draws(seed: int, *names: str | int) -> Draws:
    """Draws for the rounding of each tensor of one message, which ``names`` tell from others."""
    return lambda tensor: generator(seed, "codec", *names, tensor)


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN.

    A finite sum proves it, in a twentieth of the time; a sum may also overflow from finite values.
    """
    return math.isfinite(tensor.sum(dtype=torch.float32)) or bool(tensor.isfinite().all())


def for_broadcast(codec: Codec) -> WholeCodec:
    """The codec itself; of ``top_k`` the one of its values.

    A broadcast holds absolute values: leaving out the small ones would set them to zero.
    """
    return codec.values if isinstance(codec, TopK) else codec


def _too_large(name: str, values: Tensor, codec: str) -> str:
    return (
        f"{name}: a value of {values.abs().max().item():.3g} does not fit into {codec}. "
        "Use communication.codec=fp32, or a smaller learning rate."
    )


def _scale(name: str, tensor: Tensor) -> float:
    """The step of a tensor: an fp32 number s with 127 s >= max|x|, so that nothing is clipped."""
    if not tensor.numel():
        return 0.0
    largest = float(tensor.double().abs().max())
    if not math.isfinite(largest):
        raise MessageError(f"{name} has values that are not finite.")
    scale = np.float32(min(largest / LEVELS, MAX_FP32))
    if float(scale) * LEVELS < largest:
        scale = np.nextafter(scale, np.float32(np.inf))
    if float(scale) * LEVELS > MAX_FP32:
        raise MessageError(_too_large(name, tensor, "int8"))
    return float(scale)


def _at_random(values: Tensor, draws: torch.Generator) -> Tensor:
    """Each value rounded down or up, with the mean kept."""
    shift = torch.rand(values.shape, generator=draws, dtype=torch.float64)
    return (values + shift).floor().clamp(-LEVELS, LEVELS).to(torch.int8)


def _index_type(num: int) -> torch.dtype:
    for dtype in (torch.uint8, torch.uint16):
        if num <= 256**dtype.itemsize:
            return dtype
    return torch.uint32


def _largest(name: str, flat: Tensor, num: int) -> Tensor:
    """Positions of the ``num`` largest magnitudes, ascending; of equal ones the first."""
    size = flat.abs().numpy()
    if not np.isfinite(size).all():
        raise MessageError(f"{name} has values that are not finite.")
    if num == len(size):
        return torch.arange(num)
    threshold = np.partition(size, len(size) - num)[len(size) - num]
    above = np.flatnonzero(size > threshold)
    equal = np.flatnonzero(size == threshold)[: num - len(above)]
    return torch.from_numpy(np.sort(np.concatenate([above, equal])))


def _scattered(name: str, values: Tensor, where: Tensor, shape: tuple[int, ...]) -> Tensor:
    num = math.prod(shape)
    if len(where) and (int(where[-1]) >= num or bool((where.diff() <= 0).any())):
        raise MessageError(f"{name}: the positions are not ascending numbers below {num}")
    return torch.zeros(num).index_copy(0, where, values).reshape(shape)
