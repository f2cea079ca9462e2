import pytest
import torch
from safetensors.torch import save

from fl_core import wire
from fl_core.errors import MessageError

SHAPES = {"context": (4, 8), "gate.weight": (3,)}


def tensors():
    draws = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("codec", [wire.FP32(), wire.FP16()])
def test_a_message_comes_back_as_its_codec_rounds_it(codec):
    sent = tensors()
    received = wire.decode(codec, wire.encode(codec, sent), SHAPES, "client 3")
    for name, tensor in sent.items():
        assert torch.equal(received[name], tensor.to(codec.dtype).float())


@pytest.mark.parametrize("codec", [wire.FP32(), wire.FP16()])
def test_the_length_of_a_message_is_known_before_it_is_made(codec):
    message = wire.encode(codec, tensors())
    assert wire.message_bytes(codec, SHAPES) == len(message)
    assert wire.payload_bytes(message) == (4 * 8 + 3) * (4 if codec.name == "fp32" else 2)


@pytest.mark.parametrize("codec", [wire.FP32(), wire.FP16()])
def test_a_message_is_byte_for_byte_what_safetensors_writes(codec):
    sent = {**tensors(), "größe": torch.ones(()), "nothing": torch.ones(0, 3)}
    assert wire.encode(codec, sent) == save({n: t.to(codec.dtype) for n, t in sent.items()})


def test_tensors_that_are_no_contiguous_block_are_sent_as_they_are():
    sent = {"context": torch.arange(32.0).reshape(8, 4).T, "gate.weight": torch.zeros(9)[::3]}
    received = wire.decode(wire.FP32(), wire.encode(wire.FP32(), sent), SHAPES, "client 3")
    assert torch.equal(received["context"], sent["context"])


def test_a_message_may_be_read_out_of_memory_that_others_hold():
    received = wire.decode(
        wire.FP32(), memoryview(wire.encode(wire.FP32(), tensors())), SHAPES, "client 3"
    )
    for tensor in received.values():
        tensor.zero_()  # a copy: the message is not touched
    assert torch.equal(received["gate.weight"], torch.zeros(3))


@pytest.mark.parametrize("offset", range(9))
def test_borrowed_values_are_those_of_the_message_wherever_it_begins(offset):
    sent = tensors()
    message = memoryview(bytes(offset) + wire.encode(wire.FP32(), sent))[offset:]
    received = wire.decode(wire.FP32(), message, SHAPES, "client 3", borrow=True)
    assert all(torch.equal(received[name], sent[name]) for name in sent)
    assert all(tensor.data_ptr() % 4 == 0 for tensor in received.values())


def test_borrowed_values_cost_no_copy():
    message = bytearray(wire.encode(wire.FP32(), tensors()))
    received = wire.decode(wire.FP32(), memoryview(message), SHAPES, "client 3", borrow=True)
    message[-4:] = b"\0\0\0\0"
    assert 0.0 in [float(tensor.reshape(-1)[-1]) for tensor in received.values()]


def test_a_header_in_another_order_is_read_too():
    sent = tensors()
    message = save(sent, metadata={"by": "someone else"})
    received = wire.decode(wire.FP32(), message, SHAPES, "client 3")
    assert all(torch.equal(received[name], sent[name]) for name in sent)


def test_finite_values_whose_sum_overflows_are_fine():
    sent = {"gate.weight": torch.full((3,), 3e38)}
    assert wire.decode(
        wire.FP32(), wire.encode(wire.FP32(), sent), {"gate.weight": (3,)}, "client 3"
    )
    assert not wire.all_finite(torch.tensor([torch.inf, -torch.inf, 1.0]))
    assert not wire.all_finite(torch.tensor([1.0, torch.nan]))


def test_a_four_token_context_at_width_512_costs_2048_floats():
    message = wire.encode(wire.FP32(), {"context": torch.zeros(4, 512)})
    assert wire.payload_bytes(message) == 2048 * 4


def test_nothing_to_say_costs_nothing():
    assert wire.encode(wire.FP32(), {}) == b""
    assert wire.decode(wire.FP32(), b"", {}, "client 0") == {}
    assert wire.payload_bytes(b"") == wire.message_bytes(wire.FP32(), {}) == 0


def test_a_tensor_that_is_missing_or_unknown_is_refused_with_its_sender():
    message = wire.encode(wire.FP32(), {"context": torch.zeros(4, 8)})
    with pytest.raises(MessageError, match=r"round 2, client 7.*gate\.weight"):
        wire.decode(wire.FP32(), message, SHAPES, "round 2, client 7")


@pytest.mark.parametrize(
    ("sent", "codec", "said"),
    [
        (torch.zeros(8, 4), wire.FP32(), "expected torch.float32"),
        (torch.full((4, 8), float("nan")), wire.FP32(), "not finite"),
        (torch.zeros(4, 8), wire.FP16(), "expected torch.float32"),
    ],
)
def test_a_wrong_shape_dtype_or_value_is_refused(sent, codec, said):
    message = wire.encode(codec, {"context": sent})
    with pytest.raises(MessageError, match=said):
        wire.decode(wire.FP32(), message, {"context": (4, 8)}, "client 1")


@pytest.mark.parametrize("cut", [1, 9, 100])
def test_damaged_bytes_are_refused(cut):
    message = wire.encode(wire.FP32(), tensors())
    with pytest.raises(MessageError, match="client 1: the message is damaged"):
        wire.decode(wire.FP32(), message[:-cut], SHAPES, "client 1")
    with pytest.raises(MessageError):
        wire.decode(wire.FP32(), b"\xff" * 40, SHAPES, "client 1")


def test_a_value_beyond_the_range_of_fp16_is_refused_and_says_what_to_do():
    with pytest.raises(MessageError, match="codec=fp32"):
        wire.encode(wire.FP16(), {"context": torch.full((2,), 1e6)})
