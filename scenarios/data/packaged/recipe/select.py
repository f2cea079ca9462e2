"""Stage `select`: the pictures that may be aligned, and those that the choices are made on."""

import itertools
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scenarios.data.packaged.recipe.names import (
    harmonised,
    held_out_names,
    mentions,
    spellings,
    twins,
    validation_names,
    with_twins,
    words,
)
from scenarios.data.packaged.recipe.pictures import content_hash, near_duplicates, perceptual_hash
from scenarios.data.packaged.recipe.render import CLIP_ART, Pictures, load_pictures
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES, EVALUATION_STYLES

logger = logging.getLogger(__name__)

Hashes = dict[str, tuple[list[str], np.ndarray]]  # source -> content and perceptual hashes


def _hashes(pictures: Pictures) -> tuple[list[str], np.ndarray]:
    """Content hashes, and perceptual hashes [N] uint64."""
    exact = [content_hash(pixels) for pixels in pictures.pixels]
    near = np.array([perceptual_hash(pixels) for pixels in pictures.pixels], dtype=np.uint64)
    return exact, near


def _subset(pictures: Pictures, keep: np.ndarray) -> Pictures:
    """Those pictures where keep [N] holds."""
    return Pictures(
        [name for name, kept in zip(pictures.names, keep, strict=True) if kept],
        pictures.pixels[keep],
    )


def _harmonise(pictures: Pictures, known: dict[str, str]) -> Pictures:
    """The pictures whose name an evaluation style knows, under that style's spelling.

    A set with a spelling of its own would otherwise slip past the list of held-out names.
    """
    names = [harmonised(name, known) for name in pictures.names]
    keep = np.array([name is not None for name in names])
    return Pictures([name for name in names if name is not None], pictures.pixels[keep])


@dataclass(frozen=True)
class Rules:
    """Names and pictures that must not be aligned: held-out names with their twins,
    validation names, and the content and perceptual hashes of evaluation pictures."""

    held_out: frozenset[str]
    validation: frozenset[str]
    exact: set[str]
    near: np.ndarray

    def fresh(self, exact: list[str], near: np.ndarray) -> np.ndarray:
        """Which pictures, by their hashes, equal or nearly equal no evaluation picture."""
        different = np.array([digest not in self.exact for digest in exact])
        return different & ~near_duplicates(near, self.near)


def _rules(evaluation: dict[str, Pictures], emoji: dict[str, Pictures], hashes: Hashes) -> Rules:
    digests: dict[str, set[str]] = defaultdict(set)
    for style, pictures in (*evaluation.items(), *emoji.items()):
        for name, digest in zip(pictures.names, hashes[style][0], strict=True):
            digests[name].add(digest)
    groups = twins(digests)
    held_out = with_twins(held_out_names(), groups)
    drawn = {name for pictures in emoji.values() for name in pictures.names}
    chosen = validation_names(sorted(drawn - held_out))
    exact: set[str] = set()
    near = []
    for style, pictures in (*evaluation.items(), *emoji.items()):
        protected = np.array([style in evaluation or name in held_out for name in pictures.names])
        exact.update(itertools.compress(hashes[style][0], protected))
        near.append(hashes[style][1][protected])
    return Rules(held_out, with_twins(chosen, groups) - held_out, exact, np.concatenate(near))


def select(work: Path) -> None:
    """Writes work/selected: the aligned and the validation pictures of each source.

    A picture is dropped where it equals, or nearly equals, any picture of the evaluation styles
    or any picture of a held-out name, and where its name or caption has a held-out name among
    its words; a validation name is never aligned.
    """
    evaluation = {style: load_pictures(work, style) for style in EVALUATION_STYLES}
    known = spellings({name for pictures in evaluation.values() for name in pictures.names})
    emoji = {style: _harmonise(load_pictures(work, style), known) for style in ALIGNED_STYLES}
    art = load_pictures(work, CLIP_ART)
    everything = {**evaluation, **emoji, CLIP_ART: art}
    hashes = {name: _hashes(pictures) for name, pictures in everything.items()}
    rules = _rules(evaluation, emoji, hashes)
    (work / "selected").mkdir(exist_ok=True)
    rows: list[dict[str, str]] = []
    for source, pictures in (*emoji.items(), (CLIP_ART, art)):
        rows += _select_source(work, source, pictures, rules)
    pq.write_table(
        pa.Table.from_pylist(rows), work / "selected" / "aligned_items.parquet", compression="zstd"
    )


def _select_source(
    work: Path, source: str, pictures: Pictures, rules: Rules
) -> list[dict[str, str]]:
    exact, near = _hashes(pictures)
    fresh = rules.fresh(exact, near)
    captions = [words(name) for name in pictures.names]
    allowed = np.array([not mentions(caption, rules.held_out) for caption in captions])
    if source == CLIP_ART:
        kept_back = np.array([mentions(caption, rules.validation) for caption in captions])
        chosen = np.zeros_like(kept_back)
    else:
        kept_back = chosen = np.array([name in rules.validation for name in pictures.names])
    aligned, validation = fresh & allowed & ~kept_back, fresh & allowed & chosen
    for part, keep in (("aligned", aligned), ("validation", validation)):
        subset = _subset(pictures, keep)
        path = work / "selected" / f"{part}_{source}.npz"
        np.savez(path, names=np.array(subset.names), pixels=subset.pixels)
    counts = (len(fresh), fresh.sum(), aligned.sum(), validation.sum())
    logger.info("%s: %d pictures, %d fresh, %d aligned, %d validation", source, *counts)
    return [
        {
            "sha256": exact[i],
            "phash": f"{int(near[i]):016x}",
            "source": source,
            "name": captions[i],
        }
        for i in np.flatnonzero(aligned)
    ]


def load_selected(work: Path, part: str, source: str) -> Pictures:
    with np.load(work / "selected" / f"{part}_{source}.npz") as data:
        return Pictures([str(name) for name in data["names"]], data["pixels"])
