"""What is measured of a round, each number against a computation from the raw arrays."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from scenarios.client_rows import ClientRows
from scenarios.evaluate import (
    OWN,
    Exam,
    Metrics,
    Scored,
    ValidationScore,
    choose_round,
    compare_with_zero_shot,
    measure,
    measure_reference,
)
from scenarios.majority import measure_majority
from scenarios.population import Population
from scenarios.scored import Written, nothing_scored
from scenarios.targets import HOME, Target

NUM_ROWS, NUM_CLIENTS, NUM_CLASSES = 400, 23, 4
BARE, UNSEEN = 5, (2, 11)
"""A client without a test row, and clients that never train."""


@pytest.fixture
def population() -> Population:
    """Uneven clients; row r is for training, validation or tests by r mod 4."""
    rng = np.random.default_rng(0)
    owner = rng.choice(NUM_CLIENTS, NUM_ROWS, p=rng.dirichlet(np.full(NUM_CLIENTS, 3.0)))
    rows = np.arange(NUM_ROWS)
    owner[(owner == BARE) & (rows % 4 >= 2)] = 0
    parts = [
        [np.flatnonzero((owner == client) & np.isin(rows % 4, kinds)) for client in range(23)]
        for kinds in ((0,), (1,), (2, 3))
    ]
    seen_validation = [part for client, part in enumerate(parts[1]) if client not in UNSEEN]
    train, validation, test = (ClientRows.of(part) for part in parts)
    return Population(
        dataset="toy",
        fingerprint="",
        classes=("a", "b", "c", "d"),
        labels=rng.choice(NUM_CLASSES, NUM_ROWS, p=[0.4, 0.3, 0.2, 0.1]),
        train=train,
        validation=validation,
        test=test,
        global_validation=np.sort(np.concatenate(seen_validation)),
        global_test=np.flatnonzero(rows % 4 >= 2),
        domains=("flat", "line"),
        domain_ids=rng.integers(0, 2, NUM_ROWS),
        unseen=np.array(UNSEEN),
    )


def home_of(population) -> Target:
    both = [np.union1d(population.validation[c], population.test[c]) for c in range(NUM_CLIENTS)]
    labels, rows = population.labels, np.sort(np.concatenate(both))
    held = ClientRows.of(both)
    return Target(HOME, "toy", population.classes, ("{}",), labels, rows, by_client=held)


def probabilities(seed, num_rows=NUM_ROWS, num_classes=NUM_CLASSES):
    """What a made-up model says of every row, [N, C]."""
    draws = np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.4), num_rows)
    return 0.98 * draws + 0.02 / num_classes


def scored(p, labels, rows) -> Scored:
    """Probabilities [N, C] of all rows as the scores of some."""
    own, truth = p[rows], labels[rows]
    right = np.arange(p.shape[1]) == truth[:, None]
    columns = -np.log(own[right]), own.max(axis=1), ((own - right) ** 2).sum(axis=1)
    return Scored(rows, own.argmax(axis=1).astype("i4"), *(c.astype("f4") for c in columns))


def own_models(population, target, clients=None):
    """A model for each client that trains, or for ``clients``, on its rows of a target."""
    clients = [c for c in range(NUM_CLIENTS) if c not in UNSEEN] if clients is None else clients
    return [
        scored(probabilities(100 + c), target.labels, target.client_rows(c))
        if c in clients
        else None
        for c in range(NUM_CLIENTS)
    ]


def described(p, labels):
    """Accuracy, macro F1, nll, Brier and ECE of probabilities [n, C], from their definitions."""
    said, num = p.argmax(axis=1), len(labels)
    order = np.argsort(p.max(axis=1), kind="stable")
    bins = np.array_split(order, min(15, num))
    gaps = [abs((said[b] == labels[b]).mean() - p[b].max(axis=1).mean()) * len(b) for b in bins]
    one_hot = np.eye(p.shape[1])[labels]
    return {
        "accuracy": (said == labels).mean(),
        "macro_f1": f1_score(labels, said, labels=np.unique(labels), average="macro"),
        "nll": np.mean([-np.log(p[i, labels[i]]) for i in range(num)]),
        "brier": np.mean(np.sum((p - one_hot) ** 2, axis=1)),
        "ece": sum(gaps) / num,
    }


def assert_described(flat, prefix, expected, leave_out=()):
    for name, value in expected.items():
        if name not in leave_out:
            assert flat[f"{prefix}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def accuracies(population, p_of):
    """By client with a test row that trains: accuracy under the model ``p_of(client)``."""
    found = {}
    for client in range(NUM_CLIENTS):
        rows = population.test[client]
        if client not in UNSEEN and len(rows):
            found[client] = (p_of(client)[rows].argmax(axis=1) == population.labels[rows]).mean()
    return found


@pytest.fixture
def home(population) -> Exam:
    """A shared model and every participant's own on the population's rows."""
    target = home_of(population)
    shared = scored(probabilities(1), target.labels, target.rows)
    return Exam(target, shared, own_models(population, target))


def test_the_small_case_has_what_is_uneven_in_life(population):
    assert len(population.clients_without_test) >= 1
    assert BARE in population.clients_without_test
    assert population.test.counts.max() > 2 * np.median(population.test.counts)
    assert all(population.test.counts[list(UNSEEN)] > 0)


# -- the shared model ----------------------------------------------------------------------------


def test_the_shared_model_is_described_on_the_whole_test_set(population, home):
    flat = measure(population, [home], None).flat
    rows = population.global_test
    expected = described(probabilities(1)[rows], population.labels[rows])
    assert_described(flat, "eval/global", expected)


def test_each_domain_has_an_accuracy_of_its_own(population, home):
    flat = measure(population, [home], None).flat
    said = probabilities(1).argmax(axis=1)
    for code, domain in enumerate(population.domains):
        rows = population.global_test[population.domain_ids[population.global_test] == code]
        expected = (said[rows] == population.labels[rows]).mean()
        assert flat[f"eval/domain/{domain}/accuracy"] == pytest.approx(expected)
    single = replace(population, domains=("all",), domain_ids=np.zeros(NUM_ROWS, dtype=int))
    assert not any("domain" in name for name in measure(single, [home], None).flat)


# -- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_own", [True, False])
def test_personal_numbers_are_over_clients_that_train_and_have_a_test_row(
    population, home, has_own
):
    exam = home if has_own else replace(home, own=None)
    measured = measure(population, [exam], None)

    def p_of(client):
        return probabilities(100 + client if has_own else 1)

    by_client = accuracies(population, p_of)
    values = np.array(list(by_client.values()))
    sizes = population.test.counts[list(by_client)]
    assert len(values) == np.count_nonzero(population.test.counts) - len(UNSEEN)
    tenth = np.sort(values)[: -(-len(values) // 10)]
    assert len(tenth) == 2
    expected = {
        "accuracy": values.mean(),
        "weighted_accuracy": (values * sizes).sum() / sizes.sum(),
        "worst_accuracy": values.min(),
        "worst_tenth_accuracy": tenth.mean(),
        "accuracy_std": np.sqrt(((values - values.mean()) ** 2).mean()),
        "jain_index": values.sum() ** 2 / (len(values) * (values**2).sum()),
    }
    assert_described(measured.flat, "eval/personal", expected)
    listed = [by_client.get(client) for client in range(NUM_CLIENTS)]
    assert measured.by_client[OWN] == pytest.approx(listed)
    assert listed[BARE] is None
    rows = [population.test[client] for client in by_client]
    p = np.concatenate([p_of(c)[own] for c, own in zip(by_client, rows, strict=True)])
    pooled = described(p, population.labels[np.concatenate(rows)])
    assert_described(measured.flat, "eval/personal", pooled, leave_out=["accuracy"])


def test_where_both_models_are_there_they_are_told_apart(population, home):
    flat = measure(population, [home], None).flat
    shared = list(accuracies(population, lambda _: probabilities(1)).values())
    assert flat["eval/personal/shared_accuracy"] == pytest.approx(np.mean(shared))
    g, p = flat["eval/global/accuracy"], flat["eval/personal/accuracy"]
    assert flat["eval/both/accuracy"] == pytest.approx(2 * g * p / (g + p))


def test_clients_worse_off_than_with_zero_shot_are_counted_among_those_that_have_both(
    population, home
):
    own = accuracies(population, lambda c: probabilities(100 + c))
    zero_shot = [None if c == 7 else 0.25 for c in range(NUM_CLIENTS)]
    pairs = [value < 0.25 for client, value in own.items() if client != 7]
    flat = measure(population, [home], zero_shot).flat
    assert flat["eval/personal/worse_than_zero_shot"] == pytest.approx(np.mean(pairs))
    assert 0 < np.mean(pairs) < 1
    assert "eval/personal/worse_than_zero_shot" not in measure(population, [home], None).flat
    same = [own.get(client) for client in range(NUM_CLIENTS)]
    assert measure(population, [home], same).flat["eval/personal/worse_than_zero_shot"] == 0


def test_what_a_method_lacks_is_absent_and_not_zero(population, home):
    without_shared = measure(population, [replace(home, shared=None)], None).flat
    assert {name.split("/")[1] for name in without_shared} == {"personal", "validation"}
    assert "eval/personal/shared_accuracy" not in without_shared
    without_own = measure(population, [replace(home, own=None)], None).flat
    assert "eval/personal/shared_accuracy" not in without_own
    nothing = measure(population, [replace(home, shared=None, own=None)], None)
    assert nothing == Metrics()


def test_a_population_without_any_test_row_has_a_validation_score_alone(population, home):
    nothing = np.empty(0, dtype=np.int64)
    bare = replace(population, test=ClientRows.of([nothing] * 23), global_test=nothing)
    assert set(measure(bare, [home], None).flat) == {"eval/validation/accuracy"}
    assert measure_majority(bare) == {}


# -- validation ----------------------------------------------------------------------------------


def test_validation_is_of_own_models_where_there_are_some_and_never_of_the_unseen(population, home):
    own = []
    for client in range(NUM_CLIENTS):
        rows = population.validation[client]
        if client not in UNSEEN:
            said = probabilities(100 + client)[rows].argmax(axis=1)
            own += (said == population.labels[rows]).tolist()
    score = measure(population, [home], None).validation
    assert score.value == pytest.approx(np.mean(own))
    rows = population.global_validation
    said = probabilities(1)[rows].argmax(axis=1)
    score = measure(population, [replace(home, own=None)], None).validation
    assert score.value == pytest.approx((said == population.labels[rows]).mean())


def test_validation_rows_leak_into_no_test_number_nor_tests_into_validation(population, home):
    def spoilt(scores, rows):
        chosen = np.isin(scores.rows, rows)
        said = np.where(chosen, (scores.predicted + 1) % NUM_CLASSES, scores.predicted)
        large = np.where(chosen, np.float32(9), scores.nll)
        return replace(scores, predicted=said, nll=large, confidence=large, brier=large)

    def with_spoilt(rows):
        own = [None if scores is None else spoilt(scores, rows) for scores in home.own]
        exam = Exam(home.target, spoilt(home.shared, rows), own)
        shared = replace(exam, own=None)
        return [measure(population, [e], [0.3] * NUM_CLIENTS) for e in (exam, shared)]

    nothing = np.empty(0, dtype=np.int64)
    learned = np.union1d(population.train.rows, population.validation.rows)
    for before, after in zip(with_spoilt(nothing), with_spoilt(learned), strict=True):
        changed = {name for name in before.flat if before.flat[name] != after.flat[name]}
        assert changed == {"eval/validation/accuracy"}
        assert before.by_client == after.by_client
    tests = np.union1d(population.test.rows, population.global_test)
    for before, after in zip(with_spoilt(nothing), with_spoilt(tests), strict=True):
        assert before.validation == after.validation
        assert before.flat["eval/personal/accuracy"] != after.flat["eval/personal/accuracy"]


def test_a_round_is_chosen_by_the_earliest_best_validation_score():
    scores = {1: 0.5, 3: 0.8, 2: 0.8, 7: 0.1}
    assert choose_round({r: ValidationScore(value) for r, value in scores.items()}) == 2
    assert choose_round({}) is None
    with pytest.raises(AttributeError):  # a test number is no validation score
        choose_round(scores)


# -- what a protocol adds ------------------------------------------------------------------------


def besides(name, seed, *, held=None, num_classes=NUM_CLASSES) -> Target:
    rows = np.arange(60) + 100 * seed if held is None else np.unique(held.rows)
    labels = np.full(NUM_ROWS, -1)
    labels[rows] = np.random.default_rng(seed).integers(0, num_classes, len(rows))
    classes = tuple(f"class {c}" for c in range(num_classes))
    return Target(name, "toy", classes, ("{}",), labels, rows, by_client=held)


def test_a_target_that_all_share_is_described_and_own_models_are_averaged(population, home):
    target = besides("held_out", 2, num_classes=3)
    p_shared = probabilities(5, num_classes=3)
    p_own = {c: probabilities(100 + c, num_classes=3) for c in (0, 4, 9)}
    own = [
        scored(p_own[c], target.labels, target.rows) if c in p_own else None
        for c in range(NUM_CLIENTS)
    ]
    exam = Exam(target, scored(p_shared, target.labels, target.rows), own)
    flat = measure(population, [home, exam], None).flat
    truth = target.labels[target.rows]
    assert_described(flat, "eval/held_out", described(p_shared[target.rows], truth))
    means = [(p[target.rows].argmax(axis=1) == truth).mean() for p in p_own.values()]
    assert flat["eval/held_out/personal_accuracy"] == pytest.approx(np.mean(means))
    alone = measure(population, [home, replace(exam, own=None)], None).flat
    assert "eval/held_out/personal_accuracy" not in alone
    local = measure(population, [home, replace(exam, shared=None)], None).flat
    assert [n for n in local if "held_out" in n] == ["eval/held_out/personal_accuracy"]


def test_a_target_by_client_is_averaged_over_clients_that_have_rows(population, home):
    held = ClientRows.of([np.arange(c, 40 * (c % 3), 7) for c in range(NUM_CLIENTS)])
    target = besides("neighbours", 0, held=held)
    p = probabilities(6)
    exam = Exam(target, scored(p, target.labels, target.rows), own_models(population, target))
    flat = measure(population, [home, exam], None).flat
    known = [c for c in range(NUM_CLIENTS) if len(held[c])]
    assert 0 < len(known) < NUM_CLIENTS

    def right(p, client):
        return (p[held[client]].argmax(axis=1) == target.labels[held[client]]).mean()

    shared = np.mean([right(p, c) for c in known])
    own = np.mean([right(probabilities(100 + c), c) for c in known if c not in UNSEEN])
    assert flat["eval/neighbours/accuracy"] == pytest.approx(shared)
    assert flat["eval/neighbours/personal_accuracy"] == pytest.approx(own)


def test_harmonic_means_of_base_to_novel_for_the_shared_model_and_for_own_ones(population, home):
    local = besides("local", 0, held=population.test)
    exams = [home]
    for target in (besides("base", 1), besides("novel", 2), local):
        shared = scored(probabilities(7), target.labels, target.rows)
        exams.append(Exam(target, shared, own_models(population, target)))
    flat = measure(population, exams, None).flat
    for kind, suffix in (("", "accuracy"), ("personal_", "personal_accuracy")):
        b, n, m = (flat[f"eval/{name}/{suffix}"] for name in ("base", "novel", "local"))
        hm2 = 2 / (1 / b + 1 / n)
        assert flat[f"eval/base_to_novel/{kind}hm2"] == pytest.approx(hm2)
        assert flat[f"eval/base_to_novel/{kind}hm3"] == pytest.approx(3 / (1 / m + 1 / b + 1 / n))
        assert flat[f"eval/base_to_novel/{kind}cm"] == pytest.approx((m + hm2) / 2)
    without_novel = measure(population, [home, exams[1], exams[3]], None).flat
    assert not any("base_to_novel" in name for name in without_novel)


@pytest.mark.parametrize("has_own", [True, False])
def test_the_participation_gap_is_between_clients_that_trained_and_newcomers(
    population, home, has_own
):
    nothing = np.empty(0, dtype=np.int64)
    rows = [population.test[c] if c in UNSEEN else nothing for c in range(NUM_CLIENTS)]
    target = replace(besides("unseen", 0, held=ClientRows.of(rows)), labels=population.labels)
    p = probabilities(8)
    own = own_models(population, target, UNSEEN) if has_own else None
    exam = Exam(target, scored(p, target.labels, target.rows), own)
    flat = measure(population, [home, exam], None).flat
    used = [probabilities(100 + c) if has_own else p for c in UNSEEN]
    pairs = zip(used, UNSEEN, strict=True)
    theirs = np.mean(
        [(q[rows[c]].argmax(1) == population.labels[rows[c]]).mean() for q, c in pairs]
    )
    name = "personal_accuracy" if has_own else "accuracy"
    assert flat[f"eval/unseen/{name}"] == pytest.approx(theirs)
    ours = np.mean(list(accuracies(population, lambda c: probabilities(100 + c)).values()))
    assert flat["eval/unseen/participation_gap"] == pytest.approx(ours - theirs)


# -- references ----------------------------------------------------------------------------------


def test_a_reference_has_the_same_numbers_under_its_own_name(population, home):
    exam = replace(home, own=None)
    ours, reference = measure(population, [exam], None), measure_reference(population, "x", [exam])
    expected = {n.replace("eval/", "reference/x/"): v for n, v in ours.flat.items()}
    del expected["reference/x/validation/accuracy"]
    assert reference.flat == expected
    assert reference.by_client == {"reference/x/personal/accuracy": ours.by_client[OWN]}
    assert reference.validation is None


def test_a_domain_called_validation_keeps_its_numbers(population, home):
    named = replace(population, domains=("flat", "validation"))
    exam = replace(home, own=None)
    reference = measure_reference(named, "zero_shot", [exam])
    assert "reference/zero_shot/domain/validation/accuracy" in reference.flat
    gains = compare_with_zero_shot(measure(named, [exam], None).flat, reference.flat)
    assert gains["eval/domain/validation/over_zero_shot"] == 0
    assert "eval/validation/over_zero_shot" not in gains


def test_over_zero_shot_is_the_difference_on_each_target_that_both_have():
    ours = {"eval/novel/accuracy": 0.5, "eval/global/accuracy": 0.75, "eval/novel/nll": 1.0}
    ours |= {"eval/novel/personal_accuracy": 0.4, "eval/dataset/flags/accuracy": 0.25}
    theirs = {"reference/zero_shot/novel/accuracy": 0.625, "reference/zero_shot/novel/nll": 2.0}
    theirs |= {"reference/zero_shot/dataset/flags/accuracy": 0.125}
    theirs |= {"reference/zero_shot_ensemble/global/accuracy": 0.5}
    found = compare_with_zero_shot(ours, theirs)
    assert found == {
        "eval/novel/over_zero_shot": -0.125,
        "eval/dataset/flags/over_zero_shot": 0.125,
    }


def test_the_majority_class_is_of_what_is_trained_on_and_scored_on_those_who_train(population):
    rows = [population.train[c] for c in range(NUM_CLIENTS) if c not in UNSEEN]
    counts = np.bincount(population.labels[np.concatenate(rows)])
    often = int(np.flatnonzero(counts == counts.max())[0])
    tests = [population.test[c] for c in range(NUM_CLIENTS) if c not in UNSEEN]
    own = [(population.labels[part] == often).mean() for part in tests if len(part)]
    assert measure_majority(population) == pytest.approx(
        {
            "reference/majority/global/accuracy": (
                population.labels[population.global_test] == often
            ).mean(),
            "reference/majority/personal/accuracy": np.mean(own),
        }
    )


# -- answers in words --------------------------------------------------------------------------


def answers(seed, rows) -> Written:
    """Made-up scores of the rows: exact match 0 or 1, ROUGE and nll as they come."""
    draws = np.random.default_rng(seed).random((NUM_ROWS, 5)).astype("f4")[rows]
    exact = (draws[:, 0] > 0.7).astype("f4")
    return Written(rows, exact, *draws[:, 1:].T)


def test_answers_are_judged_by_the_headline_that_was_asked_for(population):
    target = home_of(population)
    shared = answers(0, target.rows)
    own = [None if c in UNSEEN else answers(c, target.client_rows(c)) for c in range(NUM_CLIENTS)]
    measured = measure(population, [Exam(target, shared, own)], None, "rougeL")
    whole = shared.of(population.global_test)
    assert measured.flat["eval/global/exact_match"] == pytest.approx(whole.exact_match.mean())
    assert measured.flat["eval/global/rouge2"] == pytest.approx(whole.rouge2.mean())
    assert measured.flat["eval/global/rougeL"] == pytest.approx(whole.rouge_l.mean())
    means = [
        None if c in (*UNSEEN, BARE) else own[c].of(population.test[c]).rouge_l.mean()
        for c in range(NUM_CLIENTS)
    ]
    assert measured.by_client == {"eval/personal/rougeL": pytest.approx(means)}
    known = [value for value in means if value is not None]
    assert measured.flat["eval/personal/rougeL"] == pytest.approx(np.mean(known))
    assert measured.flat["eval/personal/worst_rougeL"] == pytest.approx(min(known))
    seen = [own[c].of(population.validation[c]).rouge_l for c in range(NUM_CLIENTS) if own[c]]
    assert measured.validation.value == pytest.approx(np.concatenate(seen).mean())
    pooled = [own[c].of(population.test[c]).exact_match for c in range(NUM_CLIENTS) if own[c]]
    expected = np.concatenate(pooled).mean()
    assert measured.flat["eval/personal/exact_match"] == pytest.approx(expected)
    assert measured.confusion is None
    assert not [name for name in measured.flat if "accuracy" in name or name.endswith("/ece")]
    domain = population.domain_ids[whole.rows] == 1
    found = measured.flat["eval/domain/line/rougeL"]
    assert found == pytest.approx(whole.rouge_l[domain].mean())


def test_the_reference_of_answers_is_compared_on_their_headline(population):
    target = home_of(population)
    ours, theirs = answers(0, target.rows), answers(1, target.rows)
    asked = "exact_match"
    reference = measure_reference(population, "zero_shot", [Exam(target, theirs)], asked)
    measured = measure(population, [Exam(target, ours)], None, asked)
    assert f"reference/zero_shot/validation/{asked}" not in reference.flat
    gains = compare_with_zero_shot(measured.flat, reference.flat, asked)
    both = (s.of(population.global_test).exact_match.mean() for s in (ours, theirs))
    assert gains["eval/global/over_zero_shot"] == pytest.approx(next(both) - next(both))


def test_nothing_scored_is_of_the_kind_that_the_run_scores():
    rows = np.empty(0, dtype=np.int64)
    assert isinstance(nothing_scored(rows, "accuracy"), Scored)
    assert isinstance(nothing_scored(rows, "rougeL"), Written)
    assert nothing_scored(rows, "accuracy").predicted.dtype == np.int32
