"""Fixtures that several folders of tests share: a small model, small data, a local cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Ray's processes would wait for the tests that compute beside them.
os.environ.setdefault("RAY_worker_niceness", "0")

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 200)}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in open_clip's local-dir format."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny_clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**TINY_CLIP)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    text = json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three colours: 40 training and 16 test images each."""
    return write_colours(tmp_path_factory.mktemp("colours"), COLOURS)


@pytest.fixture(scope="session")
def four_colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of four colours, for what cuts the classes into halves."""
    folder = tmp_path_factory.mktemp("four") / "four_colours"
    return write_colours(folder, COLOURS | {"yellow": (210, 200, 50)})


def write_colours(folder: Path, colours: Mapping[str, tuple[int, int, int]]) -> Path:
    from PIL import Image

    draws = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 16)):
        for name, colour in colours.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = draws.integers(-40, 41, (16, 16, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def feature_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One feature store for all tests of the session."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def make_config(
    tiny_clip: Path, colours: Path, feature_store: Path, tmp_path: Path
) -> Callable[..., Any]:
    """A resolved experiment on the small model and data; overrides as on the command line."""
    from orchestrator.loading import load_config, resolve

    def make(*overrides: str) -> Any:
        settings = {
            "backbone": {"model": f"local-dir:{tiny_clip}"},
            "scenario": {"dataset": str(colours), "num_clients": 8, "partition": {"alpha": 1.0}},
            "learner": {"num_tokens": 4},
            "federation": {"rounds": 4},
            "training": {"optimizer": {"lr": 0.1}, "batch_size": 8},
            "resources": {"executor": "inline", "group_size": 2},
            "tracking": {"enabled": False},
            "folder": str(tmp_path / "runs"),
            "store": str(feature_store),
        }
        return resolve(load_config(settings, overrides))

    return make


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """A local cluster that believes to have eight CPUs."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
