"""Laws over every partition once it has become a population; and manifests that are used again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from fl_core.errors import DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.dataset import TEST, TRAIN, Dataset
from scenarios.partitions import (
    Continuous,
    Dirichlet,
    DisjointClasses,
    Domain,
    DomainDirichlet,
    Exponential,
    Iid,
    InnerDirichlet,
    Linear,
    LogNormal,
    Natural,
    Partition,
    Pathological,
    Shards,
    Square,
)
from scenarios.population import Population
from scenarios.scenario import Scenario, build_population

GOLDEN = Path(__file__).parent / "golden" / "population_hashes.json"
NUM_CLIENTS = 8
PARTITIONS: list[Partition] = [
    Iid(),
    Dirichlet(alpha=0.3),
    InnerDirichlet(alpha=0.3),
    Pathological(num_classes_per_client=5, class_assignment_mode="deterministic"),
    DisjointClasses(),
    Shards(num_shards_per_client=3),
    Linear(),
    Square(),
    Exponential(),
    LogNormal(),
    Continuous(by="domain", strictness=0.7),
    Continuous(by="label", strictness=0.7),
    Natural(),
    Domain(),
    DomainDirichlet(heterogeneity=0.6),
]
EVERY = pytest.mark.parametrize("partition", PARTITIONS, ids=repr)


class NoItems:
    def read(self, row: int) -> bytes:
        raise OSError("there are no items")

    def where(self, row: int) -> str:
        return f"row {row}"


@pytest.fixture(scope="module")
def large() -> Dataset:
    """30,000 rows whose labels depend on the client, and whose domains are uneven."""
    rng = np.random.default_rng(0)
    num_rows = 30_000
    clients = rng.integers(0, NUM_CLIENTS, num_rows)
    hashes = np.zeros((num_rows, 32), dtype=np.uint8)
    hashes[:, :8] = np.arange(num_rows, dtype="<i8")[:, None].view(np.uint8)
    return Dataset(
        name="large",
        classes=tuple(f"class {label}" for label in range(8)),
        templates=("{}",),
        labels=(clients + rng.integers(0, 5, num_rows)) % 8,
        domains=("a", "b", "c"),
        domain_ids=rng.choice(3, num_rows, p=[0.2, 0.3, 0.5]),
        concept_ids=np.arange(num_rows),
        split=np.where(rng.random(num_rows) < 0.3, TEST, TRAIN).astype(np.int8),
        content_hashes=hashes,
        items=NoItems(),
        client_ids=clients,
        clients=tuple(f"client {client}" for client in range(NUM_CLIENTS)),
    )


@pytest.fixture(scope="module")
def emoji() -> Dataset:
    """The packaged set, with natural clients for the partition that needs them."""
    dataset = load_dataset("emoji_coarse")
    clients = dataset.concept_ids % NUM_CLIENTS
    names = tuple(f"client {client}" for client in range(NUM_CLIENTS))
    return replace(dataset, client_ids=clients, clients=names)


def scenario_of(partition: Partition, **settings) -> Scenario:
    return Scenario(num_clients=NUM_CLIENTS, partition=partition, **settings)


def test_the_laws_here_cover_every_partition():
    assert {type(partition) for partition in PARTITIONS} == set(get_args(Partition))


@EVERY
def test_a_client_trains_validates_and_is_tested_on_one_label_distribution(partition, large):
    population = build_population(scenario_of(partition), large)
    train = population.histogram("train")
    shares = train / train.sum(axis=1, keepdims=True)
    for part in ("validation", "test"):
        counts = population.histogram(part)
        held = counts.sum(axis=1)
        distance = np.abs(counts / np.maximum(held, 1)[:, None] - shares).sum(axis=1) / 2
        # Rounding moves less than one row of each class and domain held; the rest is the noise of
        # the given split itself, whose ratio of test to training rows differs between classes.
        # Natural clients keep their own rows, which are a sample and not a share dealt out.
        kinds = np.count_nonzero(train, axis=1)
        rounding = kinds * 3 / np.maximum(held, 1)
        if partition.follows == "client":
            rounding = np.sqrt(kinds / held)
        assert (distance <= 0.03 + np.minimum(rounding, 1)).all()
        assert np.average(distance, weights=held) < 0.05
        assert not counts[train == 0].any()


@EVERY
def test_test_rows_follow_the_label_or_the_domain_and_the_label(partition, large):
    population = build_population(scenario_of(partition), large)
    if partition.follows == "client":
        own = large.client_ids[population.test.rows]
        assert np.array_equal(own, population.test.owners)
        return
    kinds = large.labels + 8 * large.domain_ids * (partition.follows == "domain")
    counts = {
        part: np.array(
            [np.bincount(kinds[rows[client]], minlength=24) for client in range(NUM_CLIENTS)]
        )
        for part, rows in (("train", population.train), ("test", population.test))
    }
    held = counts["train"].sum(axis=0)
    shares = counts["train"] / np.maximum(held, 1)
    expected = shares * np.bincount(kinds[population.global_test], minlength=24)
    assert np.abs(counts["test"] - expected).max() <= 1


def test_rows_of_a_class_that_nobody_holds_stay_in_the_global_set(large):
    partition = Pathological(num_classes_per_client=1, class_assignment_mode="deterministic")
    population = build_population(Scenario(num_clients=5, partition=partition), large)
    assert set(np.unique(population.labels[population.test.rows])) == set(range(5))
    assert np.array_equal(population.global_test, np.flatnonzero(large.split == TEST))


def test_natural_clients_keep_their_names_and_unowned_test_rows_are_shared(large, tmp_path):
    clients = np.where(large.split == TEST, -1, large.client_ids)
    unowned = replace(large, client_ids=clients)
    population = build_population(Scenario(partition=Natural(max_clients=4)), unowned)
    population.save(tmp_path / "natural.parquet")
    names = Population.load(tmp_path / "natural.parquet").provenance["clients"]
    for client, name in enumerate(names):
        assert {large.clients[i] for i in clients[population.train[client]]} == {name}
    assert len(names) == population.num_clients == 4
    assert (population.test.counts > 100).all()


@EVERY
def test_a_population_of_packaged_data_is_the_same_on_every_machine(partition, emoji):
    """Where a change is meant to deal the data out anew, the file takes the new hashes."""
    expected = json.loads(GOLDEN.read_text())
    assert build_population(scenario_of(partition), emoji).hash == expected[repr(partition)]


def test_another_process_builds_equal_populations(emoji, tables):
    partitions = [partition for partition in PARTITIONS if not isinstance(partition, Natural)]
    code = (
        "from scenarios.data.catalogue import load_dataset\n"
        "from scenarios.partitions import *\n"
        "from scenarios.scenario import Scenario, build_population\n"
        "data = load_dataset('emoji_coarse')\n"
        f"for partition in {partitions!r}:\n"
        f"    scenario = Scenario(num_clients={NUM_CLIENTS}, partition=partition)\n"
        "    print(build_population(scenario, data).hash)"
    )
    plain = replace(emoji, client_ids=None, clients=())
    here = [build_population(scenario_of(partition), plain).hash for partition in partitions]
    assert tables.run_python(code).split() == here


def test_a_manifest_is_used_again(emoji, tmp_path):
    path = tmp_path / "population.parquet"
    built = build_population(scenario_of(InnerDirichlet(sizes=(50,) * NUM_CLIENTS), seed=4), emoji)
    built.save(path)
    again = build_population(Scenario(manifest=path), emoji)
    assert again.hash == built.hash
    assert np.array_equal(again.domain_histogram(), built.domain_histogram())
    same = scenario_of(InnerDirichlet(sizes=(50,) * NUM_CLIENTS), seed=4, manifest=path)
    assert build_population(same, emoji).hash == built.hash


def test_a_manifest_that_disagrees_is_refused_with_every_difference(emoji, large, tmp_path):
    path = tmp_path / "population.parquet"
    build_population(scenario_of(Iid(), seed=4), emoji).save(path)
    with pytest.raises(DataError) as caught:
        build_population(Scenario(manifest=path, num_clients=10, seed=5), emoji)
    assert "scenario.num_clients = 10, but it was built with 8" in str(caught.value)
    assert "scenario.seed = 5, but it was built with 4" in str(caught.value)
    with pytest.raises(DataError, match="but 'large' has"):
        build_population(Scenario(manifest=path), large)
    with pytest.raises(DataError, match="not a readable population"):
        build_population(Scenario(manifest=tmp_path / "absent.parquet"), emoji)
