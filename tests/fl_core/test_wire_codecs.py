"""bf16, int8 and top_k, each against a computation of its own; what is left out is not lost."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from fl_core import wire
from fl_core.errors import ConfigError, MessageError

ALL = [
    wire.FP32(),
    wire.FP16(),
    wire.BF16(),
    wire.Int8(),
    wire.TopK(0.3),
    wire.TopK(0.1, wire.FP16()),
    wire.TopK(0.01, wire.BF16()),
    wire.TopK(1.0, wire.Int8()),
]
SENT = wire.named_draws(0, 3, 7)
codecs = pytest.mark.parametrize("codec", ALL, ids=lambda c: f"{c.name}-{vars(c).get('fraction')}")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(codec, sent, draws=SENT):
    return wire.decode(codec, wire.encode(codec, sent, draws), wire.shapes_of(sent), "client 1")


def header_of(message):
    return json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])


# -- every codec ---------------------------------------------------------------------------------


def test_every_codec_is_in_these_tests():
    assert {type(codec) for codec in ALL} == set(wire.CODECS)


@codecs
def test_the_length_is_known_from_shapes_alone_whatever_they_are(codec):
    draws = np.random.default_rng(5)
    for trial in range(40):
        shapes = {
            f"layer.{i}.größe": tuple(draws.integers(0 if i else 1, 9, draws.integers(0, 4)))
            for i in range(draws.integers(1, 6))
        }
        scale = 10.0 ** (trial % 5 - 2)
        sent = {n: scale * normal(*map(int, s), seed=trial) for n, s in shapes.items()}
        message = wire.encode(codec, sent, SENT)
        assert wire.message_bytes(codec, wire.shapes_of(sent)) == len(message)
        header = 8 + int.from_bytes(message[:8], "little")
        assert wire.payload_bytes(message) == len(message) - header
        received = wire.decode(codec, message, wire.shapes_of(sent), "client 1")
        assert wire.shapes_of(received) == wire.shapes_of(sent)
        assert {t.dtype for t in received.values()} == {torch.float32}


@codecs
def test_a_message_is_a_safetensors_file_whoever_wrote_it(codec):
    sent = {"b": normal(7, 3), "a": normal(300), "c": torch.tensor(2.0)}
    message = wire.encode(codec, sent, SENT)
    packed = load(message)
    assert save(packed) == message
    shapes = wire.shapes_of(sent)
    ours = wire.decode(codec, message, shapes, "client 1")
    other = save(packed, metadata={"by": "another program"})
    theirs = wire.decode(codec, other, shapes, "client 1")
    assert all(torch.equal(ours[name], theirs[name]) for name in sent)


@codecs
def test_neither_tensors_nor_message_are_changed_and_nothing_is_shared(codec):
    sent = {"a": normal(5, 4)}
    before = sent["a"].clone()
    message = wire.encode(codec, sent, SENT)
    copy = bytes(message)
    wire.decode(codec, message, {"a": (5, 4)}, "client 1")["a"].zero_()
    assert torch.equal(sent["a"], before)
    assert message == copy


@codecs
def test_zeros_arrive_as_zeros_and_nothing_costs_nothing(codec):
    assert torch.equal(there_and_back(codec, {"a": torch.zeros(9)})["a"], torch.zeros(9))
    assert there_and_back(codec, {"a": torch.zeros(0, 3)})["a"].shape == (0, 3)
    assert wire.encode(codec, {}) == b""
    assert wire.message_bytes(codec, {}) == 0
    assert wire.decode(codec, b"", {}, "client 1") == {}


@codecs
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_do_not_arrive(codec, bad):
    sent = {"a": torch.tensor([1.0, bad, 2.0])}
    with pytest.raises(MessageError, match="not finite"):
        there_and_back(codec, sent)


@codecs
def test_a_cut_message_or_another_codecs_message_is_refused_with_its_sender(codec):
    sent = {"a": normal(40)}
    message = wire.encode(codec, sent, SENT)
    for wrong in (message[:-3], message + b"\0", b"\xff" * 40, b"\x80\x04K\x01."):
        with pytest.raises(MessageError, match="round 4, client 9"):
            wire.decode(codec, wrong, {"a": (40,)}, "round 4, client 9")
    other = wire.BF16() if codec.name != "bf16" else wire.FP16()
    with pytest.raises(MessageError, match="round 4, client 9"):
        wire.decode(codec, wire.encode(other, sent), {"a": (40,)}, "round 4, client 9")


def test_a_tensor_may_not_be_named_like_a_codecs_own():
    with pytest.raises(MessageError, match="belong to codecs"):
        wire.encode(wire.FP32(), {"#scales": torch.ones(1)})


# -- bf16 ----------------------------------------------------------------------------------------


def test_bf16_is_fp32_cut_to_sixteen_bits_and_rounded_to_even():
    values = torch.cat([normal(1000), normal(1000) * 1e30, torch.tensor([1.00390625, 1.01171875])])
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    expected = rounded.astype(np.uint32).view(np.float32)
    received = there_and_back(wire.BF16(), {"a": values})["a"]
    assert np.array_equal(received.numpy(), expected)
    assert (received / values - 1).abs().max() <= 2**-8


def test_bf16_refuses_what_it_would_make_infinite():
    with pytest.raises(MessageError, match="does not fit into bf16"):
        wire.encode(wire.BF16(), {"a": torch.tensor([torch.finfo(torch.float32).max])})


# -- int8 ----------------------------------------------------------------------------------------


def test_int8_sends_a_scale_per_tensor_and_one_of_the_two_nearest_steps():
    sent = {"b": normal(50, 4) * 3, "a": normal(30, seed=1) * 1e-6}
    message = wire.encode(wire.Int8(), sent, SENT)
    facts = header_of(message)
    begin = 8 + int.from_bytes(message[:8], "little")
    at, end = facts["#scales"]["data_offsets"]
    scales = dict(zip("ab", np.frombuffer(message[begin + at : begin + end], "<f4"), strict=True))
    received = wire.decode(wire.Int8(), message, wire.shapes_of(sent), "client 1")
    for name, tensor in sent.items():
        at, end = facts[name]["data_offsets"]
        steps = np.frombuffer(message[begin + at : begin + end], "i1").reshape(tensor.shape)
        scale = np.float64(scales[name])
        assert scale == pytest.approx(float(tensor.abs().max()) / 127, rel=2e-7)
        exact = tensor.double().numpy() / scale
        assert ((steps == np.floor(exact)) | (steps == np.floor(exact) + 1)).all()
        assert np.array_equal(received[name].numpy(), steps.astype("f4") * scales[name])
    assert wire.payload_bytes(message) == 200 + 30 + 2 * 4


def test_int8_keeps_the_mean():
    sent = {"a": torch.cat([normal(30), torch.tensor([3.0, -3.0, 0.01, -0.01])])}
    num, scale = 4000, 3.0 / 127
    total = torch.zeros(34, dtype=torch.float64)
    for round in range(num):
        total += there_and_back(wire.Int8(), sent, wire.named_draws(1, round, 0))["a"].double()
    # The error of one draw lies within a step, so its deviation is at most half a step.
    error = (total / num - sent["a"].double()).abs()
    assert error.max() < 5 * 0.5 * scale / math.sqrt(num)
    nearest = (sent["a"] / scale).round() * scale  # which rounding to the nearest would give
    assert (nearest.double() - sent["a"].double()).abs().max() > 5 * error.max()


@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-30, 0.1, 7.0, 1e30, 3.4e38])
def test_int8_never_clips_from_the_smallest_number_to_nearly_the_largest(largest):
    sent = {"a": torch.tensor([largest, -largest, largest / 3, 0.0])}
    for round in range(20):
        message = wire.encode(wire.Int8(), sent, wire.named_draws(2, round))
        packed = load(message)
        scale = Fraction(float(packed["#scales"][0]))
        exact = [Fraction(float(x)) / scale for x in sent["a"]]
        assert max(exact) <= 127
        for step, value in zip(packed["a"].tolist(), exact, strict=True):
            assert step in (math.floor(value), math.floor(value) + 1)
        assert there_and_back(wire.Int8(), sent)["a"].isfinite().all()


def test_int8_refuses_what_would_overflow_and_what_no_encoder_sends():
    with pytest.raises(MessageError, match="does not fit into int8"):
        wire.encode(wire.Int8(), {"a": torch.full((3,), torch.finfo(torch.float32).max)}, SENT)
    steps = torch.ones(3, dtype=torch.int8)
    for scale in (-1.0, float("nan"), float("inf"), 3e38):
        message = save({"a": steps * 100, "#scales": torch.tensor([scale])})
        with pytest.raises(MessageError, match=r"client 1: .*(below zero|not finite)"):
            wire.decode(wire.Int8(), message, {"a": (3,)}, "client 1")
    with pytest.raises(MessageError, match="#scales"):
        wire.decode(wire.Int8(), save({"a": steps}), {"a": (3,)}, "client 1")


def test_rounding_at_random_depends_on_its_name_alone():
    sent = {"a": normal(200), "b": normal(300, seed=1)}
    draws = wire.named_draws(0, 4, 2)
    message = wire.encode(wire.Int8(), sent, draws)
    assert message == wire.encode(wire.Int8(), sent, wire.named_draws(0, 4, 2))
    for other in (wire.named_draws(1, 4, 2), wire.named_draws(0, 5, 2), wire.named_draws(0, 4, 3)):
        assert message != wire.encode(wire.Int8(), sent, other)
    alone = there_and_back(wire.Int8(), {"b": sent["b"]}, draws)["b"]
    assert torch.equal(alone, there_and_back(wire.Int8(), sent, draws)["b"])
    with pytest.raises(ValueError, match="named draw"):
        wire.encode(wire.Int8(), sent)


# -- top_k ---------------------------------------------------------------------------------------


def by_hand(values, num):
    """The ``num`` largest magnitudes in place, zeros elsewhere; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(order[:num])
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.5, 1.0])
def test_top_k_sends_the_largest_entries_of_each_tensor(fraction):
    sent = {"a": normal(20, 5), "b": 100 * normal(37, seed=1), "c": torch.tensor(-3.0)}
    received = there_and_back(wire.TopK(fraction), sent)
    for name, tensor in sent.items():
        num = max(1, round(fraction * tensor.numel()))
        expected = by_hand(tensor.reshape(-1).tolist(), num)
        assert received[name].reshape(-1).tolist() == expected
        assert torch.count_nonzero(received[name]) == num


