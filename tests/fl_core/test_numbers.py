"""Each rule against its paper's formula, worked in NumPy float64 apart from the code under test.

Training runs in float64 too; what is sent is rounded to fp32, which sets the tolerance.
"""

import numpy as np
import pytest
from softmax_toys import FP32_ON_THE_WIRE, SIZES, clients, descend, train

from fl_core.federation import Centralised, FedAvg, FedProx, LocalOnly


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
