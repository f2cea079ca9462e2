"""Stage `select`: the pictures that may be aligned, and those that the choices are made on."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scenarios.data.packaged.recipe.names import held_out_names, mentions, validation_names, words
from scenarios.data.packaged.recipe.pictures import content_hash, near_duplicates, perceptual_hash
from scenarios.data.packaged.recipe.render import CLIP_ART, Pictures, load_pictures
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES, EVALUATION_STYLES

logger = logging.getLogger(__name__)


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


def _evaluation_hashes(work: Path) -> tuple[set[str], np.ndarray]:
    exact: set[str] = set()
    near = []
    for style in EVALUATION_STYLES:
        style_exact, style_near = _hashes(load_pictures(work, style))
        exact.update(style_exact)
        near.append(style_near)
    return exact, np.concatenate(near)


def select(work: Path) -> None:
    """Writes work/selected: the aligned and the validation pictures of each source.

    A picture is dropped where it equals, or nearly equals, any picture of the evaluation styles
    or any aligned-style picture of a held-out name; a validation name is never aligned.
    """
    exact, near = _evaluation_hashes(work)
    sources = {name: load_pictures(work, name) for name in (*ALIGNED_STYLES, CLIP_ART)}
    held_out = held_out_names()
    validation = validation_names(
        {name for style in ALIGNED_STYLES for name in sources[style].names}
    )
    for style in ALIGNED_STYLES:
        pictures = _subset(
            sources[style], np.array([name in held_out for name in sources[style].names])
        )
        style_exact, style_near = _hashes(pictures)
        exact.update(style_exact)
        near = np.concatenate([near, style_near])
    rows: list[dict[str, str]] = []
    for name, pictures in sources.items():
        rows += _select_source(work, name, pictures, (exact, near, held_out, validation))
    (work / "selected").mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows), work / "selected" / "aligned_items.parquet", compression="zstd"
    )


def _select_source(
    work: Path,
    source: str,
    pictures: Pictures,
    against: tuple[set[str], np.ndarray, frozenset[str], frozenset[str]],
) -> list[dict[str, str]]:
    exact, near, held_out, validation = against
    source_exact, source_near = _hashes(pictures)
    fresh = np.array([digest not in exact for digest in source_exact]) & ~near_duplicates(
        source_near, near
    )
    if source == CLIP_ART:
        protected = held_out | validation
        named = np.array([not mentions(caption, protected) for caption in pictures.names])
        chosen = np.zeros_like(named)
    else:
        chosen = np.array([name in validation for name in pictures.names])
        named = np.array([name not in held_out for name in pictures.names]) & ~chosen
    aligned = fresh & named
    folder = work / "selected"
    folder.mkdir(exist_ok=True)
    for part, keep in (("aligned", aligned), ("validation", fresh & chosen)):
        subset = _subset(pictures, keep)
        np.savez(
            folder / f"{part}_{source}.npz", names=np.array(subset.names), pixels=subset.pixels
        )
    logger.info(
        "%s: %d fresh of %d, %d aligned, %d validation",
        source,
        fresh.sum(),
        len(fresh),
        aligned.sum(),
        (fresh & chosen).sum(),
    )
    return [
        {
            "sha256": source_exact[i],
            "phash": f"{int(source_near[i]):016x}",
            "source": source,
            "name": words(pictures.names[i]),
        }
        for i in np.flatnonzero(aligned)
    ]


def load_selected(work: Path, part: str, source: str) -> Pictures:
    with np.load(work / "selected" / f"{part}_{source}.npz") as data:
        return Pictures([str(name) for name in data["names"]], data["pixels"])
