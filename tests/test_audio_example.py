"""Sounds as pictures: a modality that fedarena knows nothing of comes in as a table."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import fedarena
from scenarios.data.catalogue import load_dataset

FOLDER = Path(__file__).parents[1] / "examples" / "audio"


@pytest.fixture(scope="module")
def sounds():
    spec = importlib.util.spec_from_file_location("make_sounds", FOLDER / "make_sounds.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(sounds, tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "sounds.parquet"
    assert sounds.write_sounds(path, num_train=6, num_test=2, seed=5) == 12 * 8
    return path


def test_a_steady_tone_is_brightest_in_the_band_of_its_pitch(sounds):
    """Band centres worked from the definition mel = 2595 log10(1 + f / 700)."""
    low, top = (2595 * np.log10(1 + hertz / 700) for hertz in (50, 8000))
    for hertz in (440.0, 1000.0, 3000.0):
        picture = sounds.log_mel(np.sin(2 * np.pi * hertz * np.arange(64 * 384) / 16_000))
        assert picture.shape == (64, 64)
        place = (2595 * np.log10(1 + hertz / 700) - low) / (top - low) * 65 - 1
        assert abs((63 - picture[:, 32].argmax()) - place) <= 1
        assert picture.max() == 255


def test_every_mel_filter_hears_something(sounds):
    assert (sounds.mel_filters().sum(axis=1) > 0).all()


def test_kinds_of_sounds_look_different_and_draws_of_one_kind_too(sounds):
    pictures = [
        sounds.log_mel(make(np.random.default_rng(seed)))
        for make in sounds.SOUNDS.values()
        for seed in (0, 1)
    ]
    assert len({picture.tobytes() for picture in pictures}) == 2 * len(sounds.SOUNDS)


def test_the_table_loads_with_its_classes_styles_and_recorders(sounds, table):
    dataset = load_dataset(str(table))
    assert dataset.classes == tuple(sounds.SOUNDS)
    assert dataset.templates == (sounds.TEMPLATE,)
    assert set(dataset.domains) == set(sounds.STYLES)
    assert len(dataset) == 96
    assert np.bincount(dataset.client_ids).tolist() == [8] * 12
    assert dataset.image(0).size == (64, 64)


def test_a_seed_is_its_sounds(sounds, tmp_path):
    prints = []
    for name, seed in (("first", 5), ("same", 5), ("other", 6)):
        path = tmp_path / f"{name}.parquet"
        sounds.write_sounds(path, num_train=1, num_test=1, seed=seed)
        prints.append(load_dataset(str(path)).content_fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_example_runs_with_a_client_per_recorder(table, tiny_clip, tmp_path):
    result = fedarena.run(
        FOLDER / "promptfl.yaml",
        f"backbone.model=local-dir:{tiny_clip}",
        f"scenario.dataset={table}",
        "federation.rounds=1",
        "resources.executor=inline",
        "tracking.enabled=false",
        f"folder={tmp_path / 'runs'}",
        f"store={tmp_path / 'store'}",
    )
    assert len(result.last.accepted) == 12
    assert 0 <= result.summary["eval/global/accuracy"] <= 1
