"""Stage `emoji`: the coarse and the fine emoji data sets, over the evaluation styles."""

import logging
from collections import defaultdict
from pathlib import Path

from scenarios.data.packaged.recipe.export import PACKAGED
from scenarios.data.packaged.recipe.names import (
    COARSE_CLASSES,
    held_out_names,
    subgroups,
    twins,
    words,
)
from scenarios.data.packaged.recipe.pictures import content_hash, palette_png
from scenarios.data.packaged.recipe.render import load_pictures
from scenarios.data.packaged.recipe.sources import EVALUATION_STYLES
from scenarios.data.packaged.recipe.tables import (
    Description,
    ImageRow,
    split_by_concept,
    write_images,
)

logger = logging.getLogger(__name__)

NUM_COLOURS = 64
COARSE_MIN_STYLES = 4
COARSE_MIN_CONCEPTS = 8
COARSE_TRAIN_SHARE = 0.62
FINE_MIN_STYLES = 6
# Styles drawn after one another stay on one side: each pair shares its outlines.
FINE_TRAIN_STYLES = ("noto", "twemoji", "emojione", "emojione-monotone")
# The same name is an insect in some sets and a game in others.
AMBIGUOUS_NAMES = frozenset({"cricket"})
TEMPLATES = ("an icon of a {}", "{}", "a photo of a {}", "a picture of the {}")

Gallery = dict[str, dict[str, bytes]]  # name -> style -> PNG


def gallery(work: Path) -> Gallery:
    """Palette pictures by name and style; of names that share a picture only one is kept."""
    images: Gallery = defaultdict(dict)
    digests: dict[str, set[str]] = defaultdict(set)
    for style in EVALUATION_STYLES:
        pictures = load_pictures(work, style)
        for name, pixels in zip(pictures.names, pictures.pixels, strict=True):
            if name in AMBIGUOUS_NAMES:
                continue
            images[name][style] = palette_png(pixels, NUM_COLOURS)
            digests[name].add(content_hash(pixels))
    first = twins(digests)
    largest: dict[str, str] = {}
    for name in sorted(images):
        best = largest.setdefault(first[name], name)
        if len(images[name]) > len(images[best]):
            largest[first[name]] = name
    kept = set(largest.values())
    return {name: images[name] for name in sorted(kept)}


def _coarse(images: Gallery, groups: dict[str, str], unaligned: frozenset[str]) -> list[ImageRow]:
    labels = {
        name: COARSE_CLASSES[groups[name]]
        for name, styles in images.items()
        if len(styles) >= COARSE_MIN_STYLES and groups.get(name) in COARSE_CLASSES
    }
    counts = {label: list(labels.values()).count(label) for label in set(labels.values())}
    labels = {name: label for name, label in labels.items() if counts[label] >= COARSE_MIN_CONCEPTS}
    split = split_by_concept(labels, COARSE_TRAIN_SHARE, "emoji-coarse")
    return [
        ImageRow(image, label, style, name, split[name], name not in unaligned)
        for name, label in labels.items()
        for style, image in images[name].items()
    ]


def _fine(images: Gallery, unaligned: frozenset[str]) -> list[ImageRow]:
    return [
        ImageRow(image, words(name), style, name, _fine_split(style), name not in unaligned)
        for name, styles in images.items()
        if len(styles) >= FINE_MIN_STYLES
        for style, image in styles.items()
    ]


def _fine_split(style: str) -> str:
    return "train" if style in FINE_TRAIN_STYLES else "test"


def emoji(work: Path) -> None:
    images, unaligned = gallery(work), held_out_names()
    coarse = Description(
        "emoji_coarse",
        "Emoji of seven drawing styles in classes from Unicode's subgroups. Train and test share "
        "no concept. name_aligned is false for the names held out of the packaged model's "
        "alignment.",
        TEMPLATES,
        (*EVALUATION_STYLES, "emojibase-data"),
    )
    fine = Description(
        "emoji_fine",
        "One picture per emoji name and drawing style; the class is the name. Train and test "
        "differ by style, so that every class has both; name_aligned is false for the names "
        "held out of the packaged model's alignment, which serve as new classes.",
        TEMPLATES,
        EVALUATION_STYLES,
    )
    for description, rows in (
        (coarse, _coarse(images, subgroups(work), unaligned)),
        (fine, _fine(images, unaligned)),
    ):
        write_images(PACKAGED / f"{description.name}.parquet", description, rows)
        logger.info(
            "%s: %d pictures, %d classes",
            description.name,
            len(rows),
            len({row.label for row in rows}),
        )
