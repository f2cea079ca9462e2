"""Stage `others`: Fashion-MNIST, and country flags in four styles."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from scenarios.data.packaged.recipe.export import MODEL_FOLDER, PACKAGED
from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.icons import load_set, render
from scenarios.data.packaged.recipe.names import mentions
from scenarios.data.packaged.recipe.pictures import (
    grey_png,
    near_duplicates,
    palette_png,
    perceptual_hash,
)
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.sources import FLAG_STYLES, source
from scenarios.data.packaged.recipe.tables import Description, ImageRow, write_images

logger = logging.getLogger(__name__)

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
NUM_FASHION = {"train": 6000, "test": 2000}
FLAG_COLOURS = 64
FLAG_TRAIN_STYLES = ("circle-flags", "flagpack")
_FLAG_SUFFIX = {"flag": "-4x3"}
# The round set shows a language, not a country, under these codes.
AMBIGUOUS_CODES = frozenset({"ar", "ie", "la"})
_REGIONAL_A = 0x1F1E6


def _read_idx(path: Path, offset: int) -> np.ndarray:
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read(), dtype=np.uint8, offset=offset)


def _fashion_rows(folder: Path, split: str) -> list[ImageRow]:
    """As many pictures of each class; Fashion-MNIST's own train and test parts."""
    prefix = "train" if split == "train" else "t10k"
    pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
    num_each = NUM_FASHION[split] // len(FASHION_CLASSES)
    draw, chosen = numpy_generator("fashion-mnist", split), []
    for code in range(len(FASHION_CLASSES)):
        own = draw.choice(np.flatnonzero(labels == code), num_each, replace=False)
        chosen.extend(sorted(own))
    return [
        ImageRow(
            image=grey_png(pixels[index]),
            label=FASHION_CLASSES[labels[index]],
            domain="photo",
            concept=f"{prefix}-{index:05d}",
            split=split,
            name_aligned=True,
        )
        for index in chosen
    ]


def fashion(work: Path) -> None:
    folder = unpacked(work, source("dataset-fashion-mnist")) / "usr/share/datasets/fashion-mnist"
    description = Description(
        "fashion_mnist",
        "A class-balanced draw from Fashion-MNIST, in its own train and test parts: 28-pixel grey "
        "photographs of clothes, light on black. Each picture is its own concept.",
        ("a photo of a {}", "{}", "a photo of the {}", "a picture of the {}"),
        ("dataset-fashion-mnist",),
    )
    rows = [row for split in NUM_FASHION for row in _fashion_rows(folder, split)]
    write_images(PACKAGED / "fashion_mnist.parquet", description, rows)
    logger.info("fashion_mnist: %d pictures", len(rows))


def countries(work: Path) -> dict[str, str]:
    """Name of each two-letter country code that has a flag emoji."""
    path = unpacked(work, source("emojibase-data")) / "package" / "en" / "data.json"
    names = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        points = [int(part, 16) - _REGIONAL_A for part in entry["hexcode"].split("-")]
        if (
            entry["label"].startswith("flag: ")
            and len(points) == 2
            and all(0 <= point < 26 for point in points)
        ):
            code = "".join(chr(ord("a") + point) for point in points)
            names[code] = entry["label"].removeprefix("flag: ")
    return {code: name for code, name in names.items() if code not in AMBIGUOUS_CODES}


def _flag_pixels(work: Path) -> dict[str, dict[str, np.ndarray]]:
    """Pixels by country and style, for the countries that every style has."""
    sets = {style: load_set(work, style) for style in FLAG_STYLES}
    drawn = {}
    for code, name in sorted(countries(work).items()):
        pictures = {
            style: render(icon_set, code + _FLAG_SUFFIX.get(style, ""))
            for style, icon_set in sets.items()
        }
        found = {style: pixels for style, pixels in pictures.items() if pixels is not None}
        if len(found) == len(FLAG_STYLES):
            drawn[name] = found
    return drawn


def flags(work: Path) -> None:
    """A country is left out where one of its pictures nearly equals an aligned one."""
    items = pq.read_table(MODEL_FOLDER / "aligned_items.parquet").to_pydict()
    aligned = np.array([int(value, 16) for value in items["phash"]], dtype=np.uint64)
    captions, rows, num_left_out = " | ".join(items["name"]), [], 0
    for country, pictures in _flag_pixels(work).items():
        hashes = np.array(
            [perceptual_hash(pixels) for pixels in pictures.values()], dtype=np.uint64
        )
        if near_duplicates(hashes, aligned).any():
            num_left_out += 1
            continue
        seen = mentions(captions, frozenset({country.lower()}))
        for style, pixels in pictures.items():
            split = "train" if style in FLAG_TRAIN_STYLES else "test"
            rows.append(
                ImageRow(palette_png(pixels, FLAG_COLOURS), country, style, country, split, seen)
            )
    description = Description(
        "flags",
        "Flags of countries in four drawing styles, one round and three rectangular; the class is "
        "the country. Train and test differ by style. name_aligned tells whether an aligned "
        "caption names the country.",
        ("the flag of {}", "{}", "a flag of {}", "an icon of the flag of {}"),
        (*FLAG_STYLES, "emojibase-data"),
    )
    write_images(PACKAGED / "flags.parquet", description, rows)
    logger.info("flags: %d pictures, %d countries left out", len(rows), num_left_out)


def others(work: Path) -> None:
    fashion(work)
    flags(work)
