"""Tasks in families: choosing among a task's own classes, and leaving tasks and families out."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl_core.errors import DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.dataset import TEST, TRAIN
from scenarios.majority import measure_majority
from scenarios.partitions import Domain, Iid
from scenarios.population import Population
from scenarios.protocols import BaseToNovel, LeaveTaskOut, Standard
from scenarios.scenario import Scenario, build_population, build_targets
from scenarios.targets import candidates_among, refuse_overlap

FAMILIES = ("grammar", "inference", "meaning", "sentiment")


@pytest.fixture(scope="module")
def texts():
    return load_dataset("text_families")


def build(dataset, protocol, **settings):
    settings = {"num_clients": 8, "partition": Domain(), "protocol": protocol} | settings
    scenario = Scenario(dataset.name, **settings)
    population = build_population(scenario, dataset)
    targets = build_targets(scenario, dataset, population, {}.__getitem__)
    refuse_overlap(dataset, population, [(target, dataset) for target in targets[1:]])
    return population, {target.name: target for target in targets}


def in_family(dataset, name):
    return np.array(dataset.families)[dataset.domain_ids] == name


def learned(population):
    parts = (population.train.rows, population.validation.rows, population.global_validation)
    return np.unique(np.concatenate(parts))


def test_all_packaged_tasks_are_there_with_the_classes_that_their_rows_have(texts):
    assert len(texts.domains) == 8
    assert sorted(set(texts.families)) == list(FAMILIES)
    assert in_family(texts, "sentiment").sum() == 5600
    for code in range(8):
        held = np.unique(texts.labels[texts.domain_ids == code])
        assert np.flatnonzero(texts.candidates[code]).tolist() == held.tolist()


def test_no_text_that_any_task_tests_on_is_among_those_to_train_on(texts):
    texts_of = {
        split: {texts.text(int(row)) for row in np.flatnonzero(texts.split == split)}
        for split in (TRAIN, TEST)
    }
    assert not texts_of[TRAIN] & texts_of[TEST]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_left_out_as_a_whole_and_each_task_scored_among_its_own_classes(texts, family):
    num_left = sum(name != family for name in texts.families)
    population, targets = build(texts, LeaveTaskOut(task=family), num_clients=num_left)
    inside = in_family(texts, family)
    assert not inside[learned(population)].any()
    assert not inside[population.global_test].any()
    held_out = targets["held_out"]
    assert held_out.rows.tolist() == np.flatnonzero(inside & (texts.split == TEST)).tolist()
    names = {texts.classes[label] for label in texts.labels[inside]}
    assert held_out.classes == tuple(sorted(names))
    masks = held_out.row_candidates()
    for row, mask in zip(held_out.rows[::37], masks[::37], strict=True):
        same_task = texts.labels[texts.domain_ids == texts.domain_ids[row]]
        own = {texts.classes[label] for label in same_task}
        assert {held_out.classes[c] for c in np.flatnonzero(mask)} == own
    texts_held = {bytes(h) for h in texts.content_hashes[held_out.rows]}
    assert not texts_held & {bytes(h) for h in texts.content_hashes[learned(population)]}


def test_one_task_is_left_out_and_its_family_stays(texts):
    population, targets = build(texts, LeaveTaskOut(task="sentiment_news"), num_clients=7)
    rows = learned(population)
    left = {texts.domains[code] for code in texts.domain_ids[rows]}
    assert left == {*texts.domains} - {"sentiment_news"}
    assert targets["held_out"].classes == ("negative", "positive")


def test_there_is_a_client_for_each_task_that_is_trained_on(texts):
    population, _ = build(texts, LeaveTaskOut(task="meaning"), num_clients=6)
    counts = population.domain_histogram()
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert sorted(np.argmax(counts, axis=1).tolist()) == [
        code for code, family in enumerate(texts.families) if family != "meaning"
    ]
    assert ((population.domain_histogram("test") > 0) == (counts > 0)).all()


def test_home_rows_too_are_chosen_from_the_classes_of_their_task(texts):
    population, targets = build(texts, LeaveTaskOut(task="grammar"), num_clients=7)
    home = targets["home"]
    assert home.classes == population.classes
    masks = home.row_candidates()
    place = np.arange(len(home.rows))
    assert masks[place, home.labels[home.rows]].all()
    number = {name: int(texts.candidates[code].sum()) for code, name in enumerate(texts.domains)}
    sizes = [number[texts.domains[code]] for code in texts.domain_ids[home.rows]]
    assert masks.sum(axis=1).tolist() == sizes


def test_a_clients_own_model_chooses_row_by_row_where_its_rows_differ_in_task(texts):
    _, targets = build(texts, Standard(), num_clients=3, partition=Iid())
    home, clients = targets["home"], (2, 0)
    rows = [home.client_rows(client)[:40] for client in clients]
    rows[1] = rows[1][:25]
    masks = home.own_candidates(clients, rows)
    assert masks.shape == (2, 40, len(home.classes))
    for lane, own in enumerate(rows):
        assert (masks[lane, : len(own)] == texts.candidates[texts.domain_ids[own]]).all()
        assert masks[lane, len(own) :].all()


def test_without_tasks_candidates_stay_with_the_clients(texts):
    plain = replace(texts, families=(), candidates=None)
    _, targets = build(plain, BaseToNovel(), num_clients=3, partition=Iid())
    assert targets["home"].row_candidates() is None
    local = targets["local"]
    assert np.array_equal(local.own_candidates((2, 1), ()), local.candidates[[2, 1]])
    _, targets = build(texts, BaseToNovel(), num_clients=3, partition=Iid())
    assert targets["local"].tasks is None
    novel = targets["novel"]
    assert novel.row_candidates()[np.arange(len(novel.rows)), novel.labels[novel.rows]].all()


def test_candidates_follow_the_names_of_classes(texts):
    found = candidates_among(texts, ("yes", "unheard of", "negative"))
    of = dict(zip(texts.domains, found.tolist(), strict=True))
    assert of["kind_of"] == [True, False, False]
    assert of["sentiment_films"] == [False, False, True]
    assert of["part_of_speech"] == [False, False, False]


def test_the_majority_of_a_task_is_named_and_of_a_held_out_one_that_of_its_tests(texts):
    population, targets = build(texts, LeaveTaskOut(task="sentiment_news"), num_clients=7)
    found = measure_majority(population, list(targets.values()))
    right = []
    for code in range(8):
        train = population.train.rows[texts.domain_ids[population.train.rows] == code]
        tests = population.global_test[texts.domain_ids[population.global_test] == code]
        if len(train):
            often = np.bincount(texts.labels[train], minlength=27).argmax()
            right += (texts.labels[tests] == often).tolist()
    assert found["reference/majority/global/accuracy"] == pytest.approx(np.mean(right))
    labels = texts.labels[targets["held_out"].rows]
    expected = np.bincount(labels).max() / len(labels)
    assert found["reference/majority/held_out/accuracy"] == pytest.approx(expected)
    assert measure_majority(population)["reference/majority/global/accuracy"] < np.mean(right)


def test_a_wrong_name_is_refused_with_tasks_and_families(texts):
    with pytest.raises(DataError, match=r"task = 'meanings'.*kind_of.*sentiment.*'meaning'"):
        build(texts, LeaveTaskOut(task="meanings"))
    only = load_dataset("text_sentiment")
    with pytest.raises(DataError, match="is not one of several tasks"):
        build(only, LeaveTaskOut(task="sentiment"))


def test_a_text_of_the_held_out_task_among_the_training_rows_is_refused(texts):
    held = np.flatnonzero(in_family(texts, "grammar") & (texts.split == TEST))[0]
    trained = np.flatnonzero(in_family(texts, "inference") & (texts.split == TRAIN))
    hashes = texts.content_hashes.copy()
    hashes[trained] = hashes[held]
    planted = replace(texts, content_hashes=hashes)
    with pytest.raises(DataError, match=r"texts of held_out .* also trained or validated on"):
        build(planted, LeaveTaskOut(task="grammar"), num_clients=7)


def test_a_population_of_tasks_comes_back_equal(texts, tmp_path):
    population, _ = build(texts, LeaveTaskOut(task="meaning"), num_clients=6)
    population.save(tmp_path / "population.parquet")
    assert Population.load(tmp_path / "population.parquet").hash == population.hash


# -- tables of one's own -------------------------------------------------------------------------


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def own(tmp_path):
    return write(
        tmp_path / "own.parquet",
        text=[f"text {row}" for row in range(8)],
        label=["a", "b", "a", "b", "c", "d", "c", "d"],
        domain=["one"] * 4 + ["two"] * 4,
        family=["letters"] * 8,
    )


def test_a_column_is_the_family_only_where_it_is_named(own):
    assert load_dataset(own).candidates is None
    tasks = load_dataset(f"{own}?family=family")
    assert tasks.families == ("letters", "letters")
    assert tasks.candidates.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert tasks.fingerprint != load_dataset(own).fingerprint


def test_families_that_contradict_the_domains_are_refused(tmp_path, own):
    table = {"text": ["a", "b"], "label": ["x", "y"], "task": ["t", "t"], "kind": ["k", "l"]}
    path = write(tmp_path / "two.parquet", **table)
    with pytest.raises(DataError, match="domain t is of family k, and of family l"):
        load_dataset(f"{path}?domain=task&family=kind")
    with pytest.raises(DataError, match="a family is of domains"):
        load_dataset(f"{path}?family=kind")
    tasks = load_dataset(f"{own}?family=family")
    with pytest.raises(DataError, match="is a task, and also a family of several"):
        replace(tasks, families=("one", "one"))
    with pytest.raises(DataError, match="must be given together"):
        replace(tasks, candidates=None)
    with pytest.raises(DataError, match="label is not among the classes of its task"):
        replace(tasks, candidates=~tasks.candidates)
