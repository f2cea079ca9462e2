"""Random views of the aligned pictures, in batches that a number names.

A batch is drawn again from its number at any time, so only the teacher's answers to it are kept.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from scenarios.data.packaged.recipe.export import MODEL_FOLDER
from scenarios.data.packaged.recipe.pictures import SIZE, content_hash
from scenarios.data.packaged.recipe.render import CLIP_ART
from scenarios.data.packaged.recipe.seeds import numpy_generator, torch_generator
from scenarios.data.packaged.recipe.select import load_selected
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES

IMAGE_SIZE = 128
_LUMA = (0.299, 0.587, 0.114)
_COLOURS = ("plain", "tinted", "grey", "ink", "inverted")


@dataclass(frozen=True)
class ViewSettings:
    """Sides are of the square cut out of a picture of 64 pixels, on white where it is larger.

    All pictures of a batch share the side; place, mirror and colours are drawn for each.
    """

    batch_size: int = 64
    num_batches: int = 256
    emoji_repeats: int = 2
    whole_share: float = 0.3
    smallest_side: int = 40
    largest_side: int = 84
    mirror_share: float = 0.4
    colour_shares: tuple[float, ...] = (0.5, 0.3, 0.08, 0.07, 0.05)
    tint: float = 0.4


VIEW_SETTINGS = ViewSettings()


def aligned_pictures(work: Path, settings: ViewSettings) -> Tensor:
    """Uint8 [N, 3, 64, 64]; emoji stand there several times, to be drawn as often.

    ValueError unless they are the very pictures that the shipped list of aligned items names.
    """
    parts = [(name, load_selected(work, "aligned", name).pixels) for name in ALIGNED_STYLES]
    parts.append((CLIP_ART, load_selected(work, "aligned", CLIP_ART).pixels))
    found = sorted(content_hash(picture) for _, pixels in parts for picture in pixels)
    listed = pq.read_table(MODEL_FOLDER / "aligned_items.parquet")["sha256"].to_pylist()
    if found != sorted(listed):
        raise ValueError("the selected pictures are not those of aligned_items.parquet")
    repeated = [
        pixels
        for name, pixels in parts
        for _ in range(1 if name == CLIP_ART else settings.emoji_repeats)
    ]
    return channels_first(np.concatenate(repeated))


def channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def enlarged(pixels: Tensor) -> Tensor:
    """What open_clip's evaluation transform makes of pictures [B, 3, S, S] of levels 0 to 1."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    large = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return large.clamp(0, 1) * 2 - 1


def plain_views(pixels: Tensor) -> Tensor:
    """[B, 3, 128, 128] of pictures uint8 [B, 3, 64, 64] as they are."""
    return enlarged(pixels.float() / 255)


def random_views(pictures: Tensor, batch: int, settings: ViewSettings) -> Tensor:
    """Batch number `batch`, float [B, 3, 128, 128]; every pass has all pictures in a new order."""
    draw = torch_generator("views", batch)
    pixels = pictures[_rows(len(pictures), batch, settings.batch_size)].float() / 255
    pixels = _cut(pixels, _side(draw, settings), draw)
    mirrored = torch.rand(len(pixels), 1, 1, 1, generator=draw) < settings.mirror_share
    pixels = torch.where(mirrored, pixels.flip(-1), pixels)
    return enlarged(_coloured(pixels, draw, settings))


def _rows(num_pictures: int, batch: int, size: int) -> np.ndarray:
    per_pass = num_pictures // size
    order = numpy_generator("view-order", batch // per_pass).permutation(num_pictures)
    start = size * (batch % per_pass)
    return order[start : start + size]


def _side(draw: torch.Generator, settings: ViewSettings) -> int:
    if torch.rand((), generator=draw) < settings.whole_share:
        return SIZE
    sides = (settings.smallest_side, settings.largest_side + 1)
    return int(torch.randint(*sides, (), generator=draw))


def _cut(pixels: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Squares [B, 3, side, side]: parts of the pictures, or all of them somewhere on white."""
    margin = max(0, side - SIZE)
    padded = F.pad(pixels, (margin,) * 4, value=1.0)
    room = abs(side - SIZE)
    corners = torch.randint(0, room + 1, (len(pixels), 2), generator=draw).tolist()
    cut = [
        picture[:, top : top + side, left : left + side]
        for picture, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(cut)


def _coloured(pixels: Tensor, draw: torch.Generator, settings: ViewSettings) -> Tensor:
    """Each picture as it is, tinted, grey, black ink on white, or inverted."""
    shape = (len(pixels), 1, 1, 1)
    luma = (pixels * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)  # [B, 1, S, S]
    middle = (luma.amax((2, 3), keepdim=True) + luma.amin((2, 3), keepdim=True)) / 2
    gain = 1 + settings.tint * (2 * torch.rand(len(pixels), 3, 1, 1, generator=draw) - 1)
    variants = {
        "plain": pixels,
        "tinted": (pixels * gain).clamp(0, 1),
        "grey": luma.expand_as(pixels),
        "ink": (luma > middle).float().expand_as(pixels),
        "inverted": 1 - pixels,
    }
    shares = torch.tensor(settings.colour_shares)
    kinds = torch.multinomial(shares, len(pixels), replacement=True, generator=draw).view(shape)
    for i, name in enumerate(_COLOURS):
        pixels = torch.where(kinds == i, variants[name], pixels)
    return pixels
