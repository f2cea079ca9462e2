"""Stage `align`: two linear maps that bring image features and text-teacher features together.

The start is closed-form: ridge regression from the ImageNet class names' teacher features to the
classifier's rows, cut to rank 256 by a singular value decomposition. Contrastive training on
(picture, name) pairs follows; the step with the lowest validation loss is kept.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenarios.data.packaged.recipe.features import VIEWS
from scenarios.data.packaged.recipe.render import CLIP_ART
from scenarios.data.packaged.recipe.seeds import torch_generator
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES
from scenarios.data.packaged.recipe.towers import EMBED_DIM, imagenet_head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignSettings:
    num_steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 3e-4
    ridge: float = 2.0
    same_name_cosine: float = 0.95
    feature_noise: float = 0.1
    feature_dropout: float = 0.2
    classifier_weight: float = 0.5
    start_weight_image: float = 0.06
    start_weight_text: float = 0.006
    start_log_scale: float = 3.2
    check_every: int = 50


@dataclass(frozen=True)
class Pairs:
    """Image views [V, N, 1280] and the text features of their names [N, 384]."""

    views: Tensor
    text: Tensor


@dataclass(frozen=True)
class Batch:
    """Image features and their noise [B, 1280], and text features [B, 384]."""

    images: Tensor
    text: Tensor
    noise: Tensor


class Projections(nn.Module):
    """Image 1280 -> 256 and text 384 -> 256, each with a bias, and a temperature."""

    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.image = nn.Linear(1280, EMBED_DIM)
        self.text = nn.Linear(384, EMBED_DIM)
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def embed_image(self, features: Tensor) -> Tensor:
        return F.normalize(self.image(features), dim=-1)

    def embed_text(self, features: Tensor) -> Tensor:
        return F.normalize(self.text(features), dim=-1)


def load_pairs(work: Path, part: str, sources: tuple[str, ...]) -> Pairs:
    loaded = [
        torch.load(work / "features" / f"{part}_{name}.pt", weights_only=True) for name in sources
    ]
    return Pairs(
        torch.cat([item["views"] for item in loaded], dim=1).float(),
        torch.cat([item["text"] for item in loaded]),
    )


def load_projections(work: Path) -> Projections:
    projections = Projections(0.0)
    projections.load_state_dict(torch.load(work / "projections.pt", weights_only=True))
    return projections


@torch.no_grad()
def closed_form_start(work: Path, settings: AlignSettings) -> Projections:
    head = imagenet_head(work)
    names = torch.load(work / "features" / "imagenet_text.pt", weights_only=True)
    draws = torch.randn(20_000, 1280, generator=torch_generator("feature-mean"))
    # What the last batch norm says of its inputs gives the mean feature without any image.
    mean_feature = (draws * head["gain"].abs() + head["shift"]).clamp(0, 6).mean(0)
    mean_name = names.mean(0)
    rows, centred = head["rows"] - head["rows"].mean(0), names - mean_name
    gram = centred.T @ centred + settings.ridge * torch.eye(384)
    left, values, right = torch.linalg.svd(
        torch.linalg.solve(gram, centred.T @ rows).T, full_matrices=False
    )
    root = values[:EMBED_DIM].sqrt()
    start = Projections(settings.start_log_scale)
    start.image.weight.copy_((left[:, :EMBED_DIM] * root).T)
    start.image.bias.copy_(-start.image.weight @ mean_feature)
    start.text.weight.copy_(root[:, None] * right[:EMBED_DIM])
    start.text.bias.copy_(-start.text.weight @ mean_name)
    return start


def _contrast(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy; same [B, B] marks pairs whose names mean the same."""
    logits = image @ text.T * scale  # [B, B]
    target = same / same.sum(1, keepdim=True)
    return -0.5 * (
        (target * logits.log_softmax(1)).sum(1).mean()
        + (target * logits.T.log_softmax(1)).sum(1).mean()
    )


@torch.no_grad()
def _validation(projections: Projections, pairs: list[Pairs]) -> tuple[float, float]:
    """Mean over styles of the loss, and of the accuracy, of naming each plain picture."""
    losses, hits = [], []
    for style in pairs:
        logits = projections.embed_image(style.views[0]) @ projections.embed_text(style.text).T
        logits = logits * projections.log_scale.exp()
        truth = torch.arange(len(logits))
        losses.append(F.cross_entropy(logits, truth))
        hits.append((logits.argmax(1) == truth).float().mean())
    return float(torch.stack(losses).mean()), float(torch.stack(hits).mean())


@dataclass(frozen=True)
class Anchors:
    """What training stays close to: the start, and ImageNet's names and classifier rows."""

    start: Projections
    names: Tensor
    rows: Tensor


def _loss(
    projections: Projections, batch: Batch, anchors: Anchors, settings: AlignSettings
) -> Tensor:
    """Contrast, agreement with the ImageNet classifier's opinion, and closeness to the start."""
    images, text = batch.images, batch.text
    noisy = F.dropout(images * (1 + settings.feature_noise * batch.noise), settings.feature_dropout)
    same = (text @ text.T > settings.same_name_cosine).float()
    scale = projections.log_scale.exp()
    contrast = _contrast(projections.embed_image(noisy), projections.embed_text(text), scale, same)
    opinion = (images @ anchors.rows.T).softmax(1)  # [B, 1000]
    logits = projections.embed_image(images) @ projections.embed_text(anchors.names).T * scale
    classifier = -(opinion * logits.log_softmax(1)).sum(1).mean()
    start = anchors.start
    moved_image = (projections.image.weight - start.image.weight).square().sum()
    moved_text = (projections.text.weight - start.text.weight).square().sum()
    return (
        contrast
        + settings.classifier_weight * classifier
        + settings.start_weight_image * moved_image
        + settings.start_weight_text * moved_text
    )


def _draw(pairs: Pairs, size: int, draw: torch.Generator) -> Batch:
    """Random pictures, each in a random view."""
    index = torch.randint(0, len(pairs.text), (size,), generator=draw)
    view = torch.randint(0, len(VIEWS), (size,), generator=draw)
    images = pairs.views[view, index]
    return Batch(images, pairs.text[index], torch.randn(images.shape, generator=draw))


def align(work: Path, settings: AlignSettings = AlignSettings()) -> None:
    """Writes work/projections.pt: the projections of the step with the lowest validation loss."""
    torch.set_num_threads(1)
    start = closed_form_start(work, settings)
    names = torch.load(work / "features" / "imagenet_text.pt", weights_only=True)
    anchors = Anchors(start, names, imagenet_head(work)["rows"])
    pairs = load_pairs(work, "aligned", (*ALIGNED_STYLES, CLIP_ART))
    validation = [load_pairs(work, "validation", (style,)) for style in ALIGNED_STYLES]
    projections = copy.deepcopy(start)
    optimiser = torch.optim.AdamW(projections.parameters(), settings.learning_rate, weight_decay=0)
    draw, best = torch_generator("align"), float("inf")
    with torch.random.fork_rng():
        # Dropout takes no generator of its own.
        torch.manual_seed(draw.initial_seed())
        for step in range(settings.num_steps + 1):
            if step % settings.check_every == 0:
                value, accuracy = _validation(projections, validation)
                logger.info("step %d: validation loss %.3f accuracy %.3f", step, value, accuracy)
                if value < best:
                    best = value
                    torch.save(projections.state_dict(), work / "projections.pt")
            batch = _draw(pairs, settings.batch_size, draw)
            loss = _loss(projections, batch, anchors, settings)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
