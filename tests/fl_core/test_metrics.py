"""Every metric against scikit-learn, a plain loop, a paper's table, or a number by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fl_core.metrics import (
    Tally,
    client_summary,
    combined_metric,
    confusion,
    ece,
    harmonic_mean,
    jain_index,
    macro_f1,
    mean,
    ood_gap,
    over_clients,
    participation_gap,
    retention,
    share_worse_off,
    worst_share,
)


def scored(n=400, num_classes=7, seed=0):
    """Labels [n], predicted [n] and probabilities [n, C] of a model that is often right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=n)
    logits = rng.normal(size=(n, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.argmax(axis=1).astype(np.int32), probabilities


def tally_of(labels, predicted, probabilities):
    rows = np.arange(len(labels))
    nll = -np.log(probabilities[rows, labels]).astype(np.float32)
    brier = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    return Tally.of(labels, predicted, nll, brier.astype(np.float32))


def test_a_tally_agrees_with_scikit_learn():
    from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

    labels, predicted, probabilities = scored()
    tally = tally_of(labels, predicted, probabilities)
    classes = range(probabilities.shape[1])
    brier = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert tally.accuracy == accuracy_score(labels, predicted)
    assert tally.nll == pytest.approx(log_loss(labels, probabilities, labels=classes), rel=1e-6)
    assert tally.brier == pytest.approx(brier, rel=1e-6)


def test_tallies_of_blocks_add_up_to_the_tally_of_all():
    labels, predicted, probabilities = scored()
    whole = tally_of(labels, predicted, probabilities)
    parts = Tally()
    for rows in np.array_split(np.arange(len(labels)), 9):
        parts += tally_of(labels[rows], predicted[rows], probabilities[rows])
    assert (parts.num_examples, parts.num_correct) == (whole.num_examples, whole.num_correct)
    assert parts.nll_sum == pytest.approx(whole.nll_sum, rel=1e-12)
    assert parts.brier_sum == pytest.approx(whole.brier_sum, rel=1e-12)


def test_a_part_without_brier_leaves_the_sum_without_one():
    one = np.array([1]), np.array([1]), np.array([0.5])
    both = Tally.of(*one, np.array([0.2])) + Tally.of(*one)
    assert both.brier is None
    assert (both.accuracy, both.nll) == (1.0, 0.5)


def test_an_empty_tally_has_no_values():
    assert (Tally().accuracy, Tally().nll, Tally().brier) == (None, None, None)


def test_the_confusion_counts_are_scikit_learns_and_add_up():
    from sklearn.metrics import confusion_matrix

    labels, predicted, _ = scored()
    whole = confusion(labels, predicted, 7)
    assert (whole == confusion_matrix(labels, predicted, labels=range(7))).all()
    halves = confusion(labels[:99], predicted[:99], 7) + confusion(labels[99:], predicted[99:], 7)
    assert (whole == halves).all()


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"predicted range from -1 to 1: .* from 0 to 1\."):
        confusion(np.array([0, 1]), np.array([-1, 1]), 2)
    with pytest.raises(ValueError, match="labels range from 0 to 2"):
        confusion(np.array([0, 2]), np.array([0, 1]), 2)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns_over_the_classes_that_occur(seed):
    from sklearn.metrics import f1_score

    labels, predicted, _ = scored(n=12, num_classes=9, seed=seed)  # some classes never occur
    counts = confusion(labels, predicted, 9)
    assert macro_f1(counts) == pytest.approx(f1_score(labels, predicted, average="macro"))
    present = [0, 3, 8]
    expected = f1_score(labels, predicted, average="macro", labels=present, zero_division=0)
    assert macro_f1(counts, present) == pytest.approx(expected)


def test_a_prediction_of_a_class_without_examples_costs_a_zero():
    counts = confusion(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), 4)
    assert macro_f1(counts) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert macro_f1(counts, [0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert macro_f1(np.zeros((4, 4), dtype=np.int64)) is None


def plain_ece(right, confidence, num_bins):
    """Bins filled one example at a time; an example takes the mean accuracy of its equals."""
    n = len(right)
    order = sorted(range(n), key=lambda i: confidence[i])
    total, start = 0.0, 0
    for b in range(num_bins):
        size = n // num_bins + (b < n % num_bins)
        accuracy = surety = 0.0
        for i in order[start : start + size]:
            equals = [right[j] for j in range(n) if confidence[j] == confidence[i]]
            accuracy += sum(equals) / len(equals)
            surety += float(confidence[i])
        if size:
            total += size / n * abs(accuracy / size - surety / size)
        start += size
    return total


@pytest.mark.parametrize(("n", "levels"), [(300, 10**6), (307, 10**6), (307, 12), (9, 10**6)])
def test_ece_is_that_of_bins_filled_one_by_one(n, levels):
    rng = np.random.default_rng(n)
    confidence = (np.ceil(rng.uniform(size=n) * levels) / levels).astype(np.float32)
    right = rng.uniform(size=n) < confidence**2
    expected = plain_ece(right, confidence, 15)
    assert ece(right, confidence) == pytest.approx(expected, rel=1e-9)
    shuffled = rng.permutation(n)
    assert ece(right[shuffled], confidence[shuffled]) == pytest.approx(expected, rel=1e-9)


def test_ece_by_hand():
    confidence = np.array([0.9, 0.6, 0.6, 0.7])
    right = np.array([True, True, False, False])
    # Two bins: (0.6, 0.6) half right, and (0.7, 0.9) half right.
    assert ece(right, confidence, num_bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    # All equally sure: every bin has the same gap, whatever the order.
    assert ece(right, np.full(4, 0.8), num_bins=3) == pytest.approx(0.3)
    assert ece(np.array([], dtype=bool), np.array([])) is None


VALUES = [0.5, None, 0.9, 0.7, 0.3]
SIZES = [10, 99, 20, 30, 40]


def test_a_summary_over_clients_agrees_with_numpy():
    known, sizes = np.array([0.5, 0.9, 0.7, 0.3]), np.array([10, 20, 30, 40])
    summary = client_summary(VALUES, SIZES)
    assert summary == pytest.approx(
        {
            "mean": known.mean(),
            "weighted_mean": np.average(known, weights=sizes),
            "worst": 0.3,
            "worst_tenth": 0.3,
            "std": known.std(),
            "jain": known.sum() ** 2 / (4 * (known**2).sum()),
        }
    )
    assert over_clients(VALUES) == {name: summary[name] for name in ("mean", "worst", "std")}


def test_where_lower_is_better_the_worst_client_is_the_highest():
    summary = client_summary(VALUES, SIZES, higher_is_better=False)
    assert (summary["worst"], summary["worst_tenth"]) == (0.9, 0.9)


def test_without_values_there_is_no_summary():
    assert client_summary([None, None], [1, 2]) == {}
    assert over_clients([]) == {}
    assert mean([]) is None
    assert mean([0.5, None], [0, 3]) is None
    assert worst_share([None]) is None
    assert jain_index([]) is None


@pytest.mark.parametrize(("num_clients", "num_worst"), [(1, 1), (9, 1), (11, 2), (30, 3), (31, 4)])
def test_the_worst_tenth_is_rounded_up_to_whole_clients(num_clients, num_worst):
    values = [float(i) for i in reversed(range(num_clients))]
    assert worst_share(values) == sum(range(num_worst)) / num_worst


def test_a_share_that_gives_whole_clients_is_not_rounded_up():
    assert 0.07 * 100 > 7
    assert worst_share([float(i) for i in range(100)], 0.07) == sum(range(7)) / 7


def test_jain_runs_from_one_over_n_to_one():
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain_index([0.4, 0.4, None]) == pytest.approx(1.0)
    assert jain_index([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match=r"values >= 0, not -0\.1"):
        jain_index([0.2, -0.1])
    assert "jain" not in client_summary([0.2, -0.1], [1, 1])


def test_clients_worse_off_are_counted_strictly_and_in_pairs():
    values, reference = [0.5, 0.6, 0.7, None, 0.1], [0.5, 0.7, 0.6, 0.9, None]
    assert share_worse_off(values, reference) == pytest.approx(1 / 3)
    assert share_worse_off([2.0, 1.0], [1.0, 2.0], higher_is_better=False) == 0.5
    assert share_worse_off([None], [0.5]) is None
    with pytest.raises(ValueError, match="zip"):
        share_worse_off([0.1], [0.1, 0.2])


def test_the_participation_gap_is_seen_minus_unseen():
    assert participation_gap([0.8, None, 0.6], [0.5]) == pytest.approx(0.2)
    assert participation_gap([0.8], [None]) is None


def test_harmonic_means_reproduce_published_rows():
    # CoCoOp, average over 11 data sets: base 80.47, new 71.69, H 75.83.
    assert harmonic_mean(80.47, 71.69) == pytest.approx(75.83, abs=0.005)
    # FedMGP, ablation: local 96.92, base 73.23, novel 74.65, CM 85.43.
    assert combined_metric(96.92, 73.23, 74.65) == pytest.approx(85.43, abs=0.005)


def test_the_harmonic_mean_of_three_is_scipys():
    from scipy.stats import hmean

    assert harmonic_mean(0.9, 0.7, 0.5) == pytest.approx(hmean([0.9, 0.7, 0.5]))
    assert harmonic_mean(0.9, 0.0, 0.5) == 0.0
    assert harmonic_mean(0.9, None) is None
    assert combined_metric(None, 0.5, 0.5) is None
    assert combined_metric(0.5, 0.5, None) is None
    with pytest.raises(ValueError, match=r"not -0\.5"):
        harmonic_mean(0.5, -0.5)


def test_the_gap_and_the_retention_outside_the_distribution():
    assert ood_gap(0.8, 0.6) == pytest.approx(0.2)
    assert retention(0.6, 0.65) == pytest.approx(-0.05)
    assert (ood_gap(None, 0.6), retention(0.6, None)) == (None, None)


def test_a_diverged_client_is_not_hidden():
    summary = client_summary([1.0, math.nan], [1, 1])
    assert math.isnan(summary["mean"])
    assert math.isnan(summary["weighted_mean"])
