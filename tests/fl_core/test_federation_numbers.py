"""Rules with state, personal models or robust aggregates, against their papers in NumPy float64.

As in ``test_numbers``: full-batch steps on softmax regression, what is sent is rounded to fp32.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from softmax_toys import FP32_ON_THE_WIRE, SIZES, clients, softmax_gradient, train
from toys import Bench, linear_problem, uneven_shards

from fl_core import wire
from fl_core.aggregation import CountedMean, MeanAndEach, Partial, WeightedMean
from fl_core.errors import ConfigError
from fl_core.federation import (
    Ditto,
    FedAvg,
    FedDyn,
    FedOpt,
    Finetune,
    LocalOnly,
    PFedMe,
    Robust,
    Scaffold,
)
from fl_core.local import train_group
from fl_core.optim import SGD
from fl_core.robust_aggregation import RobustAggregator
from fl_core.round import plan_round, run_round
from fl_core.setting import Setting
from fl_core.work import Moment, Training, plan_work

LR, STEPS = 0.5, 3


def steps(theta, data, extra=None):
    """Full-batch steps on theta = (W, b); ``extra``, a function of theta, adds to the gradient."""
    for _ in range(STEPS):
        grads = softmax_gradient(*theta, *data)
        more = extra(theta) if extra else (0.0, 0.0)
        theta = tuple(t - LR * (g + m) for t, g, m in zip(theta, grads, more, strict=True))
    return theta


def always(value):
    return lambda _: value


def mean(models, shares=None):
    shares = shares or [1 / len(models)] * len(models)
    return tuple(
        sum(s * part for s, part in zip(shares, parts, strict=True))
        for parts in zip(*models, strict=True)
    )


def assert_server(server, theta, rtol=FP32_ON_THE_WIRE):
    np.testing.assert_allclose(server.tensors["weight"], theta[0], rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(server.tensors["bias"], theta[1], rtol=rtol, atol=1e-7)


def minus(a, b):
    return tuple(x - y for x, y in zip(a, b, strict=True))


def plus(a, b, factor=1.0):
    return tuple(x + factor * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_scaffold_corrects_each_step_and_moves_all_variates(server_lr):
    server, bench, (w, b, x, y) = train(Scaffold(rounds=3, server_lr=server_lr))
    theta, data = (w, b), clients(x, y)
    zero = (np.zeros_like(w), np.zeros_like(b))
    c, own = zero, [zero] * 3
    for _ in range(3):
        models, changes = [], []
        for i in range(3):
            model = steps(theta, data[i], always(minus(c, own[i])))
            new = plus(minus(own[i], c), minus(theta, model), 1 / (STEPS * LR))
            changes.append(minus(new, own[i]))
            models.append(model)
        theta = plus(theta, minus(mean(models), theta), server_lr)
        own = [plus(own[i], changes[i]) for i in range(3)]
        c = plus(c, mean(changes))
    assert_server(server, theta, rtol=1e-5)
    np.testing.assert_allclose(server.tensors["scaffold.weight"], c[0], rtol=1e-4, atol=1e-6)
    for i in range(3):
        held = bench.states[i]["scaffold.weight"]
        np.testing.assert_allclose(held, own[i][0], rtol=1e-4, atol=1e-6)


def partial_run(rule, rounds):
    """Rounds with the cohorts that the rule draws; also who took part in each."""
    problem = linear_problem(48)
    sgd = SGD(lr=LR, momentum=0.0, weight_decay=0.0)
    training = Training(sgd, schedule="constant", local_epochs=STEPS, batch_size=64)
    specs = problem.learner.tensors(problem.initial)
    bench = Bench(problem, rule, training, uneven_shards(48, SIZES), wire.FP32(), {}, {})
    setting = Setting(rule, wire.FP32(), specs, 0, group_size=2)
    server, cohorts = rule.init_server(problem.initial, specs, 3), []
    for round in range(rounds):
        plan = plan_round(setting, round, range(3))
        cohorts.append(plan.cohort)
        server = run_round(setting, server, plan, {}, bench.execute).server
    names = ("weight", "bias")
    theta = tuple(problem.initial[name].numpy() for name in names)
    data = clients(problem.inputs["features"].numpy(), problem.labels.numpy())
    return server, cohorts, theta, data


def test_scaffold_counts_the_whole_population_where_only_some_take_part():
    server, cohorts, theta, data = partial_run(Scaffold(rounds=4, clients_per_round=2), 4)
    zero = tuple(np.zeros_like(t) for t in theta)
    c, own = zero, [zero] * 3
    for cohort in cohorts:
        models, total = [], zero
        for i in cohort:
            models.append(steps(theta, data[i], always(minus(c, own[i]))))
            new = plus(minus(own[i], c), minus(theta, models[-1]), 1 / (STEPS * LR))
            total, own[i] = plus(total, minus(new, own[i])), new
        theta, c = mean(models), plus(c, total, 1 / 3)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert_server(server, theta, rtol=1e-5)


def test_feddyn_bends_each_clients_loss_and_corrects_the_mean():
    alpha = 0.3
    rule = FedDyn(rounds=4, clients_per_round=2, alpha=alpha)
    server, cohorts, theta, data = partial_run(rule, 4)
    zero = tuple(np.zeros_like(t) for t in theta)
    h, g = zero, [zero] * 3
    for cohort in cohorts:
        models, total = [], zero
        for i in cohort:

            def bend(model, i=i, theta=theta):
                return tuple(
                    alpha * (m - t) - d for m, t, d in zip(model, theta, g[i], strict=True)
                )

            models.append(steps(theta, data[i], bend))
            g[i] = plus(g[i], minus(models[-1], theta), -alpha)
            total = plus(total, minus(models[-1], theta))
        h = plus(h, total, -alpha / 3)
        theta = plus(mean(models), h, -1 / alpha)
    assert_server(server, theta, rtol=1e-4)
    np.testing.assert_allclose(server.tensors["feddyn.weight"], h[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi", "adagrad"])
def test_fedopt_takes_the_mean_update_for_a_gradient(optimizer):
    rule = FedOpt(rounds=3, optimizer=optimizer, server_lr=0.3, beta1=0.8, beta2=0.95, tau=0.01)
    server, _, (w, b, x, y) = train(rule)
    theta, shares = (w, b), [n / 48 for n in SIZES]
    m = [np.zeros_like(t) for t in theta]
    v = [np.full_like(t, 0.01**2) for t in theta]
    for _ in range(3):
        models = [steps(theta, data) for data in clients(x, y)]
        new = []
        for k, delta in enumerate(minus(mean(models, shares), theta)):
            if optimizer == "momentum":
                m[k] = 0.8 * m[k] + delta
                new.append(theta[k] + 0.3 * m[k])
                continue
            m[k], square = 0.8 * m[k] + 0.2 * delta, delta**2
            if optimizer == "adam":
                v[k] = 0.95 * v[k] + 0.05 * square
            elif optimizer == "yogi":
                v[k] = v[k] - 0.05 * square * np.sign(v[k] - square)
            else:
                v[k] = v[k] + square
            new.append(theta[k] + 0.3 * m[k] / (np.sqrt(v[k]) + 0.01))
        theta = tuple(new)
    assert_server(server, theta, rtol=1e-4)


def test_what_a_server_optimiser_keeps_is_not_sent():
    problem = linear_problem(48)
    for rule in (FedOpt(optimizer="adam"), FedDyn()):
        server = rule.init_server(problem.initial, problem.learner.tensors(problem.initial), 3)
        assert len(server.tensors) > 2
        assert set(rule.broadcast(server)) == {"weight", "bias"}
        shared = rule.shared_model(server)
        assert shared is not None
        assert set(shared) == {"weight", "bias"}
    scaffold = Scaffold()
    server = scaffold.init_server(problem.initial, problem.learner.tensors(problem.initial), 3)
    sent = {"weight", "bias", "scaffold.weight", "scaffold.bias"}
    assert set(scaffold.broadcast(server)) == sent
    scopes = scaffold.scopes(problem.learner.tensors(problem.initial), 0)
    assert scaffold.update_names(scopes) == sent
    shared = scaffold.shared_model(server)
    assert shared is not None
    assert set(shared) == {"weight", "bias"}


def test_ditto_pulls_the_personal_model_towards_the_broadcast_of_its_round():
    server, bench, (w, b, x, y) = train(Ditto(rounds=2, strength=0.4))
    theta, own = (w, b), [(w, b)] * 3
    for _ in range(2):
        models = []
        for i, data in enumerate(clients(x, y)):
            models.append(steps(theta, data))
            own[i] = steps(
                own[i],
                data,
                lambda phi, theta=theta: tuple(0.4 * d for d in minus(phi, theta)),
            )
        theta = mean(models, [n / 48 for n in SIZES])
    assert_server(server, theta)
    for i in range(3):
        held = bench.states[i]["personal.weight"]
        np.testing.assert_allclose(held, own[i][0], rtol=1e-5, atol=1e-7)


def test_ditto_without_strength_is_local_only_training_beside_fedavg():
    server, bench, _ = train(Ditto(rounds=3, strength=0.0))
    fedavg, _, _ = train(FedAvg(rounds=3))
    _, alone, _ = train(LocalOnly(rounds=3))
    for name, tensor in fedavg.tensors.items():
        assert torch.equal(server.tensors[name], tensor)
    for i in range(3):
        for name in ("personal.weight", "personal.bias"):
            assert torch.equal(bench.states[i][name], alone.states[i][name])


def test_finetune_keeps_what_a_client_made_of_the_last_broadcast():
    server, bench, (w, b, x, y) = train(Finetune(rounds=2))
    theta, shares = (w, b), [n / 48 for n in SIZES]
    for _ in range(2):
        models = [steps(theta, data) for data in clients(x, y)]
        theta = mean(models, shares)
    assert_server(server, theta)
    for i, model in enumerate(models):
        held = bench.states[i]["personal.weight"]
        np.testing.assert_allclose(held, model[0], rtol=1e-5, atol=1e-7)


def test_the_personal_model_of_a_client_is_used_and_is_its_own():
    """Both rules hand the personal tensors to scoring, not the broadcast."""
    for rule in (Ditto(rounds=2), Finetune(rounds=2)):
        server, bench, _ = train(rule)
        sent = rule.broadcast(server)
        models = [rule.personal_model(sent, bench.states[i], {}) for i in range(3)]
        for i, model in enumerate(models):
            assert model is not None
            assert torch.equal(model["weight"], bench.states[i]["personal.weight"])
            assert not torch.equal(model["weight"], server.tensors["weight"].double())
        assert not torch.equal(models[0]["weight"], models[1]["weight"])


@pytest.mark.parametrize("kind", [Finetune, PFedMe])
def test_a_client_that_was_never_drawn_uses_the_shared_model(kind):
    rule = kind(rounds=2)
    server, bench, _ = train(rule)
    sent, problem = rule.broadcast(server), bench.problem
    fresh = rule.init_client(problem.initial, problem.learner.tensors(problem.initial))
    found = rule.personal_model(sent, fresh, {})
    for name, tensor in sent.items():
        assert torch.equal(found[name], tensor.to(found[name]))
        assert not torch.equal(found[name], problem.initial[name])
        own = rule.personal_model(sent, bench.states[0], {})
        assert torch.equal(own[name], bench.states[0][f"personal.{name}"])


@pytest.mark.parametrize("rule", [Scaffold(), FedDyn(), Ditto()], ids=lambda rule: rule.name)
def test_a_client_without_examples_changes_nothing_it_keeps(rule):
    problem = linear_problem(16)
    specs = problem.learner.tensors(problem.initial)
    training = Training(SGD(lr=LR, momentum=0.0, weight_decay=0.0), schedule="constant")
    server = rule.init_server(problem.initial, specs, 2)
    shards, moment = [torch.arange(16), torch.arange(0)], Moment(0, 1, 0)
    draws = torch.Generator().manual_seed(0)
    fresh = rule.init_client(problem.initial, specs)
    states = {n: torch.randn(2, *t.shape, generator=draws).to(t) for n, t in fresh.items()}
    work = plan_work(training, moment, [0, 1], shards)
    result = train_group(problem, rule, training, rule.broadcast(server), states, work, moment)
    for tensor in result.update.values():
        assert tensor[0].any()
        assert not tensor[1].any()
    for name, tensor in result.state.items():
        assert torch.equal(tensor[1], states[name][1])


# -- robust aggregates ---------------------------------------------------------------------------

UPDATES = np.random.default_rng(3).normal(size=(7, 5))


def aggregate(method, rows=UPDATES, num_faulty=0, sizes=None, weights="uniform"):
    aggregator, partial = RobustAggregator(method, num_faulty, weights), Partial()
    for row, size in zip(rows, sizes or [1] * len(rows), strict=True):
        update = {"b": torch.tensor(row[:2]), "a": torch.tensor(row[2:]).view(1, -1)}
        partial = aggregator.add(partial, update, size)
    found = aggregator.finish(partial)
    if not found:
        return None
    return np.concatenate([found["b"].numpy(), found["a"].numpy().ravel()])


@pytest.mark.parametrize("num", [6, 7])
def test_the_median_is_that_of_each_coordinate(num):
    rows = UPDATES[:num]
    np.testing.assert_allclose(aggregate("median", rows), np.median(rows, axis=0), rtol=1e-12)


def test_the_trimmed_mean_drops_as_many_from_both_ends():
    expected = np.sort(UPDATES, axis=0)[2:-2].mean(axis=0)
    np.testing.assert_allclose(aggregate("trimmed_mean", num_faulty=2), expected, rtol=1e-12)
    plain = aggregate("trimmed_mean", num_faulty=0)
    np.testing.assert_allclose(plain, UPDATES.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("method", ["krum", "multi_krum"])
def test_krum_takes_the_updates_with_the_nearest_neighbours(method):
    rows = UPDATES.copy()
    rows[4] += 50  # a liar
    scores = []
    for i in range(7):
        far = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(7) if j != i)
        scores.append(sum(far[: 7 - 1 - 2]))
    best = np.argsort(scores)[: 1 if method == "krum" else 6]
    assert 4 not in best
    expected = rows[best].mean(axis=0)
    np.testing.assert_allclose(aggregate(method, rows, num_faulty=1), expected, rtol=1e-12)


@pytest.mark.parametrize("weights", ["uniform", "num_examples"])
def test_the_geometric_median_has_the_least_sum_of_distances(weights):
    sizes = [1, 2, 3, 4, 5, 6, 7]
    found = aggregate("geometric_median", sizes=sizes, weights=weights)
    w = np.array(sizes) if weights == "num_examples" else np.ones(7)

    def total(z):
        return (w * np.linalg.norm(UPDATES - z, axis=1)).sum()

    draws = np.random.default_rng(0)
    for scale in (1.0, 0.1, 0.01, 0.001):
        for _ in range(200):
            assert total(found) <= total(found + scale * draws.normal(size=5)) + 1e-9


def test_a_few_wrong_updates_move_no_robust_aggregate_far():
    rows = np.concatenate([UPDATES, np.full((2, 5), 1e6)])
    for method in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median"):
        assert np.abs(aggregate(method, rows, num_faulty=2)).max() < 5
    assert np.abs(rows.mean(axis=0)).max() > 1e5


def test_a_robust_rule_refuses_a_cohort_that_is_too_small_for_it():
    rule = Robust(aggregation="krum", num_faulty=2)
    with pytest.raises(ConfigError, match=r"num_faulty = 2 .* needs 5 clients .* there are 4"):
        rule.init_server({}, {}, 4)
    rule.init_server({}, {}, 5)
    with pytest.raises(ConfigError, match="there are 3"):
        replace(rule, clients_per_round=3).init_server({}, {}, 100)


def test_a_round_that_loses_too_many_clients_changes_nothing():
    assert aggregate("krum", UPDATES[:4], num_faulty=2) is None
    assert aggregate("median", UPDATES[:0]) is None


@pytest.mark.parametrize(
    "aggregator",
    [
        WeightedMean(),
        CountedMean("num_examples", "count"),
        MeanAndEach(WeightedMean(), "rule"),
        RobustAggregator("geometric_median"),
    ],
    ids=lambda aggregator: type(aggregator).__name__,
)
def test_updates_that_weigh_nothing_aggregate_to_nothing(aggregator):
    partial = Partial()
    for row in UPDATES:
        partial = aggregator.add(partial, {"a": torch.tensor(row)}, 0)
    assert aggregator.finish(partial) == {}
