"""Messages: safetensors bytes of what a codec makes of named tensors, and back with all checks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fl_core.arrays import as_tensor
from fl_core.errors import MessageError
from fl_core.types import Params
from fl_core.wire.codecs import Codec, Draws, Entry, Shapes, all_finite

Message = bytes | memoryview


def no_draws(name: str) -> torch.Generator:
    """In place of draws where the codec at hand needs none."""
    raise ValueError(f"{name}: this codec rounds at random and needs a named draw.")


def encode(codec: Codec, tensors: Params, draws: Draws = no_draws) -> bytes:
    """The message for ``tensors``; empty where there is nothing to say.

    draws: the named draw for each tensor, for codecs that round at random. Raises MessageError
    where a finite value does not fit the codec's range.
    """
    if not tensors:
        return b""
    if taken := [name for name in tensors if name.startswith("#")]:
        raise MessageError(f"names that begin with # belong to codecs, so {taken} cannot be sent.")
    packed = codec.pack({name: tensor.detach().cpu() for name, tensor in tensors.items()}, draws)
    layout = _layout(tuple((n, Entry(t.dtype, tuple(t.shape))) for n, t in packed.items()))
    flat = {name: tensor.contiguous().reshape(-1) for name, tensor in packed.items()}
    values = (flat[name].view(torch.uint8).numpy().data for name in layout.spans)
    return b"".join((layout.header, *values))


def decode(
    codec: Codec, message: Message, expected: Shapes, sender: str, *, borrow: bool = False
) -> Params:
    """The tensors of ``message`` in fp32, checked against what the receiver expects.

    ``sender`` names the message's origin in errors. borrow: the tensors may lie in the message's
    own memory, so nobody may write to them. Raises MessageError where the bytes are damaged, a name
    is missing or unknown, or a shape, dtype, position or non-finite value is wrong.
    """
    entries = codec.entries(expected)
    layout = _layout(tuple(entries.items()))
    if len(message) == layout.length and message[: len(layout.header)] == layout.header:
        whole = as_tensor(np.frombuffer(message, np.uint8))
        packed = {name: _values(whole, span, borrow) for name, span in layout.spans.items()}
    else:  # another order of tensors, or a fault to be named
        packed = _parse(message, sender)
    if packed.keys() != entries.keys():
        raise MessageError(f"{sender}: expected tensors {sorted(entries)}, got {sorted(packed)}.")
    for name, entry in entries.items():
        _check(name, packed[name], entry, sender)
    try:
        tensors = codec.unpack(packed, expected)
    except MessageError as error:
        raise MessageError(f"{sender}: {error}.") from error
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise MessageError(f"{sender}: {name} has values that are not finite.")
    return tensors


def payload_bytes(message: Message) -> int:
    """Bytes of values (scales and positions too) in a message, without its header."""
    if not message:
        return 0
    return len(message) - 8 - int.from_bytes(message[:8], "little")


def message_bytes(codec: Codec, shapes: Shapes) -> int:
    """The exact length of the message that ``encode`` makes of tensors with these shapes."""
    return _layout(tuple(codec.entries(shapes).items())).length


class _Span(NamedTuple):
    """Where a tensor's values stand in a message, and what they are."""

    start: int
    end: int
    entry: Entry


class _Layout(NamedTuple):
    """All of a message but the values: the same for every client and round.

    spans: by name, in the order of the message.
    """

    header: bytes
    spans: Mapping[str, _Span]
    length: int


@lru_cache(maxsize=64)
def _layout(entries: tuple[tuple[str, Entry], ...]) -> _Layout:
    """The layout that safetensors gives to tensors with these names, dtypes and shapes."""
    if not entries:
        return _Layout(b"", {}, 0)
    by_name = dict(entries)
    empty = {name: torch.empty(0, dtype=entry.dtype) for name, entry in entries}
    header = json.loads(save(empty)[8:].rstrip().decode())  # in the order the library writes
    offset = 0
    for name, facts in header.items():
        entry = by_name[name]
        count = math.prod(entry.shape) * entry.dtype.itemsize
        facts |= {"shape": list(entry.shape), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    begin = 8 + len(text)
    spans = {}
    for name, facts in header.items():
        start, end = facts["data_offsets"]
        spans[name] = _Span(begin + start, begin + end, by_name[name])
    return _Layout(len(text).to_bytes(8, "little") + text, spans, begin + offset)


def _values(whole: Tensor, span: _Span, borrow: bool) -> Tensor:
    """A tensor's values, copied unless borrowed; those that begin at an odd byte always are."""
    raw, dtype = whole[span.start : span.end], span.entry.dtype
    aligned = span.start % dtype.itemsize == 0 and raw.data_ptr() % dtype.itemsize == 0
    return (raw if borrow and aligned else raw.clone()).view(dtype).reshape(span.entry.shape)


def _parse(message: Message, sender: str) -> Params:
    if not message:
        return {}
    try:
        tensors = load(bytes(message))
    except (SafetensorError, ValueError, KeyError) as error:
        raise MessageError(f"{sender}: the message is damaged: {error}.") from error
    # Copies: vector code may round differently on values that start at any byte.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _check(name: str, tensor: Tensor, entry: Entry, sender: str) -> None:
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise MessageError(
            f"{sender}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
            f"expected {entry.dtype} {entry.shape}."
        )
