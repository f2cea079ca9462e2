"""What arrives from a cohort: put in client order, checked, and decoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fl_core import wire
from fl_core.errors import MessageError
from fl_core.types import ClientResult, Outcome, Params


@dataclass(frozen=True)
class Announced:
    """What one client's message of a round may be.

    shapes: of its tensors. max_norm: L2 norm over all of them above which an update is refused.
    """

    codec: wire.Codec
    shapes: wire.Shapes
    max_norm: float | None = None

    @property
    def length(self) -> int:
        """In bytes. Nobody reads on beyond it, so no sender can cost more than that."""
        return wire.message_bytes(self.codec, self.shapes)


class Arrival(NamedTuple):
    """num_bytes: of what came in. update: what it says, in memory that may be read-only; or the
    reason why it cannot be used."""

    num_bytes: int
    update: Params | MessageError


def receive(round: int, result: ClientResult, announced: Announced) -> Arrival:
    """A client's message, checked and decoded."""
    length = announced.length
    num_bytes = min(len(result.message), length)
    try:
        return Arrival(num_bytes, _update(round, result, announced, length))
    except MessageError as error:
        return Arrival(num_bytes, error)


def in_client_order(groups: Iterable[tuple[int, Sequence[Outcome]]]) -> Iterator[Outcome]:
    """Outcomes by group index, each as soon as all before it are there."""
    waiting: dict[int, Sequence[Outcome]] = {}
    due = 0
    for index, outcomes in groups:
        waiting[index] = outcomes
        while due in waiting:
            yield from waiting.pop(due)
            due += 1


def _update(round: int, result: ClientResult, announced: Announced, length: int) -> Params:
    sender = f"round {round}, client {result.client}"
    if len(result.message) > length:
        raise MessageError(
            f"{sender}: the message is damaged: it has {len(result.message):,} bytes, and no "
            f"update of this round has more than {length:,}."
        )
    update = wire.decode(announced.codec, result.message, announced.shapes, sender, borrow=True)
    if announced.max_norm is not None:
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
        if norm > announced.max_norm:
            raise MessageError(
                f"{sender}: the update's L2 norm is {norm:.4g}, above "
                f"communication.max_update_norm = {announced.max_norm:g}."
            )
    return update
