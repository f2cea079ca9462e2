"""Codecs: named tensors to the very bytes that are sent and counted, and back.

A message is a safetensors file in memory: a length, a JSON header with names, dtypes and shapes,
and the raw values. Nothing in it is ever unpickled. A codec says which tensors stand for the ones
that are sent (``codecs.py``); ``message.py`` turns them into bytes and back, with all checks.
"""

from fl_core.wire.codecs import (
    BF16,
    CODECS,
    FP16,
    FP32,
    Codec,
    Draws,
    Int8,
    Shapes,
    TopK,
    WholeCodec,
    all_finite,
    for_broadcast,
    named_draws,
    shapes_of,
)
from fl_core.wire.feedback import encode_with_feedback, split_residual, stack_residuals
from fl_core.wire.message import Message, decode, encode, message_bytes, payload_bytes
from fl_core.wire.parts import cut, grow

__all__ = [
    "BF16",
    "CODECS",
    "FP16",
    "FP32",
    "Codec",
    "Draws",
    "Int8",
    "Message",
    "Shapes",
    "TopK",
    "WholeCodec",
    "all_finite",
    "cut",
    "decode",
    "encode",
    "encode_with_feedback",
    "for_broadcast",
    "grow",
    "message_bytes",
    "named_draws",
    "payload_bytes",
    "shapes_of",
    "split_residual",
    "stack_residuals",
]