def test_top_k_takes_the_first_of_equal_magnitudes():
    sent = {"a": torch.tensor([1.0, -2.0, 2.0, 1.0, 2.0, -2.0])}
    assert there_and_back(wire.TopK(0.5), sent)["a"].tolist() == [0, -2, 2, 0, 2, 0]
    assert there_and_back(wire.TopK(0.7), sent)["a"].tolist() == by_hand(sent["a"].tolist(), 4)


@pytest.mark.parametrize(("num", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
@pytest.mark.parametrize(("values", "each"), [(wire.FP32(), 4), (wire.BF16(), 2)])
def test_top_k_positions_take_the_smallest_type_that_holds_them(num, width, values, each):
    codec = wire.TopK(0.05, values)
    sent = {"a": torch.linspace(-1, 1, num)}
    message = wire.encode(codec, sent)
    assert wire.payload_bytes(message) == codec.num_kept(num) * (width + each)
    received = wire.decode(codec, message, {"a": (num,)}, "client 1")["a"]
    assert received[-1] == 1.0
    assert received[num // 2] == 0.0


def test_top_k_values_in_int8_share_the_scale_of_their_tensor():
    codec = wire.TopK(0.2, wire.Int8())
    sent = {"a": normal(100), "b": 1e4 * normal(50, seed=1)}
    received = there_and_back(codec, sent)
    for name, tensor in sent.items():
        kept = torch.tensor(by_hand(tensor.tolist(), len(tensor) // 5))
        step = float(tensor.abs().max()) / 127 * 1.000001
        assert (received[name] - kept).abs().max() <= step
        assert (received[name][kept == 0] == 0).all()


@pytest.mark.parametrize("where", [[0, 9], [3, 3], [5, 2]])
def test_positions_that_are_no_ascending_numbers_within_the_tensor_are_refused(where):
    parts = {"a": torch.ones(2), "#indices/a": torch.tensor(where, dtype=torch.uint8)}
    with pytest.raises(MessageError, match="client 1: a: the positions"):
        wire.decode(wire.TopK(0.2), save(parts), {"a": (9,)}, "client 1")


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        wire.TopK(fraction)


def test_a_broadcast_is_never_thinned_out():
    assert wire.for_broadcast(wire.TopK(0.1, wire.BF16())) == wire.BF16()
    assert wire.for_broadcast(wire.Int8()) == wire.Int8()


# -- error feedback ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [wire.FP32(), wire.FP16(), wire.BF16(), wire.Int8()])
def test_what_was_sent_plus_what_is_left_is_the_sum_of_the_updates(values):
    codec, residual = wire.TopK(0.1, values), {}
    sent = updates = torch.zeros(12, 10, dtype=torch.float64)
    for round in range(30):
        update = normal(12, 10, seed=round).double()
        message, residual = wire.encode_with_feedback(
            codec, {"a": update}, residual, wire.named_draws(0, round, 1)
        )
        sent = sent + wire.decode(codec, message, {"a": (12, 10)}, "client 1")["a"].double()
        updates = updates + update
    (left,) = residual.values()
    assert left.abs().max() > 0.1
    torch.testing.assert_close(sent + left, updates, rtol=0, atol=1e-12)


def test_every_entry_is_sent_in_the_end():
    codec, residual, arrived = wire.TopK(0.1), {}, torch.zeros(50)
    update = {"a": torch.linspace(0.5, 1.5, 50)}
    for round in range(40):
        draws = wire.named_draws(0, round)
        message, residual = wire.encode_with_feedback(codec, update, residual, draws)
        arrived += wire.decode(codec, message, {"a": (50,)}, "client 1")["a"]
    assert (arrived > 0).all()


def test_codecs_without_feedback_leave_nothing_behind():
    update = {"a": normal(8)}
    for codec in ALL[:4]:
        message, residual = wire.encode_with_feedback(codec, update, {}, SENT)
        assert residual == {}
        assert message == wire.encode(codec, update, SENT)


def test_a_tensor_that_is_not_sent_this_round_keeps_its_residual():
    codec = wire.TopK(0.1)
    _, first = wire.encode_with_feedback(codec, {"a": normal(20)}, {}, SENT)
    _, second = wire.encode_with_feedback(codec, {"b": normal(20, seed=1)}, first, SENT)
    assert len(second) == 2
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    _, third = wire.encode_with_feedback(codec, {}, second, SENT)
    assert third.keys() == second.keys()


def test_a_residual_is_told_from_the_rules_own_state_and_stacked_with_zeros():
    _, residual = wire.encode_with_feedback(wire.TopK(0.1), {"a": normal(20)}, {}, SENT)
    own = {"personal.b": torch.ones(2)}
    assert wire.split_residual({**own, **residual}) == (own, residual)
    (stacked,) = wire.stack_residuals([residual, {}]).values()
    assert torch.equal(stacked[0], next(iter(residual.values())))
    assert torch.equal(stacked[1], torch.zeros(20))
    assert wire.stack_residuals([{}, {}]) == {}


# -- the page on communication -------------------------------------------------------------------


def test_the_sizes_on_the_page_are_those_of_real_messages():
    page = Path(__file__).parents[2] / "docs" / "communication.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    (at,) = [i for i, row in enumerate(rows) if row[0] == "fp32" and len(row) == 7]
    said = [int(cell.replace(",", "")) for cell in rows[at + 2]]
    shown = [
        wire.FP32(), wire.BF16(), wire.Int8(), wire.TopK(0.1), wire.TopK(0.1, wire.FP16()),
        wire.TopK(0.1, wire.Int8()), wire.TopK(0.01, wire.FP16()),
    ]  # fmt: skip
    sent = {"context": normal(16, 512)}
    assert said == [len(wire.encode(codec, sent, SENT)) for codec in shown]
