"""A labelled set of images: everything but the pixels in memory, each image read when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

TRAIN, TEST, UNSPECIFIED = 0, 1, -1
DEFAULT_TEMPLATES = ("a photo of a {}.",)
NO_DOMAINS = ("all",)


class ImageSource(Protocol):
    """Where encoded images come from. Pickles as a path, never as the images."""

    def read(self, row: int) -> bytes:
        """The encoded image of one row. OSError where it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The place of one row, for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images with labels. Row order is part of the data: features are stored by row.

    ``labels``, ``domain_ids``, ``concept_ids`` int64 [N]; ``split`` int8 [N] (TRAIN, TEST or
    UNSPECIFIED); ``content_hashes`` uint8 [N, 32], the SHA-256 of the raw RGB pixels;
    ``name_aligned`` bool [N] where the data says for which rows the packaged backbone has seen the
    name. ``classes`` and ``domains`` are sorted, and label i means ``classes[i]``. The first of
    ``templates`` is the default. Rows with one concept show one thing, and stay in one split.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    labels: Ints
    domains: tuple[str, ...]
    domain_ids: Ints
    concept_ids: Ints
    split: npt.NDArray[np.int8]
    content_hashes: Bytes
    images: ImageSource
    name_aligned: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        num_rows = len(self.labels)
        if num_rows == 0:
            raise DataError(f"data set {self.name!r} has no rows.")
        columns = (self.domain_ids, self.concept_ids, self.split)
        if any(column.shape != (num_rows,) for column in columns):
            raise DataError(f"data set {self.name!r}: every column must have {num_rows} rows.")
        if self.content_hashes.shape != (num_rows, 32):
            raise DataError(f"data set {self.name!r}: content_hashes must be [{num_rows}, 32].")
        if list(self.classes) != sorted(set(self.classes)):
            raise DataError(f"data set {self.name!r}: classes must be sorted and differ.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                f"data set {self.name!r}: labels must lie in 0..{len(self.classes) - 1}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over everything but name and place, equal on every machine."""
        header = [self.classes, self.templates, self.domains]
        digest = hashlib.sha256(json.dumps(header).encode())
        for column in (self.labels, self.domain_ids, self.concept_ids, self.split):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        digest.update(self.content_fingerprint.encode())
        return digest.hexdigest()

    @cached_property
    def content_fingerprint(self) -> str:
        """Hash over the images alone, in order: all that stored image features depend on."""
        return hashlib.sha256(np.ascontiguousarray(self.content_hashes).tobytes()).hexdigest()

    def image(self, row: int) -> Image:
        """The image of one row as RGB. DataError where it is unreadable or not what was loaded."""
        try:
            image = decode(self.images.read(row))
        except UNREADABLE as error:
            raise DataError(
                f"data set {self.name!r}: cannot read image row {row} "
                f"({self.images.where(row)}): {error}. Replace or remove that image; for a "
                "packaged data set run `fedarena doctor` and reinstall."
            ) from error
        if hash_pixels(image) != self.content_hashes[row].tobytes():
            raise DataError(
                f"data set {self.name!r}: image row {row} ({self.images.where(row)}) is not the "
                "image whose content hash was recorded. Restore the file, or load the data anew."
            )
        return image


def decode(encoded: bytes) -> Image:
    """An encoded image as RGB. Raises one of UNREADABLE."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def hash_pixels(image: Image) -> bytes:
    """SHA-256 of the raw RGB pixels, 32 bytes."""
    return hashlib.sha256(image.tobytes()).digest()


def hash_array(hashes: list[bytes]) -> Bytes:
    """Hashes of 32 bytes as uint8 [N, 32]."""
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), 32)
