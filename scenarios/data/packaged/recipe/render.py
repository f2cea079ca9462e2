"""Stage `render`: pictures of every style, and clip art with its captions, as arrays."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.icons import load_set, picture_names, render
from scenarios.data.packaged.recipe.pictures import on_white
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES, EVALUATION_STYLES, source

logger = logging.getLogger(__name__)

CLIP_ART = "openclipart"
_CLIP_ART_LEFT_OUT = (
    "special",
    "unsorted/duplicates",
    "computer/icons",
    "computer/buttons",
    "buttons",
    "shapes",
)
# Authors' names and version words that end the file names.
_CLIP_ART_NOISE = re.compile(
    r"\b(md|r|ganson|architetto|archite?c?t?|arc|franc?|utrescu|benji|park|gerald|g|mike|sm|drawn|with|straight?|lines"
    r"|jon|phillips|karam|orlando|shandy|brow|matt|matthew|todd|contour|\d+)\b"
)


@dataclass(frozen=True)
class Pictures:
    """Named pictures of one style: pixels [N, 64, 64, 3] uint8."""

    names: list[str]
    pixels: np.ndarray


def save_pictures(path: Path, pictures: Pictures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, names=np.array(pictures.names), pixels=pictures.pixels)


def load_pictures(work: Path, style: str) -> Pictures:
    with np.load(work / "pictures" / f"{style}.npz") as data:
        return Pictures([str(name) for name in data["names"]], data["pixels"])


def render_style(work: Path, style: str) -> Pictures:
    icon_set = load_set(work, style)
    drawn = [(name, render(icon_set, name)) for name in picture_names(icon_set)]
    kept = [(name, pixels) for name, pixels in drawn if pixels is not None]
    return Pictures([name for name, _ in kept], np.stack([pixels for _, pixels in kept]))


def _caption(path: Path) -> str:
    text = re.sub(r"[_\-.]+", " ", path.stem.lower())
    return " ".join(_CLIP_ART_NOISE.sub("", text).split())


def clip_art(work: Path) -> Pictures:
    """Clip art, each named by the words of its file name."""
    root = unpacked(work, source("openclipart-png")) / "usr" / "share" / "openclipart" / "png"
    names, pixels = [], []
    for path in sorted(root.rglob("*.png")):
        caption = _caption(path)
        if path.relative_to(root).as_posix().startswith(_CLIP_ART_LEFT_OUT) or len(caption) < 3:
            continue
        try:
            with Image.open(path) as image:
                pixels.append(on_white(image))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            logger.warning("skipped %s: %s", path.name, error)
            continue
        names.append(caption)
    return Pictures(names, np.stack(pixels))


def render_all(work: Path) -> None:
    for style in (*ALIGNED_STYLES, *EVALUATION_STYLES):
        pictures = render_style(work, style)
        save_pictures(work / "pictures" / f"{style}.npz", pictures)
        logger.info("%s: %d pictures", style, len(pictures.names))
    art = clip_art(work)
    save_pictures(work / "pictures" / f"{CLIP_ART}.npz", art)
    logger.info("%s: %d pictures", CLIP_ART, len(art.names))
