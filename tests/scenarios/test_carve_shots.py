"""Few shots, and validation rows that the data name: how many, which, and nested in each other."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fl_core.errors import DataError
from scenarios.carve import Cut, carve, group_rows
from scenarios.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from scenarios.partitions import Dirichlet, Iid, Pathological
from scenarios.scenario import Scenario, build_population

NUM_CLASSES = 6


class NoItems:
    def read(self, row: int) -> bytes:
        raise OSError("there are no items")

    def where(self, row: int) -> str:
        return f"row {row}"


def labelled(num_rows: int = 3000, group: int = 1, splits=(TRAIN, TRAIN, TEST)) -> Dataset:
    """Rows without items: random labels, ``group`` rows of each concept, splits by concept."""
    rng = np.random.default_rng(0)
    hashes = np.zeros((num_rows, 32), dtype=np.uint8)
    hashes[:, :8] = np.arange(num_rows, dtype="<i8")[:, None].view(np.uint8)
    concepts = np.arange(num_rows) // group
    return Dataset(
        name="labelled",
        classes=tuple(f"class {label}" for label in range(NUM_CLASSES)),
        templates=("{}",),
        labels=rng.integers(0, NUM_CLASSES, num_rows)[concepts],
        domains=("all",),
        domain_ids=np.zeros(num_rows, dtype=np.int64),
        concept_ids=concepts,
        split=np.array(splits, dtype=np.int8)[concepts % len(splits)],
        content_hashes=hashes,
        items=NoItems(),
    )


def shots_of(dataset: Dataset, shots: int | None, fraction: float = 0.1):
    return carve(dataset, Cut(shots, fraction, 0.2, seed=0))


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("splits", [(TRAIN, TRAIN, TEST), (TRAIN, TRAIN, VALIDATION, TEST)])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_fewer_shots_are_among_more_shots(group, splits, fraction):
    dataset = labelled(1200, group, splits)
    fits = np.bincount(dataset.labels[dataset.split == TRAIN]).min()
    draws = [shots_of(dataset, shots, fraction) for shots in (1, 2, 4, 8, 16, int(fits))]
    for fewer, more in pairwise(draws):
        assert np.isin(fewer.train, more.train).all()


def test_fewer_shots_of_each_client_are_among_more_shots():
    dataset = labelled()
    partition = Pathological(num_classes_per_client=2)
    few, more = (
        build_population(
            Scenario(num_clients=5, partition=partition, shots=shots, shots_per="client"), dataset
        )
        for shots in (4, 8)
    )
    for client in range(5):
        assert np.isin(few.train[client], more.train[client]).all()


@pytest.mark.parametrize("shots", [1, 3, 16])
def test_shots_per_client_count_each_class_that_a_client_holds(shots):
    partition = Pathological(num_classes_per_client=3)
    population = build_population(
        Scenario(num_clients=6, partition=partition, shots=shots, shots_per="client"), labelled()
    )
    train, validation = population.histogram("train"), population.histogram("validation")
    assert set(train.ravel().tolist()) == {0, shots}
    assert (np.count_nonzero(train, axis=1) == 3).all()
    assert validation.max() == min(shots, 4)
    assert not validation[train == 0].any()
    assert not population.histogram("test")[train == 0].any()
    assert np.array_equal(np.sort(population.validation.rows), population.global_validation)


def test_shots_per_client_that_a_client_lacks_say_what_would_work():
    scenario = Scenario(num_clients=6, shots=50, shots_per="client", partition=Dirichlet(alpha=0.1))
    with pytest.raises(DataError, match=r"in \d+ of \d+ cases .* Set shots to \d+ or less"):
        build_population(scenario, labelled())


@pytest.mark.parametrize("shots", [1, 2, 8])
def test_validation_rows_that_the_data_name_are_used(shots):
    dataset = labelled(splits=(TRAIN, VALIDATION, TEST))
    given = np.flatnonzero(dataset.split == VALIDATION)
    everything, few = shots_of(dataset, None), shots_of(dataset, shots)
    assert np.array_equal(everything.validation, given)
    assert np.array_equal(everything.train, np.flatnonzero(dataset.split == TRAIN))
    assert np.isin(few.validation, given).all()
    assert (np.bincount(dataset.labels[few.validation]) == min(shots, 4)).all()
    assert (np.bincount(dataset.labels[few.train]) == shots).all()
    assert not len(shots_of(dataset, None, fraction=0.0).validation)


def test_every_leak_between_given_splits_is_told_at_once():
    dataset = labelled(30, splits=(TRAIN, VALIDATION, TEST))
    hashes, concepts = dataset.content_hashes.copy(), dataset.concept_ids.copy()
    hashes[4], concepts[8] = hashes[3], concepts[7]
    leaky = replace(dataset, content_hashes=hashes, concept_ids=concepts)
    with pytest.raises(DataError) as caught:
        shots_of(leaky, None)
    assert "train and validation splits have 1 images" in str(caught.value)
    assert "train row 3 (row 3) and validation row 4" in str(caught.value)
    assert "validation and test splits have 1 concepts" in str(caught.value)


def test_training_takes_the_rows_reserved_for_validation_last():
    dataset = labelled(2000, 5)
    sizes = np.bincount(dataset.labels[dataset.split == TRAIN])
    full = shots_of(dataset, int(sizes.min()))
    smallest = int(np.argmin(sizes))
    assert np.count_nonzero(dataset.labels[full.validation] == smallest) == 0
    part = shots_of(dataset, int(sizes.min()) - 5)
    assert np.count_nonzero(dataset.labels[part.validation] == smallest) == 4
    groups = group_rows(dataset)
    assert not np.intersect1d(groups[part.train], groups[part.validation]).size


def test_linked_concepts_form_one_group():
    """Rows 0-1-2 hang together through a shared concept and a shared content."""
    dataset = labelled(6)
    hashes, concepts = dataset.content_hashes.copy(), np.array([0, 0, 1, 2, 3, 4])
    hashes[2], hashes[5] = hashes[1], hashes[4]
    groups = group_rows(replace(dataset, content_hashes=hashes, concept_ids=concepts))
    assert len({groups[0], groups[1], groups[2]}) == 1
    assert groups[4] == groups[5]
    assert len(np.unique(groups)) == 3


def test_shots_over_the_federation_are_split_among_the_clients():
    scenario = Scenario(num_clients=4, shots=8, partition=Iid())
    counts = build_population(scenario, labelled()).histogram()
    assert (counts.sum(axis=0) == 8).all()
