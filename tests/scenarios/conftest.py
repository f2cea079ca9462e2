"""Small data sets in the packaged format, for tests."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLASSES = ("bird", "cat", "dog", "fox")
TEMPLATES = ("an icon of a {}", "{}")


def png(seed: int, size: int = 8) -> tuple[bytes, str]:
    """A random image as PNG, and the hash of its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue(), hashlib.sha256(pixels.tobytes()).hexdigest()


def rows(num_concepts: int = 10, styles: Sequence[str] = ("flat", "line")) -> list[dict[str, Any]]:
    """Concepts of each class in each style; the last three tenths of the concepts are test."""
    made = []
    for label in CLASSES:
        for index in range(num_concepts):
            for style in styles:
                image, digest = png(len(made))
                made.append(
                    {
                        "image": image,
                        "label": label,
                        "domain": style,
                        "concept": f"{label}-{index}",
                        "sha256": digest,
                        "split": "train" if index < 0.7 * num_concepts else "test",
                    }
                )
    return made


def write(path: Path, records: list[dict[str, Any]], **metadata: Any) -> Path:
    """The records as a Parquet file with several row groups."""
    described = {"name": "toy", "templates": TEMPLATES, "classes": CLASSES} | metadata
    table = pa.Table.from_pylist(records)
    pq.write_table(
        table.replace_schema_metadata({"fedarena": json.dumps(described)}), path, row_group_size=16
    )
    return path


def run_python(code: str, *arguments: str) -> str:
    """What another Python process prints."""
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def tables() -> ModuleType:
    """This module: with --import-mode=importlib tests cannot import a neighbour."""
    return sys.modules[__name__]


@pytest.fixture
def toy_path(tmp_path: Path) -> Path:
    return write(tmp_path / "toy.parquet", rows())
