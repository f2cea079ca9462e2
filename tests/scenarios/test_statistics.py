"""Comparisons against scipy, plain loops, and simulations in which the truth is known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from scenarios.statistics import Comparison, compare, holm, judge, over_seeds, verdict


def by_seed(values):
    """[S, N] as a table by seed."""
    return {seed: list(row) for seed, row in enumerate(values)}


def zeros_like(values):
    return by_seed(np.zeros_like(values))


def population(rng, num_seeds=3, num_clients=30, gain=0.0):
    """Values [S, N] of two methods; clients differ in level and in what A gains on them."""
    shape = num_seeds, num_clients
    level = rng.normal(0.7, 0.1, num_clients)
    effect = gain + rng.normal(0.0, 0.05, num_clients)
    b = level + rng.normal(0.0, 0.02, shape)
    return b + effect + rng.normal(0.0, 0.02, shape), b


def test_the_interval_over_seeds_is_that_of_a_t_test():
    from scipy.stats import ttest_1samp

    values = [0.61, 0.64, 0.59, 0.66, 0.6]
    spread = over_seeds(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (spread.low, spread.high) == pytest.approx((expected.low, expected.high))
    assert (spread.num_seeds, spread.mean) == (5, pytest.approx(np.mean(values)))
    assert spread.std == pytest.approx(np.std(values, ddof=1))


def test_the_interval_of_three_seeds_by_hand():
    # t(0.975; 2 degrees of freedom) is 4.3027 in every table.
    spread = over_seeds([1.0, 2.0, 3.0])
    assert (spread.mean, spread.std) == (2.0, 1.0)
    assert spread.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_one_seed_has_no_spread_and_none_is_refused():
    spread = over_seeds([0.5])
    assert (spread.mean, spread.std, spread.low, spread.high) == (0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        over_seeds([])


def test_the_difference_is_the_weighted_mean_of_the_pairs_that_are_whole():
    a = {0: [0.5, 0.9, None, 0.4], 1: [0.6, None, 0.7, 0.2], 7: [1.0] * 4}
    b = {0: [0.4, 0.7, 0.2, 0.5], 1: [0.6, 0.1, 0.3, None], 9: [0.0] * 4}
    sizes = {0: [10, 20, 30, 40], 1: [50, 60, 70, 80]}
    pairs = [(0.1, 10), (0.2, 20), (-0.1, 40), (0.0, 50), (0.4, 70)]
    uniform = compare(a, b, seed=0, num_replicates=99)
    weighted = compare(a, b, sizes, seed=0, num_replicates=99)
    assert uniform is not None
    assert weighted is not None
    assert (uniform.num_seeds, uniform.num_clusters) == (2, 4)
    assert uniform.difference == pytest.approx(sum(gain for gain, _ in pairs) / 5)
    total = sum(gain * size for gain, size in pairs)
    assert weighted.difference == pytest.approx(total / sum(size for _, size in pairs))


def test_clients_of_different_populations_are_clusters_by_themselves():
    a, b = {0: [0.5, 0.9], 1: [0.6, 0.2, None]}, {0: [0.4, 0.7], 1: [0.6, 0.3, 0.1]}
    found = compare(a, b, seed=0, same_clients=False, num_replicates=99)
    assert found is not None
    assert found.num_clusters == 4
    assert found.difference == pytest.approx((0.1 + 0.2 + 0.0 - 0.1) / 4)
    with pytest.raises(ValueError, match="same_clients=False"):
        compare(a, b, seed=0)


def test_with_many_clients_interval_and_p_value_are_scipys():
    """With equal weights the statistic is a mean over clients, which scipy knows."""
    from scipy.stats import bootstrap, ttest_1samp

    a, b = population(np.random.default_rng(0), num_clients=400, gain=0.005)
    gains = (a - b).mean(axis=0)
    found = compare(by_seed(a), by_seed(b), seed=1)
    assert found is not None
    other = bootstrap((gains,), np.mean, method="percentile", rng=np.random.default_rng(2))
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.05 * width)
    assert found.p_value == pytest.approx(ttest_1samp(gains, 0.0).pvalue, abs=0.01)


def test_with_few_clients_interval_and_p_value_are_near_those_of_a_t_test():
    from scipy.stats import ttest_1samp

    gains = np.random.default_rng(3).normal(0.4, 1.0, size=(1, 12))
    found = compare(by_seed(gains), zeros_like(gains), seed=0)
    assert found is not None
    expected = ttest_1samp(gains[0], 0.0)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.05)


def test_weighted_replicates_spread_as_a_plain_loop_says():
    rng = np.random.default_rng(4)
    a, b = population(rng, num_seeds=2, num_clients=80, gain=0.3)
    sizes = rng.integers(10, 100, size=a.shape)
    found = compare(by_seed(a), by_seed(b), by_seed(sizes), seed=0)
    assert found is not None
    means = []
    for _ in range(4000):
        clients = rng.integers(80, size=80)
        total = sum(float((sizes[:, i] * (a - b)[:, i]).sum()) for i in clients)
        means.append(total / sum(int(sizes[:, i].sum()) for i in clients))
    low, high = np.quantile(means, [0.025, 0.975])
    # Student's t for about 65 effective clients is 2.7 % wider.
    assert found.high - found.low == pytest.approx((high - low) * 1.027, rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


@pytest.mark.parametrize("seed", range(8))
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(seed):
    rng = np.random.default_rng(seed)
    a, b = population(rng, num_clients=int(rng.integers(5, 20)), gain=0.02)
    tables = by_seed(a), by_seed(b)
    p_value = compare(*tables, seed=seed).p_value
    wide = compare(*tables, seed=seed, confidence=1 - 0.99 * p_value)
    narrow = compare(*tables, seed=seed, confidence=1 - min(0.999, 1.01 * p_value))
    assert narrow.low > 0 or narrow.high < 0
    assert wide.low is None or wide.low <= 0 <= wide.high


def rejections(num_trials, seed, *, gain=0.0, same_clients=True, num_clients=30, weighted=False):
    rng = np.random.default_rng(seed)
    count = 0
    for trial in range(num_trials):
        a, b = population(rng, num_clients=num_clients, gain=gain)
        sizes = by_seed(np.tile(rng.integers(20, 200, size=num_clients), (3, 1)))
        tables = by_seed(a), by_seed(b), sizes if weighted else None
        found = compare(*tables, seed=trial, same_clients=same_clients, num_replicates=999)
        count += found.p_value < 0.05
    return count / num_trials


@pytest.mark.parametrize(("num_clients", "weighted"), [(10, False), (30, False), (30, True)])
def test_a_true_null_is_rejected_about_five_times_in_a_hundred(num_clients, weighted):
    trials = 1000
    rate = rejections(trials, seed=num_clients, num_clients=num_clients, weighted=weighted)
    assert rate == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_seeds_that_are_not_kept_together_would_reject_far_too_often():
    assert rejections(300, seed=0, same_clients=False) > 0.15


def test_a_planted_difference_is_found():
    assert rejections(100, seed=1, gain=0.05) > 0.95


def test_equal_methods_have_no_difference_at_all():
    a, _ = population(np.random.default_rng(0))
    found = compare(by_seed(a), by_seed(a), seed=0)
    assert found == Comparison(0.0, 0.0, 0.0, 1.0, 3, 30)


def test_gains_that_cancel_but_for_rounding_are_on_neither_side_of_zero():
    tenths = np.array([[1, 2, -3, 4, -1, 1]])  # 0.1 + 0.2 - 0.3 is not 0 in floating point
    found = [
        compare(by_seed(unit * tenths), zeros_like(tenths), seed=0).p_value for unit in (1, 0.1)
    ]
    assert found[0] == found[1]


def test_too_few_clients_give_no_interval_and_no_small_p_value():
    for num_clients in (2, 3):
        found = compare({0: [0.9] * num_clients}, {0: [0.1] * num_clients}, seed=0)
        assert (found.low, found.high) == (None, None)
        assert found.p_value > 0.05
    single = compare({0: [0.9]}, {0: [0.1]}, seed=0)
    assert (single.difference, single.p_value) == (pytest.approx(0.8), None)
    assert compare({0: [0.9, None]}, {0: [None, 0.1]}, seed=0) is None
    assert compare({0: [0.9]}, {1: [0.9]}, seed=0) is None


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    a, b = (by_seed(values) for values in population(np.random.default_rng(5)))
    assert compare(a, b, seed=3) == compare(a, b, seed=3)
    assert compare(a, b, seed=3).low != compare(a, b, seed=4).low


def test_the_bootstrap_mirrors_when_the_methods_change_places():
    a, b = (by_seed(values) for values in population(np.random.default_rng(6)))
    there, back = compare(a, b, seed=0), compare(b, a, seed=0)
    assert (there.difference, there.low, there.high) == pytest.approx(
        (-back.difference, -back.high, -back.low)
    )
    assert there.p_value == back.p_value


def test_a_thousand_clients_and_ten_thousand_replicates_take_seconds():
    a, b = (by_seed(v) for v in population(np.random.default_rng(7), num_clients=1000))
    start = time.perf_counter()
    compare(a, b, seed=0)
    assert time.perf_counter() - start < 10


def test_bad_tables_and_levels_are_refused():
    with pytest.raises(ValueError, match="seed 4: 2, 1 and 2 values and weights"):
        compare({4: [0.1, 0.2]}, {4: [0.1]}, seed=0)
    with pytest.raises(ValueError, match=r"confidence = 95 .* between 0 and 1"):
        compare({0: [0.1]}, {0: [0.1]}, seed=0, confidence=95)


def plain_holm(p_values):
    """Reject one after the other while p <= level / (left over); the adjusted p is that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    for rank, i in enumerate(order):
        steps = [p_values[order[k]] * (len(order) - k) for k in range(rank + 1)]
        adjusted[i] = min(1.0, max(steps))
    return adjusted


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_monotone_keeps_the_order_and_skips_what_was_not_tested(seed):
    rng = np.random.default_rng(seed)
    p_values = list(np.round(rng.uniform(size=9) ** 3, 2))  # with ties
    adjusted = holm(p_values)
    assert adjusted == pytest.approx(plain_holm(p_values))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    assert holm([None, *p_values, math.nan]) == [None, *adjusted, None]


