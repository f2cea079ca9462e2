"""Populations: who holds which rows, and that nothing leaks."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from fl_core.errors import ConfigError, DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.dataset import TRAIN, UNSPECIFIED, VALIDATION, Dataset
from scenarios.partitions import Dirichlet, Iid
from scenarios.picture import picture
from scenarios.population import Population
from scenarios.scenario import Scenario, build_population


@pytest.fixture
def toy(toy_path) -> Dataset:
    return load_dataset(str(toy_path))


class NoImages:
    def read(self, row: int) -> bytes:
        raise OSError("there are no images")

    def where(self, row: int) -> str:
        return f"row {row}"


def numbers(labels, split, concepts=None) -> Dataset:
    """A data set of rows without images, each with content of its own."""
    num_rows, num_classes = len(labels), int(np.max(labels)) + 1
    hashes = np.zeros((num_rows, 32), dtype=np.uint8)
    hashes[:, :8] = np.arange(num_rows, dtype="<i8")[:, None].view(np.uint8)
    return Dataset(
        name="numbers",
        classes=tuple(f"class {label:04d}" for label in range(num_classes)),
        templates=("{}",),
        labels=np.asarray(labels, dtype=np.int64),
        domains=("all",),
        domain_ids=np.zeros(num_rows, dtype=np.int64),
        concept_ids=np.arange(num_rows) if concepts is None else np.asarray(concepts),
        split=np.asarray(split, dtype=np.int8),
        content_hashes=hashes,
        items=NoImages(),
    )


def large(num_rows: int = 20_000, num_classes: int = 10, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    split = (rng.random(num_rows) < 0.3).astype(np.int8)
    return numbers(rng.integers(0, num_classes, num_rows), split)


SCENARIOS = [
    Scenario(num_clients=3, partition=Iid(), seed=1),
    Scenario(num_clients=5, partition=Dirichlet(alpha=0.3)),
    Scenario(num_clients=2, shots=3),
    Scenario(num_clients=4, validation_fraction=0.0),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=repr)
@pytest.mark.parametrize("has_split", [True, False])
def test_train_validation_and_test_share_no_row_image_or_concept(toy, scenario, has_split):
    if not has_split:
        toy = replace(toy, split=np.full(len(toy), UNSPECIFIED, dtype=np.int8))
    population = build_population(scenario, toy)
    parts = [population.train.rows, population.global_validation, population.global_test]
    contents = [toy.content_hashes[rows, :8].copy().view("<i8").ravel() for rows in parts]
    for columns in (parts, contents, [toy.concept_ids[rows] for rows in parts]):
        for left, right in ((0, 1), (0, 2), (1, 2)):
            assert not np.intersect1d(columns[left], columns[right]).size
    assert len(population.global_test)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=repr)
def test_the_clients_together_hold_every_row_once(toy, scenario):
    population = build_population(scenario, toy)
    shards = [population.shard(client) for client in range(population.num_clients)]
    validation = np.sort(np.concatenate([shard.validation for shard in shards]))
    test = np.sort(np.concatenate([shard.test for shard in shards]))
    assert np.array_equal(validation, population.global_validation)
    assert np.array_equal(test, population.global_test)
    assert np.array_equal(test, np.flatnonzero(toy.split == 1))
    assert len(np.unique(population.train.rows)) == len(population.train.rows)
    assert population.num_examples.tolist() == [len(shard.train) for shard in shards]


def test_a_client_is_tested_on_its_own_label_distribution():
    population = build_population(Scenario(num_clients=8), large())
    train, test = population.histogram("train"), population.histogram("test")
    expected = train / train.sum(axis=0) * test.sum(axis=0)
    assert np.abs(test - expected).max() <= 1.0
    assert not test[train == 0].any()
    assert np.abs(population.histogram("validation").sum(axis=0) - train.sum(axis=0) / 9).max() < 20


def test_validation_takes_its_fraction_also_of_many_small_classes():
    dataset = numbers(np.repeat(np.arange(500), 5), np.tile([0, 0, 0, 0, 1], 500))
    population = build_population(Scenario(partition=Iid()), dataset)
    assert 140 < len(population.global_validation) < 260  # a tenth of 2,000


@pytest.mark.parametrize("shots", [1, 2, 8])
def test_few_shot_counts_over_the_federation(shots):
    population = build_population(Scenario(num_clients=4, shots=shots), large())
    assert (population.histogram("train").sum(axis=0) == shots).all()
    assert (population.histogram("validation").sum(axis=0) == min(shots, 4)).all()


def test_few_shot_leaves_out_the_rest_of_a_validation_concept(toy):
    population = build_population(Scenario(num_clients=2, shots=1), toy)
    used = np.concatenate([population.train.rows, population.global_validation])
    assert len(np.unique(toy.concept_ids[used])) == 8


def test_too_many_shots_name_the_class_and_what_would_work(toy):
    with pytest.raises(DataError, match=r"4 classes .*'bird' \(14\).*shots to 14"):
        build_population(Scenario(num_clients=2, shots=15), toy)


def test_a_planted_duplicate_between_train_and_test_is_refused_by_row(tables, tmp_path):
    records = tables.rows()
    records[15] |= {key: records[2][key] for key in ("image", "sha256")}
    dataset = load_dataset(str(tables.write(tmp_path / "leak.parquet", records)))
    with pytest.raises(DataError, match=r"(?s)have 1 images in.*train row 2 .*test row 15 "):
        build_population(Scenario(num_clients=2), dataset)


def test_a_concept_in_both_splits_is_refused(tables, tmp_path):
    records = tables.rows()
    records[15]["concept"] = records[2]["concept"]
    dataset = load_dataset(str(tables.write(tmp_path / "leak.parquet", records)))
    with pytest.raises(DataError, match=r"have 1 concepts in common:\n  train row 2 "):
        build_population(Scenario(num_clients=2), dataset)


def test_copies_within_the_training_split_stay_together():
    dataset = numbers(np.zeros(400, dtype=int), np.r_[np.zeros(200), np.ones(200)])
    hashes = dataset.content_hashes.copy()
    hashes[100:200] = hashes[:100]
    dataset = replace(dataset, content_hashes=hashes)
    population = build_population(Scenario(validation_fraction=0.5), dataset)
    aside = population.global_validation
    assert 80 < len(aside) < 120
    assert set((aside % 100).tolist()).isdisjoint((population.train.rows % 100).tolist())


def test_a_group_that_reaches_into_two_classes_stays_in_training():
    labels = np.r_[np.zeros(50), np.ones(50), [0, 1]].astype(int)
    concepts = np.r_[np.arange(50), np.arange(50), [50, 51]]
    dataset = numbers(labels, np.r_[np.zeros(100), [1, 1]], concepts)
    population = build_population(Scenario(validation_fraction=0.5), dataset)
    assert len(population.global_validation) == 0
    assert len(population.train.rows) == 100


def test_a_class_without_a_training_row_is_named():
    dataset = numbers([0] * 20 + [1] * 5, [0] * 20 + [1] * 5)
    with pytest.raises(DataError, match=r"1 of 2 classes have no training row: 'class 0001'"):
        build_population(Scenario(num_clients=2), dataset)


def test_a_split_that_is_given_in_part_is_refused(toy):
    split = toy.split.copy()
    split[:3] = UNSPECIFIED
    with pytest.raises(DataError, match="3 of 80 rows have no split"):
        build_population(Scenario(), replace(toy, split=split))


@pytest.mark.parametrize("given", [(TRAIN,), (TRAIN, VALIDATION)])
def test_data_without_test_rows_are_tested_on_a_fraction_of_their_training_rows(given):
    split = np.tile(np.repeat(given, 20), 100)
    dataset = numbers(np.arange(len(split)) % 4, split)
    population = build_population(Scenario(num_clients=3, partition=Iid()), dataset)
    test, validation = population.global_test, population.global_validation
    assert len(test) == 0.2 * (split == TRAIN).sum()
    assert (split[test] == TRAIN).all()
    assert not np.intersect1d(test, np.union1d(population.train.rows, validation)).size
    if VALIDATION in given:
        assert np.array_equal(validation, np.flatnonzero(split == VALIDATION))
    bare = Scenario(num_clients=3, partition=Iid(), test_fraction=0.0)
    assert not len(build_population(bare, dataset).global_test)


def test_more_clients_than_examples_is_refused(toy):
    with pytest.raises(DataError, match=r"100 clients cannot share \d+ training rows"):
        build_population(Scenario(num_clients=100), toy)


def test_a_client_without_a_test_row_is_recorded():
    dataset = numbers([0] * 52, [0] * 50 + [1] * 2)
    population = build_population(Scenario(num_clients=5, partition=Iid()), dataset)
    assert len(population.clients_without_test) >= 3
    assert population.shard(int(population.clients_without_test[0])).test.size == 0


def test_equal_config_gives_an_equal_hash_in_another_process(toy_path, tables):
    code = (
        "import sys\n"
        "from scenarios.data.catalogue import load_dataset\n"
        "from scenarios.scenario import Scenario, build_population\n"
        "print(build_population(Scenario(num_clients=5), load_dataset(sys.argv[1])).hash)"
    )
    here = build_population(Scenario(num_clients=5), load_dataset(str(toy_path)))
    assert tables.run_python(code, str(toy_path)) == here.hash


def test_seed_and_partition_change_the_hash(toy):
    scenarios = (Scenario(num_clients=4, seed=seed) for seed in (0, 1))
    hashes = {build_population(scenario, toy).hash for scenario in (*scenarios, SCENARIOS[0])}
    assert len(hashes) == 3


def test_a_saved_population_is_read_back_equal(toy, tmp_path):
    population = build_population(Scenario(num_clients=5, shots=4), toy)
    population.save(tmp_path / "population.parquet")
    again = Population.load(tmp_path / "population.parquet")
    assert again.hash == population.hash
    assert np.array_equal(again.histogram("test"), population.histogram("test"))
    assert again.provenance["scenario"]["partition"]["name"] == "dirichlet"
    again.check_dataset(toy)
    with pytest.raises(DataError, match="built from data set 'toy'"):
        again.check_dataset(large())


def test_a_damaged_population_file_is_refused(toy, tmp_path):
    path = tmp_path / "population.parquet"
    build_population(Scenario(num_clients=5), toy).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable population"):
        Population.load(path)
    with pytest.raises(DataError, match="not a readable population"):
        Population.load(tmp_path / "absent.parquet")


def test_pooled_is_one_client_with_everything(toy):
    population = build_population(Scenario(num_clients=5), toy)
    pooled = population.pooled()
    assert pooled.num_clients == 1
    assert np.array_equal(pooled.shard(0).train, np.sort(population.train.rows))
    assert np.array_equal(pooled.shard(0).test, population.global_test)
    assert pooled.hash != population.hash


def test_ten_thousand_clients_are_a_few_arrays():
    dataset = large(60_000, 100)
    population = build_population(Scenario(num_clients=10_000, partition=Iid()), dataset)
    assert population.num_examples.min() >= 1
    assert len(pickle.dumps(population)) < 3_000_000
    assert population.shard(9_999).train.base is not None
    with pytest.raises(IndexError, match=r"10000 is not in 0\.\.9999"):
        population.shard(10_000)


def test_all_faults_of_a_scenario_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Scenario(num_clients=0, shots=0, validation_fraction=1.0, test_fraction=-0.1)
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize(("num_clients", "num_bars"), [(10, 10), (100, 100), (250, 100)])
def test_the_picture_shows_each_client_or_blocks_of_them(num_clients, num_bars):
    population = build_population(Scenario(num_clients=num_clients), large(5_000, 30))
    axes = picture(population).axes[0]
    assert len({bar.get_x() for bar in axes.patches}) == num_bars
    assert len(axes.containers) == 21
    shown = sum(bar.get_height() for bar in axes.patches) * num_clients / num_bars
    assert shown == pytest.approx(len(population.train.rows), rel=0.05)
    assert axes.get_ylabel().startswith("training examples")
