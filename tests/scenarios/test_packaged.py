"""The shipped data and models: sound, readable, dealt out without a leak, new to the backbone."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

from scenarios.data.catalogue import (
    PACKAGED_BACKBONES,
    PACKAGED_DATASETS,
    PACKAGED_LANGUAGE_MODELS,
    TEXT_SETS,
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


def test_its_items_are_those_that_were_hashed(dataset):
    for row in np.linspace(0, len(dataset) - 1, 50).astype(int):
        if dataset.modality == "text":
            assert dataset.text(int(row))
        else:
            assert dataset.image(int(row)).mode == "RGB"


def test_it_describes_itself(dataset):
    assert dataset.name in PACKAGED_DATASETS
    assert (dataset.modality == "text") == (dataset.name in TEXT_SETS)
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


EMBEDDED = (
    0.1233721,
    -0.0201835,
    -0.0290672,
    0.0504291,
    -0.0635578,
    0.0261675,
    0.0446560,
    0.0221903,
)
"""The first of 384 numbers that the 32-bit original gives for "a cat sat on the mat"."""


def test_the_packaged_language_model_embeds_as_the_original_within_half_precision(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = PACKAGED_LANGUAGE_MODELS["minilm"]
    model = AutoModel.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)("a cat sat on the mat", return_tensors="pt")
    assert batch["input_ids"].tolist() == [[101, 1037, 4937, 2938, 2006, 1996, 13523, 102]]
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    assert (hidden.shape, hidden.dtype) == ((1, 8, 384), torch.float32)
    embedded = torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)[0, :8]
    torch.testing.assert_close(embedded, torch.tensor(EMBEDDED), rtol=0, atol=5e-4)


def test_the_packaged_language_model_is_stored_in_half_precision():
    path = PACKAGED_LANGUAGE_MODELS["minilm"] / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"F16"}
        assert tensors["embeddings.word_embeddings.weight"].get_shape() == [30522, 384]
    assert path.stat().st_size < 46e6
