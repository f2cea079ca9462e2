"""Images through a frozen encoder, in chunks of one fixed batch shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scenarios.data.dataset import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

Ints = npt.NDArray[np.int64]

Transform = Callable[["Image"], Tensor]
"""One RGB image to one input of the encoder, [3, H, W]."""

Look = Callable[["Image", int], "Image"]
"""A view of the image of a row."""

Encoder = Callable[[Tensor], Tensor]
"""Inputs [B, 3, H, W] to features [B, ...] of a dtype that NumPy has, on any device."""


TextEncoder = Callable[[Sequence[str]], Tensor]
"""Texts to inputs [B, ...] of a dtype that NumPy has, on any device."""


def chunk_rows(rows: Ints, batch_size: int) -> list[Ints]:
    """``rows`` cut into chunks of ``batch_size``; the last one may be shorter."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


@torch.no_grad()
def encode_chunk(
    dataset: Dataset,
    rows: Ints,
    encoder: Encoder,
    transform: Transform,
    batch_size: int,
    *,
    look: Look | None = None,
) -> npt.NDArray[Any]:
    """Features [len(rows), ...] of at most ``batch_size`` rows.

    The batch is filled up with its last image, so that the encoder always sees one shape and the
    bits of a row do not depend on how many processes share the work. Inputs are made on the CPU;
    the encoder moves them. look: what to show of each image instead of all of it. DataError for an
    unreadable image, or a set of texts.
    """
    dataset.require("image")
    images = ((dataset.image(int(row)), int(row)) for row in rows)
    shown = [image if look is None else look(image, row) for image, row in images]
    inputs = torch.stack([transform(image) for image in shown])  # [b, 3, H, W]
    padding = inputs[-1:].expand(batch_size - len(rows), *inputs.shape[1:])
    features = encoder(torch.cat([inputs, padding]))[: len(rows)]
    return features.cpu().numpy()


def encode_texts(dataset: Dataset, rows: Ints, encoder: TextEncoder) -> npt.NDArray[Any]:
    """Inputs [len(rows), ...] of some texts. DataError for an unreadable one, or a set of images,
    or where the encoder refuses a text."""
    dataset.require("text")
    texts = [dataset.text(int(row)) for row in rows]
    return encoder(texts).cpu().numpy()


def encode_responses(dataset: Dataset, rows: Ints, encoder: TextEncoder) -> npt.NDArray[Any]:
    """Inputs [len(rows), ...] of the first response of each row; DataError as ``encode_texts``."""
    texts = [dataset.responses[int(row)][0] for row in rows]
    return encoder(texts).cpu().numpy()
