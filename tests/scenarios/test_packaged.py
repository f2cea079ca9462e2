"""The shipped data: sound, readable, dealt out without a leak, and new to the backbone."""

import numpy as np
import pytest

from scenarios.data.catalogue import (
    PACKAGED_BACKBONES,
    PACKAGED_DATASETS,
    load_dataset,
    overlap_with_alignment,
    verify_packaged,
)
from scenarios.scenario import Scenario, build_population


@pytest.fixture(scope="module", params=PACKAGED_DATASETS)
def dataset(request):
    return load_dataset(request.param)


def test_every_packaged_file_has_its_checksum():
    assert verify_packaged() == []


def test_its_images_are_those_that_were_hashed(dataset):
    for row in np.linspace(0, len(dataset) - 1, 50).astype(int):
        assert dataset.image(int(row)).mode == "RGB"


def test_it_describes_itself(dataset):
    assert PACKAGED_DATASETS[dataset.name].stem == dataset.name
    assert all(template.count("{}") == 1 for template in dataset.templates)
    assert len(np.unique(dataset.labels)) == len(dataset.classes)


def test_the_default_scenario_can_be_built_on_it(dataset):
    population = build_population(Scenario(dataset.name), dataset)
    assert population.num_clients == 10
    assert population.global_validation.size
    assert population.global_test.size


@pytest.mark.parametrize("backbone", PACKAGED_BACKBONES)
def test_the_packaged_backbone_has_seen_none_of_its_images(dataset, backbone):
    assert overlap_with_alignment(dataset, backbone).size == 0
