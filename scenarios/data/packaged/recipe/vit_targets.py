"""Stage `targets`: what the first image tower makes of every view that the second learns from."""

import logging
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from scenarios.data.packaged.recipe.distil import text_features
from scenarios.data.packaged.recipe.export import MODEL_FOLDER
from scenarios.data.packaged.recipe.features import imagenet_names
from scenarios.data.packaged.recipe.names import words
from scenarios.data.packaged.recipe.render import CLIP_ART
from scenarios.data.packaged.recipe.select import load_selected
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES
from scenarios.data.packaged.recipe.views import (
    VIEW_SETTINGS,
    ViewSettings,
    aligned_pictures,
    channels_first,
    plain_views,
    random_views,
)

logger = logging.getLogger(__name__)

NAME_TEMPLATES = ("{}", "an icon of a {}")


@dataclass(frozen=True)
class Targets:
    """The teacher's answers.

    cells: of each view its 4 x 4 places, [num_batches, B, 16, 256] in half precision; their mean is
    the picture's feature. names: normalised text features [K, 256] of aligned and ImageNet names.
    scale: on cosine similarities. held_back: pixels [V, 3, 128, 128] of the validation pictures as
    they are, held_back_cells [V, 16, 256], and style_names: for each style the features of its
    pictures' names, in the pictures' order.
    """

    cells: Tensor
    names: Tensor
    scale: float
    held_back: Tensor
    held_back_cells: Tensor
    style_names: list[Tensor]


def load_teacher() -> open_clip.CLIP:
    model = open_clip.create_model(f"local-dir:{MODEL_FOLDER}", precision="fp32")
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def teacher_cells(teacher: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Projected features [B, 16, 256] of the places of the last map, row by row.

    Average pooling and projection are linear, so their mean is what `encode_image` gives, here
    within the rounding of the trunk to bfloat16.
    """
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher.visual.trunk.forward_features(pixels.to(memory_format=torch.channels_last))
    return teacher.visual.head.proj(maps.float().flatten(2).transpose(1, 2))  # [B, 16, 256]


@torch.inference_mode()
def name_features(teacher: open_clip.CLIP, names: list[str]) -> Tensor:
    """Mean over the templates, normalised: [K, 256]."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{MODEL_FOLDER}")
    total = torch.zeros(len(names), 256)
    for template in NAME_TEMPLATES:
        tokens = tokenizer([template.format(name) for name in names])
        lengths = (tokens != 0).sum(1)
        for rows in lengths.argsort(stable=True).split(256):
            total[rows] += text_features(teacher, tokens[rows], int(lengths[rows].max()))
    return F.normalize(total, dim=-1)


def targets(work: Path, settings: ViewSettings = VIEW_SETTINGS) -> None:
    """Writes work/vit_targets.pt."""
    torch.set_num_threads(1)
    teacher, pictures = load_teacher(), aligned_pictures(work, settings)
    sources = (*ALIGNED_STYLES, CLIP_ART)
    aligned = {words(n) for name in sources for n in load_selected(work, "aligned", name).names}
    held_back = [load_selected(work, "validation", style) for style in ALIGNED_STYLES]
    plain = torch.cat([plain_views(channels_first(part.pixels)) for part in held_back])
    cells = torch.empty(settings.num_batches, settings.batch_size, 16, 256, dtype=torch.float16)
    for batch in range(settings.num_batches):
        cells[batch] = teacher_cells(teacher, random_views(pictures, batch, settings))
        if (batch + 1) % 64 == 0:
            logger.info("%d of %d batches", batch + 1, settings.num_batches)
    found = Targets(
        cells=cells,
        names=name_features(teacher, sorted(aligned | set(imagenet_names()))),
        scale=float(teacher.logit_scale.detach().exp()),
        held_back=plain,
        held_back_cells=torch.cat([teacher_cells(teacher, part) for part in plain.split(64)]),
        style_names=[
            name_features(teacher, [words(name) for name in part.names]) for part in held_back
        ],
    )
    torch.save(vars(found), work / "vit_targets.pt")


def load_targets(work: Path) -> Targets:
    return Targets(**torch.load(work / "vit_targets.pt", weights_only=True))
