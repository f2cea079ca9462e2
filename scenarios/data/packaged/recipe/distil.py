"""Stage `distil`: CLIP's causal text tower learns to give the projected teacher's features."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from scenarios.data.packaged.recipe.align import load_pairs, load_projections
from scenarios.data.packaged.recipe.names import words
from scenarios.data.packaged.recipe.seeds import number, numpy_generator
from scenarios.data.packaged.recipe.select import load_selected
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES
from scenarios.data.packaged.recipe.towers import CONTEXT_LENGTH, EMBED_DIM, TEMPLATES, new_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistilSettings:
    num_steps: int = 1000
    batch_size: int = 192
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warm_up_steps: int = 60
    weight_decay: float = 0.01
    temperature: float = 0.05
    cosine_weight: float = 5.0
    token_scale: float = 0.32
    position_scale: float = 0.5
    num_threads: int = 1
    check_every: int = 100
    num_held_back: int = 1920


@dataclass(frozen=True)
class Texts:
    """Tokens [N, 32] and targets [N, 256], sorted by length, with the lengths [N]."""

    tokens: Tensor
    targets: Tensor
    lengths: Tensor


def text_features(model: open_clip.CLIP, tokens: Tensor, length: int) -> Tensor:
    """Normalised [B, 256]; causal attention makes cutting the padding exact."""
    tokens = tokens[:, :length]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]  # [B, L, 256]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    ends = hidden[torch.arange(len(tokens)), tokens.argmax(-1)]
    return F.normalize(ends @ model.text_projection, dim=-1)


@torch.no_grad()
def _new_student(work: Path, token_features: Tensor, settings: DistilSettings) -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(number("student"))
        model = new_model(work)
    model.token_embedding.weight[: len(token_features)].copy_(token_features * settings.token_scale)
    model.text_projection.copy_(torch.eye(EMBED_DIM))
    model.positional_embedding.mul_(settings.position_scale)
    return model


def _texts(texts: list[str], targets: Tensor) -> Texts:
    tokens = SimpleTokenizer(context_length=CONTEXT_LENGTH)(texts)
    lengths = (tokens != 0).sum(1)
    order = lengths.argsort(stable=True)
    return Texts(tokens[order], targets[order], lengths[order])


def _loss(model: open_clip.CLIP, batch: Texts, settings: DistilSettings) -> Tensor:
    """Cosine distance to the target, and cross-entropy of the similarities within the batch."""
    features = text_features(model, batch.tokens, int(batch.lengths.max()))
    distance = (1 - (features * batch.targets).sum(1)).mean()
    ours = features @ batch.targets.T / settings.temperature  # [B, B]
    theirs = batch.targets @ batch.targets.T / settings.temperature
    return settings.cosine_weight * distance + F.cross_entropy(ours, theirs.softmax(1))


def _window(texts: Texts, start: int, size: int) -> Texts:
    stop = start + size
    return Texts(texts.tokens[start:stop], texts.targets[start:stop], texts.lengths[start:stop])


def _learning_rate(step: int, settings: DistilSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warm_up_steps)
    return (
        settings.learning_rate * warm * (1 - step / settings.num_steps)
        + settings.final_learning_rate
    )


@torch.no_grad()
def _held_back_loss(model: open_clip.CLIP, texts: Texts, settings: DistilSettings) -> float:
    size = settings.batch_size
    return float(
        np.mean(
            [
                _loss(model, _window(texts, i, size), settings).item()
                for i in range(0, len(texts.tokens), size)
            ]
        )
    )


@torch.no_grad()
def validation_accuracy(work: Path, model: open_clip.CLIP) -> float:
    """Mean over the aligned styles of naming each validation picture among its style's names."""
    tokenizer, hits = SimpleTokenizer(context_length=CONTEXT_LENGTH), []
    image = load_projections(work)
    for style in ALIGNED_STYLES:
        names = [words(name) for name in load_selected(work, "validation", style).names]
        tokens = [tokenizer([template.format(name) for name in names]) for template in TEMPLATES]
        text = torch.stack([text_features(model, item, CONTEXT_LENGTH) for item in tokens]).mean(0)
        views = load_pairs(work, "validation", (style,)).views[0]
        logits = image.embed_image(views) @ F.normalize(text, dim=-1).T
        hits.append((logits.argmax(1) == torch.arange(len(names))).float().mean())
    return float(torch.stack(hits).mean())


def _split(work: Path, settings: DistilSettings) -> tuple[Texts, Texts, Tensor]:
    """Texts to learn from, texts held back, and the projected token features."""
    stored = torch.load(work / "corpus.pt", weights_only=True)
    projections = load_projections(work)
    with torch.no_grad():
        targets = projections.embed_text(stored["features"].float())
        token_features = projections.embed_text(stored["tokens"].float())
    order = numpy_generator("held-back-texts").permutation(len(targets))
    back, rest = order[: settings.num_held_back], order[settings.num_held_back :]
    parts = [
        _texts([stored["texts"][i] for i in rows], targets[torch.from_numpy(rows)])
        for rows in (rest, back)
    ]
    return parts[0], parts[1], token_features


def distil(work: Path, settings: DistilSettings = DistilSettings()) -> None:
    torch.set_num_threads(settings.num_threads)
    texts, held_back, token_features = _split(work, settings)
    model = _new_student(work, token_features, settings)
    frozen = ("visual", "logit")
    trained = [value for name, value in model.named_parameters() if not name.startswith(frozen)]
    optimiser = torch.optim.AdamW(
        trained, weight_decay=settings.weight_decay, betas=(0.9, 0.98), fused=True
    )
    draw, best = numpy_generator("distil"), float("inf")
    for step in range(settings.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, settings)
        start = int(draw.integers(len(texts.tokens) - settings.batch_size))
        loss = _loss(model, _window(texts, start, settings.batch_size), settings)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if (step + 1) % settings.check_every == 0:
            value = _held_back_loss(model, held_back, settings)
            accuracy = validation_accuracy(work, model)
            logger.info(
                "step %d: loss %.3f, held-back loss %.3f, accuracy %.3f",
                step + 1,
                loss.item(),
                value,
                accuracy,
            )
            if value < best:
                best = value
                torch.save(copy.deepcopy(model.state_dict()), work / "student.pt")