def gains(*pairs):
    """Rivals r0, r1, ... from (difference, p-value)."""
    return {
        f"r{i}": Comparison(difference, None, None, p, 5, 9)
        for i, (difference, p) in enumerate(pairs)
    }


@pytest.mark.parametrize(
    ("num_seeds", "pairs", "words"),
    [
        (1, [(0.1, 0.001)], "single run"),
        (2, [(0.1, 0.001)], "single runs"),
        (3, [(0.1, 0.001)], "indicative"),
        (4, [(0.1, 0.001), (0.1, 0.2)], "indicative, not separated from r1"),
        (5, [(0.1, 0.001), (0.1, 0.049)], "best"),
        (5, [(0.1, 0.03), (0.1, 0.04)], "not separated from r0, r1"),  # Holm: 0.06 and 0.06
        (9, [(0.1, 0.001), (0.1, None)], "not separated from r1"),
        (9, [(-0.1, 0.001), (0.1, 0.001)], "not separated from r0"),
        (5, [(0.1, 0.05)], "not separated from r0"),
        (5, [], "nothing to compare with"),
    ],
)
def test_the_wording_follows_the_seeds_and_the_evidence(num_seeds, pairs, words):
    assert verdict(num_seeds, gains(*pairs)) == words


def test_a_rival_without_a_comparison_is_not_separated():
    assert verdict(5, {"r": None}) == "not separated from r"


