"""Each rule against its paper's formula, worked in NumPy float64 apart from the code under test.

Training runs in float64 too; what is sent is rounded to fp32, which sets the tolerance.
"""

import numpy as np
import pytest
import torch
from toys import Bench, linear_problem, uneven_shards

from fl_core import wire
from fl_core.federation import Centralised, FedAvg, FedProx, LocalOnly
from fl_core.local import Training
from fl_core.optim import SGD
from fl_core.round import Setting, plan_round, run_round

SIZES = [8, 16, 24]


FP32_ON_THE_WIRE = 2e-6


def softmax_gradient(w, b, x, y):
    """Gradient of the mean cross entropy of logits x w + b."""
    logits = x @ w + b
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y), p.mean(axis=0)


def descend(w, b, x, y, lr, steps, mu=0.0):
    """Full-batch gradient steps, pulled towards the start by mu/2 ||theta - theta^t||^2."""
    w0, b0 = w, b
    for step in range(steps):
        gw, gb = softmax_gradient(w, b, x, y)
        w, b = w - lr(step) * (gw + mu * (w - w0)), b - lr(step) * (gb + mu * (b - b0))
    return w, b


def train(rule, steps=3, lr=0.5):
    problem = linear_problem(48)
    training = Training(
        SGD(lr=lr, momentum=0.0, weight_decay=0.0),
        schedule="constant",
        local_epochs=steps,
        batch_size=64,
    )
    specs = problem.learner.tensors(problem.initial)
    shards = uneven_shards(48, SIZES)
    if rule.pooled:
        shards = [torch.arange(48)]
    bench = Bench(problem, rule, training, shards, wire.FP32(), {}, {})
    setting = Setting(rule, wire.FP32(), specs, 0, group_size=2)
    server = rule.init_server(problem.initial, specs)
    for round in range(rule.rounds):
        plan = plan_round(setting, round, range(len(shards)))
        server = run_round(setting, server, plan, {}, bench.execute).server
    arrays = (
        problem.initial["weight"],
        problem.initial["bias"],
        problem.inputs["features"],
        problem.labels,
    )
    return server, bench, [a.numpy() for a in arrays]


def clients(x, y):
    ends = np.cumsum(SIZES)
    return [(x[e - n : e], y[e - n : e]) for n, e in zip(SIZES, ends, strict=True)]


@pytest.mark.parametrize("weights", ["num_examples", "uniform"])
def test_fedavg_is_the_weighted_mean_of_the_clients_models(weights):
    server, _, (w, b, x, y) = train(FedAvg(rounds=2, weights=weights))
    share = np.array(SIZES) / 48 if weights == "num_examples" else np.full(3, 1 / 3)
    for _ in range(2):
        models = [descend(w, b, *data, lambda s: 0.5, 3) for data in clients(x, y)]
        w = sum(s * m[0] for s, m in zip(share, models, strict=True))
        b = sum(s * m[1] for s, m in zip(share, models, strict=True))
    np.testing.assert_allclose(server.tensors["weight"], w, rtol=FP32_ON_THE_WIRE)
    np.testing.assert_allclose(server.tensors["bias"], b, rtol=FP32_ON_THE_WIRE)


def test_fedprox_pulls_each_client_towards_the_broadcast():
    server, _, (w, b, x, y) = train(FedProx(rounds=1, mu=0.7))
    models = [descend(w, b, *data, lambda s: 0.5, 3, mu=0.7) for data in clients(x, y)]
    expected = sum(n / 48 * m[0] for n, m in zip(SIZES, models, strict=True))
    np.testing.assert_allclose(server.tensors["weight"], expected, rtol=FP32_ON_THE_WIRE)


def test_local_only_trains_each_client_alone_and_goes_on_from_its_own_state():
    server, bench, (w, b, x, y) = train(LocalOnly(rounds=2))
    assert server.tensors == {}
    for client, data in enumerate(clients(x, y)):
        expected = descend(w, b, *data, lambda s: 0.5, 6)
        np.testing.assert_allclose(
            bench.states[client]["personal.weight"], expected[0], rtol=FP32_ON_THE_WIRE
        )


def test_centralised_is_gradient_descent_on_everything():
    server, _, (w, b, x, y) = train(Centralised(rounds=2))
    expected = descend(w, b, x, y, lambda s: 0.5, 6)
    np.testing.assert_allclose(server.tensors["weight"], expected[0], rtol=FP32_ON_THE_WIRE)
