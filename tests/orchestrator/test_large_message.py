"""Messages that are pickled in parts, and read as one piece."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from orchestrator.large_message import PART_BYTES, LargeMessage, joined

SIZES = (1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 72, 3 * PART_BYTES)


def message_of(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out_of_band", [True, False])
def test_a_large_message_comes_back_whole_and_read_only(size, out_of_band):
    buffers: list[pickle.PickleBuffer] = []
    callback = buffers.append if out_of_band else None
    text = pickle.dumps(LargeMessage(message_of(size)), protocol=5, buffer_callback=callback)
    back = pickle.loads(text, buffers=buffers)  # noqa: S301
    assert isinstance(back, memoryview)
    assert back.readonly
    assert back == message_of(size)


@pytest.mark.parametrize("size", SIZES)
def test_no_part_is_larger_than_what_ray_copies_by_one_thread(size):
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(LargeMessage(message_of(size)), protocol=5, buffer_callback=buffers.append)
    assert max(buffer.raw().nbytes for buffer in buffers) <= PART_BYTES
    assert sum(buffer.raw().nbytes for buffer in buffers) == size


def test_parts_in_a_row_are_read_where_they_lie_and_keep_their_memory_alive():
    whole = np.frombuffer(message_of(3000), np.uint8).copy()
    view = joined(whole[:1024].data, whole[1024:2048].data, whole[2048:].data)
    whole[1500] = 7
    whole[2999] = 9
    assert (view[1500], view[2999], len(view)) == (7, 9, 3000)
    copy = whole.tobytes()
    del whole
    assert view == copy


def test_parts_that_lie_apart_or_in_another_order_are_copied():
    whole = np.frombuffer(message_of(3000), np.uint8)
    assert joined(whole[:1000].data, whole[1001:].data) == np.delete(whole, 1000).tobytes()
    turned = joined(whole[1024:].data, whole[:1024].data)
    assert turned == whole[1024:].tobytes() + whole[:1024].tobytes()
