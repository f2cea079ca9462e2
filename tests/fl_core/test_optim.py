import math

import pytest
import torch

from fl_core.errors import ConfigError
from fl_core.optim import SGD, AdamW, clip_by_norm, decay
from fl_core.work import Moment, Training, learning_rate, plan_work


def trajectory(optimizer, reference, steps=7):
    """Parameters after each step of ours and of torch.optim's on the same gradients."""
    draws = torch.Generator().manual_seed(3)
    start = torch.randn(4, 3, generator=draws, dtype=torch.float64)
    theirs = torch.nn.Parameter(start.clone())
    torch_optimizer = reference(theirs)
    params, state = {"w": start}, optimizer.init({"w": start})
    for _ in range(steps):
        gradient = torch.randn(4, 3, generator=draws, dtype=torch.float64)
        lr = torch.tensor(optimizer.lr, dtype=torch.float64)
        params, state = optimizer.step(params, {"w": gradient}, state, lr)
        theirs.grad = gradient.clone()
        torch_optimizer.step()
        yield params["w"], theirs.detach()


def test_sgd_with_momentum_and_decay_follows_torch():
    def reference(p):
        return torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01)

    for ours, theirs in trajectory(SGD(lr=0.1, momentum=0.9, weight_decay=0.01), reference):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_plain_sgd_keeps_no_state():
    assert SGD(momentum=0.0).init({"w": torch.zeros(2)}) == {}


def test_adamw_follows_torch():
    def reference(p):
        return torch.optim.AdamW([p], lr=0.01, weight_decay=0.1)

    for ours, theirs in trajectory(AdamW(lr=0.01, weight_decay=0.1), reference):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_starts_at_one_and_ends_at_zero(schedule):
    assert decay(schedule, 0.0) == 1.0
    assert decay(schedule, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert decay(schedule, 0.5) == pytest.approx(0.5)


def test_the_rate_falls_over_the_run_and_reaches_its_end_in_the_last_round():
    training = Training(SGD(lr=1.0), local_epochs=2, batch_size=4)
    shard = torch.arange(12)  # 3 batches, 2 epochs: 6 steps a round
    rates = []
    for round in range(10):
        work = plan_work(training, Moment(round, 10, 0), [0], [shard])
        rates += work.lr[0].tolist()
    expected = [0.5 * (1 + math.cos(math.pi * t / 60)) for t in range(60)]
    assert rates == pytest.approx(expected)
    assert rates[-1] < 1e-3


def test_a_span_of_a_round_begins_anew_each_round():
    training = Training(SGD(lr=1.0), schedule="linear", schedule_span="round")
    assert learning_rate(training, Moment(7, 10, 0), 0.0) == 1.0
    assert learning_rate(training, Moment(7, 10, 0), 0.75) == pytest.approx(0.25)


def test_clipping_scales_all_gradients_together():
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    clipped = clip_by_norm(grads, 1.0)
    torch.testing.assert_close(clipped["a"], torch.tensor([0.6]), rtol=1e-5, atol=0)
    small = clip_by_norm(grads, 100.0)
    assert torch.equal(small["b"], grads["b"])


def test_every_bad_field_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        SGD(lr=-1.0, momentum=1.0, weight_decay=float("nan"))
    assert [fault.split(" ")[0] for fault in error.value.faults] == [
        "lr",
        "momentum",
        "weight_decay",
    ]
