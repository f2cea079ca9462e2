"""Codecs: named tensors to the very bytes that are sent and counted, and back.

A message is a safetensors file in memory: a length, a JSON header with names, dtypes and shapes,
and the raw values. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fl_core.errors import MessageError
from fl_core.types import Params

FORBID = {"extra": "forbid"}
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
        if (
            small.dtype != torch.float32
            and not small.isfinite().all()
            and tensors[name].isfinite().all()
        ):
            raise MessageError(
                f"{name}: a value of {tensors[name].abs().max().item():.3g} does not fit into "
                f"{codec.name}. Use communication.codec=fp32, or a smaller learning rate."
            )
    return save(cast)


def decode(codec: Codec, message: bytes, expected: Shapes, sender: str) -> Params:
    """The tensors of ``message`` in fp32, checked against what the receiver expects.

    ``sender`` names the message's origin in errors. Raises MessageError where the bytes are
    damaged, a name is missing or unknown, or a shape, dtype or non-finite value is wrong.
    """
    if not message:
        tensors: Params = {}
    else:
        try:
            tensors = load(message)
        except (SafetensorError, ValueError, KeyError) as error:
            raise MessageError(f"{sender}: the message is damaged: {error}.") from error
    if tensors.keys() != expected.keys():
        raise MessageError(f"{sender}: expected tensors {sorted(expected)}, got {sorted(tensors)}.")
    return {n: _checked(codec, n, tensors[n], expected[n], sender) for n in expected}


def _checked(
    codec: Codec, name: str, tensor: Tensor, shape: tuple[int, ...], sender: str
) -> Tensor:
    if tensor.dtype != codec.dtype or tuple(tensor.shape) != tuple(shape):
        raise MessageError(
            f"{sender}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
            f"expected {codec.dtype} {tuple(shape)}."
        )
    if not tensor.isfinite().all():
        raise MessageError(f"{sender}: {name} has values that are not finite.")
    # A copy: values inside a message start at any byte, and vector code may round differently there.
    return tensor.to(torch.float32, copy=True)


def payload_bytes(message: bytes) -> int:
    """Bytes of tensor values in a message, without its header."""
    if not message:
        return 0
    return len(message) - 8 - int.from_bytes(message[:8], "little")


def message_bytes(codec: Codec, shapes: Shapes) -> int:
    """The exact length of the message that ``encode`` makes of tensors with these shapes."""
    if not shapes:
        return 0
    empty = {n: torch.empty(0, dtype=codec.dtype) for n in shapes}
    header = json.loads(save(empty)[8:].rstrip().decode())
    size = torch.finfo(codec.dtype).bits // 8
    offset = 0
    for (
        name
    ) in header:  # the order in which the library writes: recompute the offsets for real shapes
        count = math.prod(shapes[name]) * size
        header[name] |= {"shape": list(shapes[name]), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset
