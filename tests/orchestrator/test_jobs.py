"""What coordinator and actors send each other survives the trip."""

from __future__ import annotations

import pickle

import pytest

from fl_core.types import ClientFailure, ClientResult
from orchestrator.jobs import GroupReply
from orchestrator.large_message import LARGE_FROM_BYTES


@pytest.mark.parametrize("out_of_band", [True, False])
def test_a_reply_comes_back_and_only_its_large_messages_leave_the_pickle(out_of_band):
    large = bytes(range(256)) * (LARGE_FROM_BYTES // 256)
    outcomes = [
        ClientResult(1, large, 3, metrics={"train/loss": 0.5}),
        ClientFailure(2, "it broke"),
        ClientResult(4, b"small", 5),
    ]
    buffers: list[pickle.PickleBuffer] = []
    callback = buffers.append if out_of_band else None
    text = pickle.dumps(GroupReply(7, outcomes, b"states"), protocol=5, buffer_callback=callback)
    assert (len(text) < len(large)) == out_of_band
    reply = pickle.loads(text, buffers=buffers)  # noqa: S301
    assert list(reply.outcomes) == outcomes
    assert (reply.index, reply.states) == (7, b"states")
    assert reply.outcomes[0].message[:3] == bytes([0, 1, 2])
