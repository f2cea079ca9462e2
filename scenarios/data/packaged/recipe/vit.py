"""Stage `vit`: a small ViT learns to give the first image tower's features.

It sees the pictures that the first tower was aligned on and no others. The class token learns the
picture's feature, and the patches the features of their places.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from torch import Tensor, nn

from scenarios.data.packaged.recipe.seeds import number, numpy_generator, torch_generator
from scenarios.data.packaged.recipe.towers import EMBED_DIM
from scenarios.data.packaged.recipe.views import (
    IMAGE_SIZE,
    VIEW_SETTINGS,
    ViewSettings,
    aligned_pictures,
    plain_views,
    random_views,
)
from scenarios.data.packaged.recipe.vit_targets import Targets, load_targets

logger = logging.getLogger(__name__)

PATCH_SIZE = 16
VISION_CFG: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "width": 128,
    "layers": 6,
    "head_width": 32,
}
POSITION_WIDTH = 32  # of the 128 channels, at first; as many as a head has
_GRID = IMAGE_SIZE // PATCH_SIZE
_CELLS = 4  # of the teacher's last map, on each side


@dataclass(frozen=True)
class VitSettings:
    """A step is a batch of views, in updates of `update_size` views.

    The rate is constant after the warm-up, falls to 0 over the last steps before the first of
    `ends`, starts again at its full height, and falls again before the next.
    """

    ends: tuple[int, ...] = (440, 800, 1160)
    cool_down_steps: int = 260
    warm_up_steps: int = 50
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    cosine_weight: float = 5.0
    cell_weight: float = 5.0
    patch_exponent: float = 0.25
    sharpness: float = 3.0
    update_size: int = 32
    check_every: int = 40
    save_every_s: float = 60.0


@torch.no_grad()
def new_tower(pictures: Tensor, settings: VitSettings) -> nn.Module:
    """Patches start as their principal components in the channels that positions leave free."""
    with torch.random.fork_rng():
        torch.manual_seed(number("vit"))
        tower: nn.Module = _build_vision_tower(EMBED_DIM, dict(VISION_CFG))
    tower.conv1.weight.zero_()
    tower.conv1.weight[:-POSITION_WIDTH].copy_(_components(pictures, settings.patch_exponent))
    tower.positional_embedding.zero_()
    tower.positional_embedding[1:, -POSITION_WIDTH:].copy_(_positions())
    for block in tower.transformer.resblocks:
        _look_nearby(block.attn, settings.sharpness)
        for layer in (block.attn.out_proj, block.mlp.c_proj):
            layer.weight.mul_((2 * VISION_CFG["layers"]) ** -0.5)
    return tower


def _frequencies() -> Tensor:
    return torch.logspace(-1, 0, POSITION_WIDTH // 4) * (torch.pi / 2)  # [8]


def _positions() -> Tensor:
    """[64, 32]: cosines, then sines, of each patch's row and column."""
    places = torch.cartesian_prod(torch.arange(_GRID), torch.arange(_GRID))
    angles = (places[:, :, None] * _frequencies()).flatten(1)  # [64, 16]
    return torch.cat([angles.cos(), angles.sin()], 1) * 2**0.5


def _look_nearby(attention: nn.MultiheadAttention, sharpness: float) -> None:
    """Queries and keys that compare positions alone: each head looks one patch to its side.

    A shift of a position is a rotation, so it is a linear map. The class token has no position at
    first, and looks at all patches alike.
    """
    query, key, _ = attention.in_proj_weight.view(3, attention.num_heads, POSITION_WIDTH, -1)
    for head, offset in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
        query[head].zero_()
        key[head].zero_()
        angles = (torch.tensor(offset)[:, None] * _frequencies()).flatten()  # [16]
        cos, sin = angles.cos().diag(), angles.sin().diag()
        shift = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])  # [32, 32]
        query[head, :, -POSITION_WIDTH:].copy_(sharpness * shift)
        key[head, :, -POSITION_WIDTH:].copy_(torch.eye(POSITION_WIDTH))


def _components(pictures: Tensor, exponent: float) -> Tensor:
    """[96, 3, 16, 16]: the first principal components of the patches of 1,024 plain pictures.

    Each is divided by the power `exponent` of its variance, all then so that an embedded patch has
    a mean square of 1.
    """
    draw = numpy_generator("patches").permutation(len(pictures))[:1024]
    patches = F.unfold(plain_views(pictures[draw]), PATCH_SIZE, stride=PATCH_SIZE)
    rows = patches.transpose(1, 2).flatten(0, 1)  # [1024 * 64, 768]
    centred = rows - rows.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    width = VISION_CFG["width"] - POSITION_WIDTH
    variances, directions = variances.flip(0)[:width], directions.flip(1)[:, :width]
    kernels = directions * variances.clamp(min=1e-6) ** -exponent  # [768, 96]
    kernels /= (rows @ kernels).square().mean().sqrt()
    return kernels.T.reshape(width, 3, PATCH_SIZE, PATCH_SIZE)


