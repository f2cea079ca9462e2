"""A labelled set of images or texts: all in memory but the items, each read when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

TRAIN, TEST, VALIDATION, UNSPECIFIED = 0, 1, 2, -1
DEFAULT_TEMPLATES = ("a photo of a {}.",)
NO_DOMAINS = ("all",)
_NUM_LISTED = 10


Modality = Literal["image", "text"]


class ItemSource(Protocol):
    """Where encoded images or UTF-8 texts come from. Pickles as a path, never as the items."""

    def read(self, row: int) -> bytes:
        """The encoded item of one row. OSError where it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The place of one row, for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """N items with labels. Row order is part of the data: features are stored by row.

    ``labels``, ``domain_ids``, ``concept_ids`` int64 [N]; ``split`` int8 [N] (TRAIN, TEST,
    VALIDATION or UNSPECIFIED); ``content_hashes`` uint8 [N, 32], the SHA-256 of an image's raw RGB
    pixels, or of a text's UTF-8 in normal form C; ``name_aligned`` bool [N] where the data says for
    which rows the packaged backbone has seen the name; ``client_ids`` int64 [N] where the data name
    natural owners: row r belongs to ``clients[client_ids[r]]``, and -1 says that a row (of a common
    test split, say) has none. ``classes``, ``domains`` and ``clients`` are sorted; label i means
    ``classes[i]``; ``class_order`` lists the classes as published where that order has a meaning.
    The first of ``templates`` is the default. Rows with one concept show one thing, and stay in one
    split. Where the domains are tasks, ``families`` names the family of each of them, and
    ``candidates`` bool [D, C] the classes that its rows are chosen from; otherwise every row is
    chosen from all classes. ``responses``: for open-ended tasks the texts that may answer each row,
    as written; a model is trained on the first.
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
    items: ItemSource
    name_aligned: Bools | None = None
    client_ids: Ints | None = None
    clients: tuple[str, ...] = ()
    modality: Modality = "image"
    class_order: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    candidates: Bools | None = None
    responses: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise DataError(f"data set {self.name!r} has no rows.")
        faults = list(_faults(self))
        if faults:
            raise DataError(f"data set {self.name!r}: {' '.join(faults)}")

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
        # What a data set lacks is left out, so that its hash does not change with what others have.
        if self.client_ids is not None:
            digest.update(json.dumps(["clients", self.clients]).encode())
            digest.update(np.ascontiguousarray(self.client_ids, dtype="<i8").tobytes())
        if self.modality != "image":
            digest.update(json.dumps(["modality", self.modality]).encode())
        if self.class_order:
            digest.update(json.dumps(["class_order", self.class_order]).encode())
        if self.candidates is not None:
            digest.update(json.dumps(["families", self.families]).encode())
            digest.update(np.ascontiguousarray(self.candidates, dtype="u1").tobytes())
        if self.responses:
            digest.update(json.dumps(["responses", self.responses]).encode())
        return digest.hexdigest()

    @cached_property
    def content_fingerprint(self) -> str:
        """Hash over the items alone, in order: all that stored features depend on."""
        return hashlib.sha256(np.ascontiguousarray(self.content_hashes).tobytes()).hexdigest()

    @cached_property
    def response_fingerprint(self) -> str:
        """Hash over what a model is trained to write, in order: all that its tokens depend on."""
        first = [own[0] for own in self.responses]
        return hashlib.sha256(json.dumps(first).encode()).hexdigest()

    def image(self, row: int) -> Image:
        """The image of one row as RGB. DataError where it is unreadable or not what was loaded."""
        self.require("image")
        try:
            image = decode(self.items.read(row))
        except UNREADABLE as error:
            raise self._unreadable(row, error) from error
        self._check_hash(row, hash_pixels(image))
        return image

    def text(self, row: int) -> str:
        """The text of one row in normal form C. DataError as for ``image``."""
        self.require("text")
        try:
            text = decode_text(self.items.read(row))
        except UNREADABLE as error:
            raise self._unreadable(row, error) from error
        self._check_hash(row, hash_text(text))
        return text

    def require(self, modality: Modality) -> None:
        """DataError unless the items are of this kind."""
        if self.modality != modality:
            raise DataError(
                f"data set {self.name!r} holds {self.modality}s, but {modality}s were asked for. "
                f"Choose a backbone that reads {self.modality}s, or another data set."
            )

    def _unreadable(self, row: int, error: Exception) -> DataError:
        return DataError(
            f"data set {self.name!r}: cannot read {self.modality} row {row} "
            f"({self.items.where(row)}): {error}. Replace or remove that {self.modality}; for a "
            "packaged data set run `fedarena doctor` and reinstall."
        )

    def _check_hash(self, row: int, digest: bytes) -> None:
        if digest != self.content_hashes[row].tobytes():
            raise DataError(
                f"data set {self.name!r}: {self.modality} row {row} ({self.items.where(row)}) is "
                f"not the {self.modality} whose content hash was recorded. Restore the file, or "
                "load the data anew."
            )


def _faults(dataset: Dataset) -> Iterator[str]:
    """What contradicts itself in a data set of at least one row."""
    num_rows = len(dataset.labels)
    columns: list[npt.NDArray[Any]] = [dataset.domain_ids, dataset.concept_ids, dataset.split]
    columns += [] if dataset.client_ids is None else [dataset.client_ids]
    if any(column.shape != (num_rows,) for column in columns):
        yield f"every column must have {num_rows} rows."
    if dataset.content_hashes.shape != (num_rows, 32):
        yield f"content_hashes must be [{num_rows}, 32]."
    if (dataset.client_ids is None) != (not dataset.clients):
        yield "clients and client_ids must be given together."
    for kind, names in (("classes", dataset.classes), ("clients", dataset.clients)):
        if list(names) != sorted(set(names)):
            yield f"{kind} must be sorted and differ."
    yield from _outside("labels", dataset.labels, len(dataset.classes))
    yield from _outside("domain_ids", dataset.domain_ids, len(dataset.domains))
    if dataset.client_ids is not None:
        yield from _outside("client_ids", dataset.client_ids, len(dataset.clients), lowest=-1)
    if dataset.responses and len(dataset.responses) != num_rows:
        yield f"responses must have {num_rows} rows."
    blank = [row for row, own in enumerate(dataset.responses) if not _all_say_something(own)]
    if blank:
        listed = blank[:_NUM_LISTED]
        yield f"responses are empty in {len(blank)} rows: {listed}. Leave these rows out."
    yield from _wrong_tasks(dataset)
    if dataset.class_order and sorted(dataset.class_order) != list(dataset.classes):
        yield "class_order must name each class once."
    if not np.isin(dataset.split, (TRAIN, TEST, VALIDATION, UNSPECIFIED)).all():
        yield "split holds a code that means nothing."


def _all_say_something(responses: tuple[str, ...]) -> bool:
    return bool(responses) and all(map(str.strip, responses))


def _wrong_tasks(dataset: Dataset) -> Iterator[str]:
    """What is wrong where the domains are tasks with classes of their own."""
    families, candidates = dataset.families, dataset.candidates
    if bool(families) != (candidates is not None):
        yield "families and candidates must be given together."
    if not families or candidates is None:
        return
    shape = len(dataset.domains), len(dataset.classes)
    if len(families) != shape[0] or candidates.shape != shape:
        yield f"families must be {shape[0]} names, and candidates {list(shape)}."
        return
    shared = {family for family in families if families.count(family) > 1}
    for name in sorted(shared.intersection(dataset.domains)):
        yield f"{name!r} is a task, and also a family of several; rename one of them."
    ids = dataset.domain_ids, dataset.labels
    if all(len(column) == len(ids[0]) for column in ids) and not candidates[ids].all():
        yield "a row's label is not among the classes of its task."


def _outside(name: str, ids: Ints, num_names: int, lowest: int = 0) -> Iterator[str]:
    if ids.size and (ids.min() < lowest or ids.max() >= num_names):
        yield f"{name} must lie in {lowest}..{num_names - 1}."


def decode(encoded: bytes) -> Image:
    """An encoded image as RGB. Raises one of UNREADABLE."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise OSError("no image of a known kind" if encoded else "it is empty") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def decode_text(encoded: bytes) -> str:
    """UTF-8 as text in normal form C. Raises one of UNREADABLE."""
    return unicodedata.normalize("NFC", encoded.decode("utf-8"))


UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def hash_pixels(image: Image) -> bytes:
    """SHA-256 of the raw RGB pixels, 32 bytes."""
    return hashlib.sha256(image.tobytes()).digest()


def hash_text(text: str) -> bytes:
    """SHA-256 of a text's UTF-8 in normal form C, 32 bytes."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8")).digest()


def hash_array(hashes: list[bytes]) -> Bytes:
    """Hashes of 32 bytes as uint8 [N, 32]."""
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), 32)


def as_items(hashes: Bytes) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Hashes uint8 [N, 32] as N comparable items."""
    return np.ascontiguousarray(hashes).view("V32").ravel()