def test_judging_names_the_leader_and_compares_it_with_each_other_method():
    rng = np.random.default_rng(8)
    a, b = population(rng, num_seeds=5, gain=0.05)
    noise = rng.normal(0.0, 0.02, size=a.shape)
    near = a - (noise - noise.mean() + 0.0005)  # a third of its standard error behind
    methods = {"far": by_seed(b), "lead": by_seed(a), "near": by_seed(near)}
    found = judge(methods, seed=0)
    assert found.leader == "lead"
    assert found.means == pytest.approx({"far": b.mean(), "lead": a.mean(), "near": near.mean()})
    assert found.rivals["far"] == compare(methods["lead"], methods["far"], seed=0)
    assert found.verdict == "not separated from near"
    assert list(found.adjusted) == ["far", "near"]
    assert judge({k: methods[k] for k in ("far", "lead")}, seed=0).verdict == "best"


def test_only_seeds_that_all_methods_have_are_judged():
    methods = {"a": {0: [0.9, 0.8], 1: [0.1, 0.1]}, "b": {0: [0.5, 0.4], 2: [1.0, 1.0]}, "c": {}}
    with pytest.raises(ValueError, match="all methods share"):
        judge(methods, seed=0)
    del methods["c"]
    found = judge(methods, seed=0)
    assert (found.leader, found.verdict) == ("a", "single run")
    assert found.means == pytest.approx({"a": 0.85, "b": 0.45})
