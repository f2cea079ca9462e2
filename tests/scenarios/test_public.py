"""Public rows: how many, that no part of them stands elsewhere, and that labels do not choose."""

from dataclasses import replace

import numpy as np
import pytest

from fl_core.errors import ConfigError, DataError
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED, Dataset
from scenarios.partitions import Iid
from scenarios.population import Population
from scenarios.protocols import LeaveDomainOut
from scenarios.public import public_rows
from scenarios.scenario import Scenario, build_population, refuse_difference
from scenarios.targets import refuse_overlap


class NoItems:
    def read(self, row: int) -> bytes:
        raise OSError("there are no items")

    def where(self, row: int) -> str:
        return f"row {row}"


def rows_of(group=1, splits=(TRAIN, TRAIN, TEST), num_rows=1200):
    """Random labels in two domains, ``group`` rows of each concept, splits by concept."""
    concepts = np.arange(num_rows) // group
    hashes = np.zeros((num_rows, 32), dtype=np.uint8)
    hashes[:, :8] = np.arange(num_rows, dtype="<i8")[:, None].view(np.uint8)
    draws = np.random.default_rng(0)
    return Dataset(
        name="rows",
        classes=tuple(f"class {label}" for label in range(4)),
        templates=("{}",),
        labels=draws.integers(0, 4, num_rows)[concepts],
        domains=("left", "right"),
        domain_ids=draws.integers(0, 2, num_rows)[concepts],
        concept_ids=concepts,
        split=np.array(splits, dtype=np.int8)[concepts % len(splits)],
        content_hashes=hashes,
        items=NoItems(),
    )


SCENARIO = Scenario("rows", num_clients=5, partition=Iid(), public_fraction=0.25)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("splits", [(TRAIN, TRAIN, TEST), (UNSPECIFIED,)])
def test_a_share_of_the_training_rows_in_whole_concepts(group, splits):
    dataset = rows_of(group, splits)
    population = build_population(SCENARIO, dataset)
    train = [population.train.rows, population.validation.rows, population.public]
    assert len(population.public) == pytest.approx(0.25 * sum(map(len, train)), abs=group)
    others = np.concatenate([*train[:2], population.test.rows, population.global_test])
    elsewhere = np.concatenate([others, population.global_validation])
    concepts = dataset.concept_ids
    assert not np.isin(concepts[population.public], concepts[elsewhere]).any()
    assert (population.labels[population.public] == -1).all()
    assert (population.domain_ids[population.public] == -1).all()
    none = build_population(replace(SCENARIO, public_fraction=0.0), dataset)
    assert np.array_equal(none.global_test, population.global_test)
    assert len(none.public) == 0


def test_labels_do_not_choose_and_the_seed_does():
    dataset, every = rows_of(), np.arange(1200)
    turned = replace(dataset, labels=(dataset.labels + 1) % 4)
    chosen = public_rows(dataset, every, 0.1, 0)
    assert np.array_equal(chosen, public_rows(turned, every, 0.1, 0))
    assert not np.array_equal(chosen, public_rows(dataset, every, 0.1, 1))
    assert np.array_equal(chosen, np.sort(chosen))


def test_what_a_protocol_holds_out_is_not_public():
    dataset = rows_of()
    protocol = LeaveDomainOut(domain="right")
    population = build_population(replace(SCENARIO, protocol=protocol), dataset)
    assert len(population.public) > 0
    assert (dataset.domain_ids[population.public] == 0).all()


def test_public_rows_are_part_of_the_hash_and_come_back_from_a_manifest(tmp_path):
    dataset = rows_of()
    population = build_population(SCENARIO, dataset)
    population.save(tmp_path / "saved.parquet")
    again = Population.load(tmp_path / "saved.parquet")
    assert np.array_equal(again.public, population.public)
    assert again.hash == population.hash
    assert replace(population, public=population.public[1:]).hash != population.hash
    refuse_difference(replace(SCENARIO, manifest=tmp_path / "saved.parquet"), again)
    with pytest.raises(DataError, match=r"scenario\.public_fraction = 0\.5"):
        refuse_difference(replace(SCENARIO, public_fraction=0.5), again)


def test_a_public_row_that_is_tested_on_is_refused():
    dataset = rows_of()
    population = build_population(SCENARIO, dataset)
    refuse_overlap(dataset, population, [])
    leaking = replace(population, public=population.global_test[:2])
    with pytest.raises(DataError, match="also trained or validated on"):
        refuse_overlap(dataset, leaking, [])


def test_a_share_of_all_is_refused():
    with pytest.raises(ConfigError, match=r"public_fraction = 1\.0"):
        Scenario(public_fraction=1.0)
