"""Content hashes: one look at every item, and a cache of what was seen.

The cache is one small file per place (a folder or file of items). An entry counts as long as path,
size and time of change of the item's file stay the same; an item is compared with its hash again
whenever it is read, so that a change that the file system hides is noticed then.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.data.dataset import (
    UNREADABLE,
    Bytes,
    Ints,
    ItemSource,
    Modality,
    decode,
    decode_text,
    hash_array,
    hash_pixels,
    hash_text,
)
from scenarios.data.draft import NUM_LISTED, Draft

logger = logging.getLogger(__name__)

FORMAT = 1
NUM_THREADS = 8
_BLOCK = 1024
_ENTRY = np.dtype([("key", "<u8"), ("hash", "u1", 32)])


class Look(NamedTuple):
    """What one look at an item shows. ``size`` is (width, height), or (characters, 1) of a text.

    ``fault`` says why the item cannot be used; its digest is then empty.
    """

    digest: bytes
    size: tuple[int, int]
    fault: str = ""


def look_at(items: ItemSource, modality: Modality, row: int) -> Look:
    """Read and decode one item."""
    try:
        encoded = items.read(row)
        if modality == "text":
            text = decode_text(encoded)
            return Look(hash_text(text), (len(text), 1))
        image = decode(encoded)
        return Look(hash_pixels(image), image.size)
    except UNREADABLE as error:
        return Look(b"", (0, 0), f"{items.where(row)}: {error}")


def look_at_all(items: ItemSource, modality: Modality, rows: Ints) -> Iterator[Look]:
    """A look at each of ``rows``, in their order; decoding leaves Python, so threads share it."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK].tolist()
            yield from pool.map(partial(look_at, items, modality), block)


def hash_items(draft: Draft, cache: Path | None = None) -> Bytes:
    """Content hashes uint8 [N, 32]: recorded ones, those in the cache, and looked at otherwise.

    ``cache`` is a folder, made where it is missing. DataError lists the items that cannot be read.
    """
    if draft.recorded is not None:
        return draft.recorded
    num_rows = len(draft.labels)
    if cache is None:
        return _looked_up(draft, np.arange(num_rows))
    path, keys = _cache_file(draft, cache), _keys(draft)
    hashes = np.zeros((num_rows, 32), dtype=np.uint8)
    known, is_known = _find(_read(path), keys)
    hashes[is_known] = known
    new = np.flatnonzero(~is_known)
    if len(new):
        hashes[new] = _looked_up(draft, new)
        _write(path, keys, hashes)
    return hashes


def _looked_up(draft: Draft, rows: Ints) -> Bytes:
    looks = list(look_at_all(draft.items, draft.modality, rows))
    faults = [look.fault for look in looks if look.fault]
    if faults:
        listed = "\n  ".join(faults[:NUM_LISTED])
        raise DataError(
            f"{len(faults)} of {len(draft.labels)} {draft.modality}s cannot be read:\n  {listed}\n"
            "Replace or remove them."
        )
    return hash_array([look.digest for look in looks])


def _cache_file(draft: Draft, cache: Path) -> Path:
    identity = f"{FORMAT}|{draft.modality}|{draft.items.place()}"
    return cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:40]}.npy"


def _keys(draft: Draft) -> npt.NDArray[np.uint64]:
    """Version of each row as a number [N]; a chance collision is found when the item is read."""
    digests = [
        hashlib.blake2b(version.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for version in draft.items.versions()
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _find(
    entries: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Hashes of the keys that are among the entries (sorted by key), and which [N] are."""
    if not len(entries):
        return np.empty((0, 32), dtype=np.uint8), np.zeros(len(keys), dtype=np.bool_)
    places = np.minimum(np.searchsorted(entries["key"], keys), len(entries) - 1)
    is_known = entries["key"][places] == keys
    return entries["hash"][places[is_known]], is_known


def _read(path: Path) -> npt.NDArray[Any]:
    try:
        entries = np.load(path, allow_pickle=False)
        if entries.dtype == _ENTRY and entries.ndim == 1:
            return np.asarray(entries)
        logger.warning("%s holds something else than content hashes; it is made anew", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged and counts as absent: %s", path, error)
    return np.empty(0, dtype=_ENTRY)


def _write(path: Path, keys: npt.NDArray[np.uint64], hashes: Bytes) -> None:
    """Replace the file at once; a cache that cannot be written costs time only, so it warns."""
    entries = np.empty(len(keys), dtype=_ENTRY)
    entries["key"], entries["hash"] = keys, hashes
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, np.sort(entries, order="key"))
        temporary.replace(path)
    except OSError as error:
        logger.warning("content hashes cannot be kept in %s: %s", path.parent, error)
        with contextlib.suppress(OSError):
            temporary.unlink()
