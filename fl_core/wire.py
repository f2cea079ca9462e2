"""Codecs: named tensors to the very bytes that are sent and counted, and back.

A message is a safetensors file in memory: a length, a JSON header with names, dtypes and shapes,
and the raw values. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fl_core.errors import MessageError
from fl_core.types import Params

FORBID = {"extra": "forbid"}
Message = bytes | memoryview
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FP32:
    """Every value as a 4-byte float."""

    __pydantic_config__: ClassVar = FORBID
    dtype: ClassVar = torch.float32
    name: Literal["fp32"] = "fp32"


@dataclass(frozen=True)
class FP16:
    """Every value rounded to a 2-byte float; values beyond 65,504 are refused when encoding."""

    __pydantic_config__: ClassVar = FORBID
    dtype: ClassVar = torch.float16
    name: Literal["fp16"] = "fp16"


Codec = FP32 | FP16
CODECS: tuple[type[Codec], ...] = (FP32, FP16)


def encode(codec: Codec, tensors: Params) -> bytes:
    """The message for ``tensors``; empty where there is nothing to say.

    Raises MessageError where a finite value does not fit the codec's range.
    """
    if not tensors:
        return b""
    cast = {name: t.detach().to("cpu", codec.dtype).contiguous() for name, t in tensors.items()}
    for name, small in cast.items():
        if small.dtype != torch.float32 and not all_finite(small) and all_finite(tensors[name]):
            raise MessageError(
                f"{name}: a value of {tensors[name].abs().max().item():.3g} does not fit into "
                f"{codec.name}. Use communication.codec=fp32, or a smaller learning rate."
            )
    layout = _layout(codec.dtype, _key({name: tuple(t.shape) for name, t in cast.items()}))
    values = (cast[name].reshape(-1).view(torch.uint8).numpy().data for name in layout.spans)
    return b"".join((layout.header, *values))


def decode(codec: Codec, message: Message, expected: Shapes, sender: str) -> Params:
    """The tensors of ``message`` in fp32, checked against what the receiver expects.

    ``sender`` names the message's origin in errors. Raises MessageError where the bytes are
    damaged, a name is missing or unknown, or a shape, dtype or non-finite value is wrong.
    """
    layout = _layout(codec.dtype, _key(expected))
    if len(message) == layout.length and message[: len(layout.header)] == layout.header:
        tensors = {name: _values(codec, message, span) for name, span in layout.spans.items()}
    else:  # another order of tensors, or a fault to be named
        tensors = _parse(message, sender)
    if tensors.keys() != expected.keys():
        raise MessageError(f"{sender}: expected tensors {sorted(expected)}, got {sorted(tensors)}.")
    return {n: _checked(codec, n, tensors[n], expected[n], sender) for n in expected}


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN.

    A finite sum proves it, in a twentieth of the time; a sum may also overflow from finite values.
    """
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def payload_bytes(message: Message) -> int:
    """Bytes of tensor values in a message, without its header."""
    if not message:
        return 0
    return len(message) - 8 - int.from_bytes(message[:8], "little")


def message_bytes(codec: Codec, shapes: Shapes) -> int:
    """The exact length of the message that ``encode`` makes of tensors with these shapes."""
    return _layout(codec.dtype, _key(shapes)).length


class _Span(NamedTuple):
    """Where a tensor's values stand in a message, and their shape."""

    start: int
    end: int
    shape: tuple[int, ...]


class _Layout(NamedTuple):
    """All of a message but the values: the same for every client and round.

    spans: by name, in the order of the message.
    """

    header: bytes
    spans: Mapping[str, _Span]
    length: int


def _key(shapes: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(shapes.items())


@lru_cache(maxsize=64)
def _layout(dtype: torch.dtype, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> _Layout:
    """The layout that safetensors gives to tensors of one dtype with these names and shapes."""
    if not shapes:
        return _Layout(b"", {}, 0)
    by_name = dict(shapes)
    empty = {name: torch.empty(0, dtype=dtype) for name in by_name}
    header = json.loads(save(empty)[8:].rstrip().decode())  # in the order the library writes
    offset = 0
    for name, entry in header.items():
        shape = list(by_name[name])
        count = math.prod(shape) * dtype.itemsize
        entry |= {"shape": shape, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    begin = 8 + len(text)
    spans = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        spans[name] = _Span(begin + start, begin + end, tuple(entry["shape"]))
    return _Layout(len(text).to_bytes(8, "little") + text, spans, begin + offset)


def _values(codec: Codec, message: Message, span: _Span) -> Tensor:
    """A tensor's values, copied: inside a message they may start at any byte, and belong to it."""
    raw = np.frombuffer(message, np.uint8, span.end - span.start, span.start).copy()
    return torch.from_numpy(raw).view(codec.dtype).reshape(span.shape)


def _parse(message: Message, sender: str) -> Params:
    if not message:
        return {}
    try:
        tensors = load(bytes(message))
    except (SafetensorError, ValueError, KeyError) as error:
        raise MessageError(f"{sender}: the message is damaged: {error}.") from error
    # Copies: vector code may round differently on values that start at any byte.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _checked(
    codec: Codec, name: str, tensor: Tensor, shape: tuple[int, ...], sender: str
) -> Tensor:
    if tensor.dtype != codec.dtype or tuple(tensor.shape) != tuple(shape):
        raise MessageError(
            f"{sender}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
            f"expected {codec.dtype} {tuple(shape)}."
        )
    if not all_finite(tensor):
        raise MessageError(f"{sender}: {name} has values that are not finite.")
    return tensor.to(torch.float32)
