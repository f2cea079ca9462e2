"""Images and texts to stored inputs, in a client actor: for the store, or anew in every round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_core.backbones.clip import load_clip
from fl_core.backbones.token_rows import RESPONSE_IDS
from fl_core.backbones.union import load_backbone
from fl_core.local import Problem
from orchestrator.jobs import EncodeJob, EncodeReply, Setup
from orchestrator.shared_backbone import bring_backbone
from scenarios.augment import Augmentation, view
from scenarios.data.dataset import Dataset
from scenarios.encode import (
    Encoder,
    TextEncoder,
    Transform,
    chunk_rows,
    encode_chunk,
    encode_responses,
    encode_texts,
)

if TYPE_CHECKING:
    from PIL.Image import Image

FRESH_BATCH = 64
"""Images per pass through the image tower where views are made anew."""


def encode(job: EncodeJob, device: torch.device) -> list[EncodeReply]:
    """Inputs of chunks of images or texts, [rows, ...], or of images' views, [rows, V, ...]."""
    torch.set_num_threads(job.threads)
    bring_backbone(job.backbone, job.shared_store)
    if job.dataset.modality == "text":
        reader = _text_reader(job.backbone, str(device), job.kind)
        reads = encode_responses if job.kind.startswith(RESPONSE_IDS) else encode_texts
        return [EncodeReply(index, reads(job.dataset, rows, reader)) for index, rows in job.chunks]
    tower = _image_tower(job.backbone, str(device), job.kind)
    return [
        EncodeReply(index, _chunk(job.dataset, rows, tower, job.batch_size, job.augmentation))
        for index, rows in job.chunks
    ]


def with_fresh_views(
    setup: Setup, problem: Problem, shards: Sequence[Tensor], round: int
) -> tuple[Problem, list[Tensor]]:
    """A problem that holds one new view of each example in ``shards``, and the shards within it."""
    assert setup.dataset is not None  # sent along with fresh views
    rows = np.unique(torch.cat(list(shards)).numpy())
    device, views = problem.labels.device, {}
    for kind in setup.learner.inputs:
        tower = _image_tower(setup.backbone, str(device), kind)
        parts = [
            _views(setup.dataset, part, tower, FRESH_BATCH, (setup.augmentation, 1, round))
            for part in chunk_rows(rows, FRESH_BATCH)
        ]
        views[kind] = torch.from_numpy(np.concatenate(parts)).to(device)
    index = torch.from_numpy(rows)
    there = index.to(device)
    tasks = None if problem.tasks is None else problem.tasks[there]
    small = replace(problem, labels=problem.labels[there], tasks=tasks, inputs={}, views=views)
    return small, [torch.searchsorted(index, shard) for shard in shards]


Tower = tuple[Encoder, Transform, int]


def _chunk(
    dataset: Dataset, rows: np.ndarray, tower: Tower, batch_size: int, augmentation: Augmentation
) -> np.ndarray:
    if augmentation.num_stored:
        return _views(dataset, rows, tower, batch_size, (augmentation, augmentation.num_stored, 0))
    encoder, transform, _ = tower
    return encode_chunk(dataset, rows, encoder, transform, batch_size)


def _views(
    dataset: Dataset,
    rows: np.ndarray,
    tower: Tower,
    batch_size: int,
    drawn: tuple[Augmentation, int, int],
) -> np.ndarray:
    """Features [rows, V, ...] of V views of each image; drawn: what the draws depend on."""
    augmentation, num_views, round = drawn
    encoder, transform, size = tower

    def looks() -> Iterator[np.ndarray]:
        for number in range(num_views):
            names = (round, number)
            look = partial(_look, augmentation=augmentation, size=size, names=names)
            yield encode_chunk(dataset, rows, encoder, transform, batch_size, look=look)

    return np.stack(list(looks()), axis=1)


def _look(
    image: Image, row: int, *, augmentation: Augmentation, size: int, names: tuple[int, int]
) -> Image:
    return view(image, augmentation, size, (*names, row))


@lru_cache(maxsize=2)
def _image_tower(backbone: Path, device: str, kind: str) -> Tower:
    """Built once per process, not once per chunk of images."""
    clip = load_clip(backbone, device)
    size = clip.info["preprocess"]["size"]
    return clip.encoder(kind), clip.transform(), size if isinstance(size, int) else max(size)


@lru_cache(maxsize=2)
def _text_reader(backbone: Path, device: str, kind: str) -> TextEncoder:
    return load_backbone(backbone, device).encoder(kind)  # type: ignore[return-value]
