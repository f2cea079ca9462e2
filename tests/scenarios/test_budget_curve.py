"""The curve over bytes against dense sums and against definitions applied point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scenarios.budget_curve import area, log_area, megabytes_to, pareto_front, value_at

BYTES = [0, 1_000_000, 2_000_000, 2_000_000, 5_000_000, 8_000_000]
VALUES = [0.2, 0.5, 0.4, 0.6, None, 0.7]


@pytest.mark.parametrize(
    ("megabytes", "value"),
    [(0, 0.2), (0.999999, 0.2), (1, 0.5), (1.999, 0.5), (2, 0.6), (5, 0.6), (8, 0.7), (99, 0.7)],
)
def test_a_budget_buys_the_last_evaluated_round_within_it(megabytes, value):
    assert value_at(BYTES, VALUES, megabytes) == value


def test_before_the_first_evaluated_round_a_budget_buys_nothing():
    assert value_at([10, 2_000_000], [None, 0.5], 1.0) is None
    assert value_at([], [], 1.0) is None


def test_a_rounds_own_bytes_buy_it_whatever_they_are_in_megabytes():
    """Of these numbers b one in 65 has (b / 10^6) 10^6 < b in floating point."""
    assert all(value_at([0, b], [0.1, 0.5], b / 1e6) == 0.5 for b in range(1, 20_000))
    assert value_at([0, 1_001_000], [0.1, 0.5], 1.001) == 0.5
    assert value_at([0, 1_001_001], [0.1, 0.5], 1.001) == 0.1


def test_a_target_is_reached_by_the_first_evaluated_round_at_or_above_it():
    assert megabytes_to(BYTES, VALUES, 0.5) == 1.0  # though the next round falls below it
    assert megabytes_to(BYTES, VALUES, 0.55) == 2.0
    assert megabytes_to(BYTES, VALUES, 0.61) == 8.0
    assert megabytes_to(BYTES, VALUES, 0.71) is None
    assert megabytes_to(BYTES, VALUES, 0.1) == 0.0


def sampled(places):
    """The mean of the curve at ``places`` megabytes, read one by one."""
    values = [value_at(BYTES, VALUES, place) for place in places]
    return sum(0.0 if value is None else value for value in values) / len(values)


@pytest.mark.parametrize("horizon", [0.5, 1.0, 4.0, 8.0, 10.0])
def test_the_area_is_the_mean_over_many_budgets(horizon):
    middles = (np.arange(4000) + 0.5) / 4000 * horizon
    assert area(BYTES, VALUES, horizon) == pytest.approx(sampled(middles), abs=1e-3)


@pytest.mark.parametrize("span", [(0.1, 4.0), (1.0, 10.0), (3.0, 4.0)])
def test_the_log_area_is_the_mean_over_many_budgets_at_equal_ratios(span):
    low, high = span
    middles = low * (high / low) ** ((np.arange(4000) + 0.5) / 4000)
    assert log_area(BYTES, VALUES, span) == pytest.approx(sampled(middles), abs=1e-3)


def test_areas_by_hand():
    # 1 MB at the zero-shot value, 1 MB at 0.5, and 2 MB at 0.75.
    curve = [1_000_000, 2_000_000], [0.5, 0.75]
    assert area(*curve, 4.0, before=0.25) == pytest.approx((0.25 + 0.5 + 1.5) / 4)
    assert area(*curve, 4.0) == pytest.approx((0.5 + 1.5) / 4)
    assert area([], [], 4.0, before=0.25) == 0.25
    # From 0.5 to 4 MB there are three doublings: one before, one at 0.5, one at 0.75.
    assert log_area(*curve, (0.5, 4.0), before=0.25) == pytest.approx((0.25 + 0.5 + 0.75) / 3)


@pytest.mark.parametrize("horizon", [0.0, -1.0, math.inf, math.nan])
def test_a_horizon_that_is_no_budget_is_refused(horizon):
    with pytest.raises(ValueError, match="must be > 0 megabytes"):
        area(BYTES, VALUES, horizon)
    with pytest.raises(ValueError, match="0 < low < high"):
        log_area(BYTES, VALUES, (1.0, horizon))


def test_a_logarithm_from_zero_is_refused():
    with pytest.raises(ValueError, match="0 < low < high"):
        log_area(BYTES, VALUES, (0.0, 1.0))


def test_bytes_that_fall_and_missing_values_are_refused():
    with pytest.raises(ValueError, match="must not fall"):
        value_at([2, 1], [0.1, 0.2], 1.0)
    with pytest.raises(ValueError, match="zip"):
        value_at([1, 2], [0.1], 1.0)


def dominated(point, points):
    return any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_holds_exactly_the_undominated_points(seed):
    rng = np.random.default_rng(seed)
    points = [(float(cost), float(value)) for cost, value in rng.integers(8, size=(12, 2))]
    front = pareto_front(points)
    assert sorted(front) == [i for i, p in enumerate(points) if not dominated(p, points)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_a_diverged_run_is_on_no_front():
    assert pareto_front([(1.0, math.nan), (2.0, 0.5), (3.0, 0.4)]) == [1]
    assert pareto_front([]) == []
