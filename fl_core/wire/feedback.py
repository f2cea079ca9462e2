"""Error feedback: what a message leaves out stays with its client, and is added next time.

With update u and residual r, v = u + r is encoded, and v minus what the receiver decodes is the new
residual: what was sent plus what is left always sums to the updates. The residual is part of the
client's private state, under names of its own; no rule sees it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_core.types import Params
from fl_core.wire.codecs import Codec, Draws, Shapes, shapes_of
from fl_core.wire.message import decode, encode
from fl_core.wire.parts import cut, grow

RESIDUAL = "codec.residual."


def split_residual(state: Params) -> tuple[Params, Params]:
    """A client's private state as (its rule's part, its codec's residual)."""
    own = {name: t for name, t in state.items() if not name.startswith(RESIDUAL)}
    return own, {name: t for name, t in state.items() if name.startswith(RESIDUAL)}


def stack_residuals(lanes: Sequence[Params]) -> Params:
    """Clients' residuals side by side, [G, ...]; zeros for a client that has none of a tensor."""
    zeros = {n: torch.zeros_like(t, device="cpu") for lane in lanes for n, t in lane.items()}
    return {
        name: torch.stack([lane.get(name, zero).cpu() for lane in lanes])
        for name, zero in zeros.items()
    }


def encode_with_feedback(
    codec: Codec, update: Params, residual: Params, draws: Draws, part: Shapes | None = None
) -> tuple[bytes, Params]:
    """The message for an update, and the residual that is left, named as in a private state.

    A tensor without a residual has one of zeros; the residual of a tensor that is not in this
    update is kept as it is. Codecs without feedback leave nothing behind. part: the shapes to
    which the update is cut before it is sent; a residual keeps the whole shape, so that those of
    all clients can be stacked, and is 0 outside of the part.
    """
    whole = shapes_of(update)
    update = cut(update, whole if part is None else part)
    if not codec.feedback:
        return encode(codec, update, draws), {}
    residual, zero = {name: tensor.cpu() for name, tensor in residual.items()}, torch.zeros(())
    wanted = grow({name: tensor.detach().cpu() for name, tensor in update.items()}, whole)
    wanted = {n: t + residual.get(RESIDUAL + n, zero) for n, t in wanted.items()}
    wanted = cut(wanted, shapes_of(update))
    message = encode(codec, wanted, draws)
    sent = decode(codec, message, shapes_of(wanted), "the client's own message")
    left = grow({name: tensor - sent[name] for name, tensor in wanted.items()}, whole)
    left = {RESIDUAL + name: tensor for name, tensor in left.items()}
    return message, residual | left
