"""Random views of training images: a part of the image, and its mirror image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fl_core.checks import check_fields
from fl_core.seeds import derive

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_TRIES = 10
_LOG_RATIO = math.log(4 / 3)
"""Crops are from 3:4 to 4:3, as in the Inception crop that CoOp trains with."""


@dataclass(frozen=True)
class Augmentation:
    """What a training step sees of an image.

    views: 0: the image as it is scored. A number: so many random views of each image, computed
    once and stored; a step takes one of them. ``fresh``: one new view per image and round, for
    which the image tower runs again in every round.
    min_area: the least share of the image that a view shows. flip: half of the views are mirrored.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    views: int | Literal["fresh"] = 0
    min_area: float = 0.08
    flip: bool = True

    def __post_init__(self) -> None:
        check_fields(self, min_area="from 0 to below 1")
        if self.views != "fresh":
            check_fields(self, views=">= 0")

    @property
    def num_stored(self) -> int:
        """Views of each image in the feature store."""
        return 0 if self.views == "fresh" else self.views


def view(image: Image, augmentation: Augmentation, size: int, names: tuple[int, ...]) -> Image:
    """A random view, ``size`` pixels in square. ``names``: what the draw depends on."""
    from PIL.Image import Resampling, Transpose

    rng = np.random.default_rng(derive(0, "view", *names))
    box = _draw_box(image.size, augmentation.min_area, rng)
    mirrored = bool(rng.random() < 0.5) and augmentation.flip
    cut = image.resize((size, size), Resampling.BICUBIC, box=box)
    return cut.transpose(Transpose.FLIP_LEFT_RIGHT) if mirrored else cut


def _draw_box(
    size: tuple[int, int], min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, upper, right and lower pixel of a crop; the largest centred square if none fits."""
    width, height = size
    for _ in range(_MAX_TRIES):
        area = width * height * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    side = min(size)
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side
