"""Protocols: which rows may be trained on, what is scored besides, and under which names."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from fl_core.errors import ConfigError, DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED, Dataset
from scenarios.partitions import DisjointClasses, Iid
from scenarios.population import Population
from scenarios.protocols import (
    BaseToNovel,
    CrossDataset,
    LeaveDomainOut,
    LeaveTaskOut,
    Protocol,
    Standard,
    UnseenClients,
)
from scenarios.scenario import Scenario, build_population, build_targets
from scenarios.targets import HOME, refuse_overlap

CLASSES, DOMAINS = ("ant", "bee", "cow", "dog", "eel"), ("flat", "line", "photo")
PROTOCOLS: list[Protocol] = [
    Standard(neighbours=2),
    BaseToNovel(),
    LeaveDomainOut(domain="line"),
    LeaveTaskOut(task="photo"),
    CrossDataset(datasets=("other",)),
    UnseenClients(fraction=0.5),
]
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)


class NoItems:
    def read(self, row: int) -> bytes:
        raise OSError("there are no items")

    def where(self, row: int) -> str:
        return f"row {row}"


def made(name="toy", classes=CLASSES, domains=DOMAINS, num_concepts=20, first_hash=0) -> Dataset:
    """Each concept of each class once in each domain, shuffled; 3 in 10 concepts are for tests."""
    grid = np.indices((len(classes), len(domains), num_concepts)).reshape(3, -1)
    order = np.random.default_rng(0).permutation(grid.shape[1])
    labels, domain_ids, concepts = grid[:, order]
    hashes = np.zeros((len(order), 32), dtype=np.uint8)
    hashes[:, :8] = np.arange(first_hash, first_hash + len(order), dtype="<i8")[:, None].view("u1")
    return Dataset(
        name=name,
        classes=classes,
        templates=("a {}",),
        labels=labels,
        domains=domains,
        domain_ids=domain_ids,
        concept_ids=labels * num_concepts + concepts,
        split=np.where(concepts >= 0.7 * num_concepts, TEST, TRAIN).astype(np.int8),
        content_hashes=hashes,
        items=NoItems(),
    )


@pytest.fixture
def toy() -> Dataset:
    return made()


@pytest.fixture
def other() -> Dataset:
    return made("other", ("cow", "fig", "oak"), ("photo",), first_hash=10**6)


def build(protocol, dataset, other=None, **settings):
    """The population and the targets by name; other data sets are ``other``."""
    settings = {"num_clients": 4, "partition": Iid(), "protocol": protocol} | settings
    scenario = Scenario(dataset="toy", **settings)
    population = build_population(scenario, dataset)
    data = {"toy": dataset, "other": other}
    targets = build_targets(scenario, dataset, population, data.__getitem__)
    refuse_overlap(dataset, population, [(t, data[t.dataset]) for t in targets[1:]])
    return population, {target.name: target for target in targets}


def learned(population):
    parts = (population.train.rows, population.validation.rows, population.global_validation)
    return np.unique(np.concatenate(parts))


# -- laws over every protocol --------------------------------------------------------------------


def test_the_laws_here_cover_every_protocol():
    assert {type(protocol) for protocol in PROTOCOLS} == set(get_args(Protocol))


@EVERY
@pytest.mark.parametrize("split", ["given", "none"])
def test_no_row_image_or_concept_is_both_learned_and_tested(protocol, toy, other, split):
    if split == "none":
        toy = replace(toy, split=np.full(len(toy), UNSPECIFIED, dtype=np.int8))
    population, targets = build(protocol, toy, other)
    rows = learned(population)
    assert len(rows)
    tests = [population.global_test, population.test.rows]
    tests += [t.rows for name, t in targets.items() if name != HOME and t.dataset == "toy"]
    for test in tests:
        assert len(test)
        assert not np.intersect1d(rows, test).size
        assert not np.intersect1d(toy.concept_ids[rows], toy.concept_ids[test]).size


@EVERY
def test_a_label_means_the_class_that_the_data_give_the_row(protocol, toy, other):
    population, targets = build(protocol, toy, other)
    for target in targets.values():
        data = other if target.dataset == "other" else toy
        scored = target.rows if target.name != HOME else population.global_test
        names = [target.classes[label] for label in target.labels[scored]]
        assert names == [data.classes[label] for label in data.labels[scored]]
    used = np.concatenate([population.train.rows, population.global_test])
    names = [population.classes[label] for label in population.labels[used]]
    assert names == [toy.classes[label] for label in toy.labels[used]]
    assert (np.delete(population.labels, np.union1d(used, learned(population))) == -1).all()


@EVERY
def test_a_population_of_every_protocol_comes_back_equal(protocol, toy, other, tmp_path):
    population, _ = build(protocol, toy, other)
    population.save(tmp_path / "population.parquet")
    again = Population.load(tmp_path / "population.parquet")
    assert again.hash == population.hash
    assert again.unseen.tolist() == population.unseen.tolist()
    assert again.classes == population.classes
    assert again.participants().hash == population.participants().hash


def test_a_protocol_that_changes_who_has_what_changes_the_hash(toy, other):
    hashes = [build(protocol, toy, other)[0].hash for protocol in (Standard(), *PROTOCOLS)]
    same = [name == hashes[0] for name in hashes]
    # Neighbours and other data sets are scored besides, and nobody's rows change.
    assert same == [True, True, False, False, False, True, False]
    assert len(set(hashes)) == 5
    half, fifth = (build(UnseenClients(fraction=f), toy)[0].hash for f in (0.5, 0.25))
    assert half != fifth


# -- base to novel -------------------------------------------------------------------------------


def test_the_base_is_the_larger_half_of_an_odd_number_of_classes(toy):
    population, targets = build(BaseToNovel(), toy)
    assert population.classes == ("ant", "bee", "cow")
    assert targets["base"].classes == population.classes
    assert targets["novel"].classes == ("dog", "eel")
    assert (toy.labels[learned(population)] < 3).all()
    tests = toy.split == TEST
    assert targets["novel"].rows.tolist() == np.flatnonzero(tests & (toy.labels >= 3)).tolist()
    assert targets["base"].rows.tolist() == np.flatnonzero(tests & (toy.labels < 3)).tolist()
    assert targets["base"].rows.tolist() == population.global_test.tolist()


def test_clients_with_disjoint_classes_choose_among_their_own(toy):
    population, targets = build(BaseToNovel(), toy, num_clients=3, partition=DisjointClasses())
    local = targets["local"]
    assert local.candidates.sum(axis=1).tolist() == [1, 1, 1]
    for client in range(3):
        (held,) = np.flatnonzero(local.candidates[client])
        assert (population.labels[population.train[client]] == held).all()
        assert (population.labels[local.client_rows(client)] == held).all()
    masks = local.row_candidates()
    assert masks[np.arange(len(local.rows)), local.labels[local.rows]].all()
    assert (masks.sum(axis=1) == 1).all()


@pytest.mark.parametrize("classes", [("ant",), ("ant", "bee"), ("ant", "bee", "cat")])
def test_base_and_novel_have_two_classes_each(classes):
    """Among one class every answer is right."""
    few = made(classes=classes)
    with pytest.raises(DataError, match=rf"needs 4 classes or more, .* has {len(classes)}\."):
        build(BaseToNovel(), few)


def test_packaged_base_to_novel_of_an_odd_number_of_names():
    emoji = load_dataset("emoji_fine")
    assert len(emoji.classes) == 947
    population, targets = build(BaseToNovel(), emoji)
    assert len(population.classes) == len(targets["base"].classes) == 474
    novel = targets["novel"]
    assert novel.classes == emoji.classes[474:]
    assert (novel.labels[novel.rows] == emoji.labels[novel.rows] - 474).all()
    assert (
        novel.rows.tolist() == np.flatnonzero((emoji.labels >= 474) & (emoji.split == 1)).tolist()
    )


# -- a domain or a task is left out --------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_held_out_domain_is_not_learned_from_and_its_tests_are_scored(toy, domain):
    population, targets = build(LeaveDomainOut(domain=domain), toy)
    inside = toy.domain_ids == DOMAINS.index(domain)
    assert not inside[learned(population)].any()
    assert not inside[population.global_test].any()
    held_out = targets["held_out"]
    assert held_out.rows.tolist() == np.flatnonzero(inside & (toy.split == TEST)).tolist()
    assert held_out.classes == CLASSES


def test_packaged_styles_are_left_out_one_by_one():
    emoji = load_dataset("emoji_coarse")
    for domain in emoji.domains:
        population, targets = build(LeaveDomainOut(domain=domain), emoji)
        rows, tests = learned(population), targets["held_out"].rows
        assert domain not in {emoji.domains[code] for code in emoji.domain_ids[rows]}
        assert {emoji.domains[code] for code in emoji.domain_ids[tests]} == {domain}
        assert not np.intersect1d(emoji.concept_ids[rows], emoji.concept_ids[tests]).size


def test_a_domain_that_the_data_lack_is_refused_with_those_they_have(toy):
    with pytest.raises(DataError, match=r"protocol\.domain = 'lines'.*flat, line, photo.*'line'"):
        build(LeaveDomainOut(domain="lines"), toy)
    with pytest.raises(DataError, match=r"protocol\.task = ''"):
        build(LeaveTaskOut(), toy)
    with pytest.raises(DataError, match="not one of several domains"):
        build(LeaveDomainOut(domain="all"), made(domains=("all",)))


def test_classes_of_the_held_out_domain_alone_are_refused_by_name(toy):
    lonely = (toy.labels == 4) & (toy.domain_ids != 1)
    labels = np.where(lonely, 3, toy.labels)
    concepts = np.where(lonely, toy.concept_ids + 1000, toy.concept_ids)
    with pytest.raises(
        DataError, match=r"1 classes stand in domain 'line' only, such as \['eel'\]"
    ):
        build(LeaveDomainOut(domain="line"), replace(toy, labels=labels, concept_ids=concepts))


def test_a_task_left_out_has_its_own_classes():
    """Three tasks, of ant and bee, of bee and cow, of dog and eel."""
    toy = made(classes=CLASSES, num_concepts=30)
    of_task = [(0, 1), (1, 2), (3, 4)]
    pairs = zip(toy.labels, toy.domain_ids, strict=True)
    kept = np.array([label in of_task[domain] for label, domain in pairs])
    rows = np.flatnonzero(kept)
    columns = ("labels", "domain_ids", "concept_ids", "split", "content_hashes")
    tasks = replace(toy, **{name: vars(toy)[name][rows] for name in columns})
    population, targets = build(LeaveTaskOut(task="line"), tasks)
    assert population.classes == ("ant", "bee", "dog", "eel")
    assert targets["held_out"].classes == ("bee", "cow")
    tests = np.flatnonzero((tasks.domain_ids == 1) & (tasks.split == TEST))
    assert targets["held_out"].rows.tolist() == tests.tolist()
    names = np.array(targets["held_out"].classes)[targets["held_out"].labels[tests]]
    assert names.tolist() == [CLASSES[label] for label in tasks.labels[tests]]


def test_packaged_flags_in_one_style_are_a_task():
    flags = load_dataset("flags")
    population, targets = build(LeaveTaskOut(task="cif"), flags)
    own = sorted({flags.classes[label] for label in flags.labels[flags.domain_ids == 0]})
    assert list(targets["held_out"].classes) == own
    assert not (flags.domain_ids[learned(population)] == 0).any()


# -- other data sets -----------------------------------------------------------------------------


def test_other_data_sets_are_scored_by_their_own_names(toy, other):
    population, targets = build(CrossDataset(datasets=("other",)), toy, other)
    target = targets["dataset/other"]
    assert target.classes == ("cow", "fig", "oak")
    assert target.rows.tolist() == np.flatnonzero(other.split == TEST).tolist()
    assert population.classes == CLASSES
    whole = replace(other, split=np.full(len(other), UNSPECIFIED, dtype=np.int8))
    _, targets = build(CrossDataset(datasets=("other",)), toy, whole)
    assert len(targets["dataset/other"].rows) == len(other)


def test_packaged_flags_are_scored_after_training_on_emoji():
    emoji, flags = load_dataset("emoji_coarse"), load_dataset("flags")
    _, targets = build(CrossDataset(datasets=("other",)), emoji, flags)
    assert targets["dataset/flags"].classes == flags.classes
    assert len(targets["dataset/flags"].rows) == 284


def test_no_data_set_and_two_of_one_name_are_refused(toy, other):
    with pytest.raises(DataError, match=r"datasets is empty"):
        build(CrossDataset(), toy)
    with pytest.raises(DataError, match=r"'other' and 'other' are both called 'other'"):
        build(CrossDataset(datasets=("other", "other")), toy, other)


def test_a_planted_duplicate_in_another_data_set_is_refused_by_row(toy, other):
    population, _ = build(Standard(), toy)
    row, trained = int(np.flatnonzero(other.split == TEST)[3]), int(population.train.rows[0])
    hashes = other.content_hashes.copy()
    hashes[row] = toy.content_hashes[trained]
    twin = replace(other, content_hashes=hashes)
    with pytest.raises(DataError, match=rf"1 of the 18 images of dataset/other .*rows \[{row}\]"):
        build(CrossDataset(datasets=("other",)), toy, twin)


def test_a_planted_duplicate_between_base_and_novel_is_refused(toy):
    trained = np.flatnonzero((toy.labels == 0) & (toy.split == TRAIN))[0]
    tested = int(np.flatnonzero((toy.labels == 4) & (toy.split == TEST))[0])
    hashes = toy.content_hashes.copy()
    hashes[tested] = hashes[trained]
    with pytest.raises(DataError, match=rf"images of novel \(toy\) are also.*rows \[{tested}\]"):
        build(BaseToNovel(), replace(toy, content_hashes=hashes), validation_fraction=0.0)


def test_a_concept_that_reaches_from_training_into_the_held_out_tests_is_refused(toy):
    trained = np.flatnonzero((toy.domain_ids == 0) & (toy.split == TRAIN))[0]
    tested = int(np.flatnonzero((toy.domain_ids == 1) & (toy.split == TEST))[0])
    concepts = toy.concept_ids.copy()
    concepts[tested] = concepts[trained]
    with pytest.raises(DataError, match=rf"held_out \(toy\) show a concept .*rows \[{tested}\]"):
        build(LeaveDomainOut(domain="line"), replace(toy, concept_ids=concepts))


# -- unseen clients and neighbours ---------------------------------------------------------------


def test_unseen_clients_hold_rows_and_never_train_or_validate(toy):
    population, targets = build(UnseenClients(fraction=0.4), toy, num_clients=5)
    assert len(population.unseen) == 2
    seen = np.setdiff1d(np.arange(5), population.unseen)
    trained = population.participants()
    assert (trained.train.counts[population.unseen] == 0).all()
    assert (trained.train.counts[seen] == population.train.counts[seen]).all()
    assert (population.train.counts > 0).all()
    theirs = np.concatenate([population.validation[int(c)] for c in population.unseen])
    assert len(theirs)
    assert not np.intersect1d(population.global_validation, theirs).size
    others = np.sort(np.concatenate([population.validation[int(c)] for c in seen]))
    assert others.tolist() == population.global_validation.tolist()
    for client in range(5):
        expected = population.test[client].tolist() if client in population.unseen else []
        assert targets["unseen"].client_rows(client).tolist() == expected
    assert trained.pooled().train.rows.tolist() == np.sort(trained.train.rows).tolist()


def test_who_is_unseen_is_drawn_by_the_seed_of_the_data_alone(toy):
    drawn = [build(UnseenClients(), toy, num_clients=20, seed=s)[0].unseen for s in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert len(drawn[0]) == 4
    assert len(build(UnseenClients(fraction=0.0), toy)[0].unseen) == 1


def test_somebody_must_be_left_to_train(toy):
    with pytest.raises(DataError, match=r"fraction = 0\.9: of 4 clients at least one must be left"):
        build(UnseenClients(fraction=0.9), toy)
    with pytest.raises(ConfigError, match=r"fraction = 1.*\n.*adapt_steps = 0"):
        UnseenClients(fraction=1.0, adapt_steps=0)


def test_packaged_clients_stay_away():
    fashion = load_dataset("fashion_mnist")
    population, targets = build(UnseenClients(fraction=0.25), fashion, num_clients=8)
    assert len(population.unseen) == 2
    held = [population.test[int(client)] for client in population.unseen]
    assert targets["unseen"].rows.tolist() == np.sort(np.concatenate(held)).tolist()


@pytest.mark.parametrize("num_neighbours", [1, 3])
def test_neighbours_are_other_clients_with_all_of_their_test_rows(toy, num_neighbours):
    population, targets = build(Standard(neighbours=num_neighbours), toy, num_clients=6)
    owner = np.full(len(toy), -1)
    owner[population.test.rows] = population.test.owners
    for client in range(6):
        rows = targets["neighbours"].client_rows(client)
        chosen = np.unique(owner[rows])
        assert len(chosen) == num_neighbours
        assert client not in chosen
        assert len(rows) == population.test.counts[chosen].sum()


def test_as_many_neighbours_as_clients_are_refused(toy):
    with pytest.raises(DataError, match=r"neighbours = 4: with 4 clients it must be at most 3"):
        build(Standard(neighbours=4), toy)


# -- manifests -----------------------------------------------------------------------------------


def test_a_manifest_goes_with_the_protocol_it_was_built_for(toy, tmp_path):
    path = tmp_path / "population.parquet"
    build(UnseenClients(fraction=0.5), toy)[0].save(path)
    for protocol in (Standard(), BaseToNovel(), UnseenClients(fraction=0.25)):
        with pytest.raises(DataError, match=r"scenario\.protocol = .*but it was built with .*0\.5"):
            build_population(Scenario(manifest=path, protocol=protocol), toy)
    same = Scenario(manifest=path, protocol=UnseenClients(fraction=0.5))
    assert len(build_population(same, toy).unseen) == 2


@pytest.mark.parametrize("protocol", [Standard(neighbours=1), LeaveDomainOut(domain="line")])
def test_a_manifest_is_scored_on_what_it_was_built_with(toy, tmp_path, protocol):
    """Also where the scenario leaves out the seed, and the test rows were drawn."""
    toy = replace(toy, split=np.full(len(toy), UNSPECIFIED, dtype=np.int8))
    path = tmp_path / "population.parquet"
    population, targets = build(protocol, toy, seed=7, test_fraction=0.4)
    population.save(path)
    scenario = Scenario(dataset="toy", manifest=path, protocol=protocol)
    again = build_targets(scenario, toy, build_population(scenario, toy), {}.__getitem__)
    for target in again:
        assert target.rows.tolist() == targets[target.name].rows.tolist()
        for client in range(4):
            rows = targets[target.name].client_rows(client)
            assert target.client_rows(client).tolist() == rows.tolist()
