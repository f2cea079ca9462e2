"""Stage `features`: trunk features of the selected pictures in several views; name embeddings."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import ImageNetInfo

from scenarios.data.packaged.recipe.names import words
from scenarios.data.packaged.recipe.render import CLIP_ART
from scenarios.data.packaged.recipe.select import load_selected
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES
from scenarios.data.packaged.recipe.towers import Teacher, new_model, trunk_features

logger = logging.getLogger(__name__)

_INK_THRESHOLD = 128


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _ink(image: Image.Image) -> Image.Image:
    """Black on white, as a monochrome style would draw it."""
    stretched = ImageOps.autocontrast(image.convert("L"), cutoff=2)
    return stretched.point(lambda level: 255 if level > _INK_THRESHOLD else 0).convert("RGB")


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "plain": lambda image: image,
    "mirrored": ImageOps.mirror,
    "grey": _grey,
    "ink": _ink,
}


def imagenet_names() -> list[str]:
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]


def features(work: Path) -> None:
    """Writes work/features: views [V, N, 1280] float16, names, text [N, 384]."""
    torch.set_num_threads(1)
    model, teacher = new_model(work), Teacher(work)
    folder = work / "features"
    folder.mkdir(exist_ok=True)
    torch.save(teacher.encode_names(imagenet_names()), folder / "imagenet_text.pt")
    for part, sources in (("validation", ALIGNED_STYLES), ("aligned", (*ALIGNED_STYLES, CLIP_ART))):
        for name in sources:
            pictures = load_selected(work, part, name)
            images = [Image.fromarray(pixels) for pixels in pictures.pixels]
            views = np.stack(
                [
                    trunk_features(model, [view(image) for image in images])
                    for view in VIEWS.values()
                ]
            )
            text = teacher.encode_names([words(item) for item in pictures.names])
            torch.save(
                {"names": pictures.names, "views": torch.from_numpy(views).half(), "text": text},
                folder / f"{part}_{name}.pt",
            )
            logger.info("%s %s: %d pictures in %d views", part, name, len(images), len(VIEWS))