def tower_outputs(tower: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, 256], and projected patches averaged over the teacher's cells [B, 16, 256]."""
    hidden = tower.ln_post(tower.transformer(tower._embeds(pixels)))  # [B, 65, 128]
    projected = hidden @ tower.proj  # [B, 65, 256]
    side = _GRID // _CELLS
    patches = projected[:, 1:].reshape(-1, _CELLS, side, _CELLS, side, EMBED_DIM)
    return projected[:, 0], patches.mean((2, 4)).flatten(1, 2)


def _loss(
    outputs: tuple[Tensor, Tensor], cells: Tensor, targets: Targets, settings: VitSettings
) -> Tensor:
    """Cosine distances of pictures and cells, and the divergence of what names they suggest."""
    features, places = F.normalize(outputs[0], dim=-1), outputs[1]
    wanted = F.normalize(cells.mean(1), dim=-1)  # [B, 256]
    distance = (1 - (features * wanted).sum(1)).mean()
    cell_distance = (1 - F.cosine_similarity(places, cells, dim=-1)).mean()
    ours = (targets.scale * features @ targets.names.T).log_softmax(1)  # [B, K]
    theirs = (targets.scale * wanted @ targets.names.T).log_softmax(1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return settings.cosine_weight * distance + settings.cell_weight * cell_distance + divergence


@torch.inference_mode()
def _held_back(tower: nn.Module, targets: Targets, settings: VitSettings) -> tuple[float, float]:
    """Loss on the validation pictures, and mean over styles of naming each among its style's."""
    parts = [tower_outputs(tower, pixels) for pixels in targets.held_back.split(64)]
    features, places = (torch.cat(part) for part in zip(*parts, strict=True))
    loss = _loss((features, places), targets.held_back_cells, targets, settings)
    sizes = [len(names) for names in targets.style_names]
    hits = [
        ((part @ names.T).argmax(1) == torch.arange(len(names))).float().mean()
        for part, names in zip(features.split(sizes), targets.style_names, strict=True)
    ]
    return float(loss), float(torch.stack(hits).mean())


def _learning_rate(step: int, settings: VitSettings) -> float:
    warm = (step + 1) / settings.warm_up_steps
    left = (min(end for end in settings.ends if end > step) - step) / settings.cool_down_steps
    return settings.learning_rate * min(1.0, warm, left)


def _optimisers(tower: nn.Module, settings: VitSettings) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for all else."""
    matrices = [p for p in tower.transformer.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in tower.parameters() if id(p) not in chosen]
    decay, rate = settings.weight_decay, settings.learning_rate
    return [
        torch.optim.Muon(matrices, rate, decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class Training:
    """The tower, its optimisers, and how far they are; saved, and gone on with, as one file."""

    def __init__(self, tower: nn.Module, settings: VitSettings, path: Path) -> None:
        self.tower, self.path = tower, path
        self.optimisers = _optimisers(tower, settings)
        self.step, self.best = 0, float("inf")
        if path.is_file():
            stored = torch.load(path, weights_only=True)
            tower.load_state_dict(stored["tower"])
            for optimiser, state in zip(self.optimisers, stored["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            self.step, self.best = stored["step"], stored["best"]
            logger.info("going on at step %d", self.step)

    def update(self, loss: Tensor, learning_rate: float) -> None:
        self.tower.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()

    def save(self) -> None:
        state = {
            "tower": self.tower.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "best": self.best,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)


def _batch(step: int, num_batches: int) -> int:
    """All batches in a new order, pass by pass."""
    draw = torch_generator("vit-order", step // num_batches)
    return int(torch.randperm(num_batches, generator=draw)[step % num_batches])


def vit(
    work: Path, settings: VitSettings = VitSettings(), views: ViewSettings = VIEW_SETTINGS
) -> None:
    """Writes work/vit.pt: the tower of the step with the lowest loss on validation pictures.

    It goes on from work/vit_training.pt where that is there.
    """
    torch.set_num_threads(1)
    pictures, targets = aligned_pictures(work, views), load_targets(work)
    run = Training(new_tower(pictures, settings), settings, work / "vit_training.pt")
    saved = time.monotonic()
    while run.step < settings.ends[-1]:
        batch = _batch(run.step, views.num_batches)
        pixels, cells = random_views(pictures, batch, views), targets.cells[batch].float()
        rate = _learning_rate(run.step, settings)
        for part in torch.arange(len(pixels)).split(settings.update_size):
            outputs = tower_outputs(run.tower, pixels[part])
            loss = _loss(outputs, cells[part], targets, settings)
            run.update(loss, rate)
        run.step += 1
        if run.step % settings.check_every == 0:
            value, accuracy = _held_back(run.tower, targets, settings)
            logger.info(
                "step %d: loss %.3f, held back %.3f, accuracy %.3f",
                run.step,
                loss.item(),
                value,
                accuracy,
            )
            if value < run.best:
                run.best = value
                torch.save(run.tower.state_dict(), work / "vit.pt")
        if time.monotonic() - saved > settings.save_every_s:
            run.save()
            saved = time.monotonic()
    run.save()
