"""The content-addressed store of what a frozen backbone computes, memory-mapped by every reader.

An entry is one Arrow IPC file ``<digest>.arrow`` with one record batch of one fixed-size-list
column, so that it is one contiguous array on disk. It is written under a temporary name, synced and
renamed, under a lock of this node; on shared storage two nodes may write the same entry twice,
with equal content. An entry that is damaged or cut short counts as absent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fl_core.durable import sync_path
from fl_core.errors import DataError, ResourceError
from scenarios import arrow_array

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Start = tuple[tuple[int, ...], Iterable[Array]]

FORMAT = 1
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class FeatureKey:
    """All that stored features depend on.

    ``weights``: hash of the backbone's weights; ``data``: ``Dataset.content_fingerprint``;
    ``transform``: a text that names the preprocessing and its numbers; ``dtype``: a NumPy dtype;
    ``batch_size``: the fixed batch shape, on which the last bits depend.
    """

    weights: str
    data: str
    transform: str
    output: Literal["global", "patches", "tokens", "token_ids", "states"]
    dtype: str
    device: str
    torch_version: str
    batch_size: int

    @cached_property
    def digest(self) -> str:
        """The name of the entry, equal on every machine."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Entry:
    """One finished entry on disk."""

    digest: str
    path: Path
    size_bytes: int
    shape: tuple[int, ...]
    key: dict[str, Any]


@dataclass(frozen=True)
class FeatureStore:
    """A folder of entries. Any number of processes and nodes may read and write it at once."""

    root: Path

    def path(self, key: FeatureKey) -> Path:
        return self.root / f"{key.digest}.arrow"

    def open(self, key: FeatureKey) -> Array | None:
        """The entry [N, ...] as a read-only view of the mapped file, or None."""
        return _open(self.path(key), key)

    def write(self, key: FeatureKey, chunks: Iterable[Array], shape: tuple[int, ...]) -> Array:
        """Store chunks [b, ...] in row order that together have ``shape`` (an array is one chunk).

        Where the entry is there already, ``chunks`` is not read. ResourceError for a full disk or
        no write access; DataError where the chunks do not add up to ``shape`` in the key's dtype.
        """
        parts = [chunks] if isinstance(chunks, np.ndarray) else chunks
        return self._once(key, lambda: (shape, parts))

    def get_or_build(
        self, key: FeatureKey, num_rows: int, build: Callable[[], Iterable[Array]]
    ) -> Array:
        """The entry, built by the chunks of ``build()`` where it is absent.

        One process of a node builds; the others wait for it, and build nothing. The disk space is
        taken before the second chunk is asked for, so that a full disk costs one chunk only.
        """

        def begin() -> Start:
            chunks = iter(build())
            first = next(chunks, None)
            if first is None:
                raise DataError(f"building features gave no chunk for {num_rows} rows.")
            return (num_rows, *first.shape[1:]), chain([first], chunks)

        return self._once(key, begin)

    def entries(self) -> list[Entry]:
        """The finished entries that can be read, by digest."""
        found = (_describe(path) for path in sorted(self.root.glob("*.arrow")))
        return [entry for entry in found if entry is not None]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all finished entries."""
        return sum(path.stat().st_size for path in self.root.glob("*.arrow"))

    def _once(self, key: FeatureKey, begin: Callable[[], Start]) -> Array:
        found = self.open(key)
        if found is not None:
            return found
        with self._lock(key.digest) as is_locked:
            found = self.open(key)
            if found is not None:
                return found
            if is_locked:
                self._remove_stale(key.digest)
            shape, chunks = begin()
            self._write(key, shape, chunks)
        found = self.open(key)
        if found is None:
            raise ResourceError(f"{self.path(key)} cannot be read back right after it was written.")
        return found

    def _write(self, key: FeatureKey, shape: tuple[int, ...], chunks: Iterable[Array]) -> None:
        dtype = np.dtype(key.dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        header = {"digest": key.digest, "shape": shape, "key": asdict(key)}
        temporary = self.root / f"{key.digest}.{_host()}.{os.urandom(6).hex()}{_TEMPORARY}"
        told_plainly = partial(self._told_plainly, num_bytes, temporary)
        with told_plainly():
            file = temporary.open("w+b")
        try:
            with told_plainly():
                start = arrow_array.lay_out(file, temporary, header, dtype)
            for offset, chunk in _checked(chunks, shape, dtype):
                with told_plainly():
                    arrow_array.fill_in(file, start + offset, chunk)
            with told_plainly():
                os.fsync(file.fileno())
                temporary.replace(self.path(key))
                sync_path(self.root)
        finally:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def _lock(self, digest: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the node's lock of one entry; yields whether it is held.

        It is not on a file system without locks, and, unless ``wait``, where another holds it.
        """
        with self._told_plainly():
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / f"{digest}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with self._told_plainly():
                is_locked = _acquire(handle, digest, wait)
            yield is_locked
        finally:
            os.close(handle)  # releases the lock

    def _remove_stale(self, digest: str) -> None:
        """Remove what writers of this node left behind when they died. The caller holds ``digest``.

        A writer lives as long as its lock, so a temporary file whose lock is free is stale.
        """
        for path in self.root.glob(f"*.{_host()}.*{_TEMPORARY}"):
            owner = path.name.split(".")[0]
            held = (
                contextlib.nullcontext(True) if owner == digest else self._lock(owner, wait=False)
            )
            with held as is_locked:
                if is_locked:
                    path.unlink(missing_ok=True)
                    logger.info("removed %s, which a dead writer left behind", path)

    @contextlib.contextmanager
    def _told_plainly(self, num_bytes: int = 0, temporary: Path | None = None) -> Iterator[None]:
        """Turn an OSError of the store's own files into a ResourceError with the next step."""
        try:
            yield
        except OSError as error:
            move = "Move the feature store to another folder (setting `store`)"
            if error.errno not in _FULL:
                raise ResourceError(
                    f"the feature store {self.root} cannot be written: {error}. {move}, or give "
                    "write access to this one."
                ) from error
            free = _free_bytes(self.root, temporary)
            raise ResourceError(
                f"the feature store {self.root} is full: the entry needs {num_bytes:,} bytes, "
                f"{free:,} are free ({error}). {move} on a larger file system, or delete entries "
                "there; they are computed again when they are needed."
            ) from error


def _acquire(handle: int, digest: str, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return False
        logger.info("waiting for another process that builds features %s", digest)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("no file locks here, so features may be computed twice: %s", error)
        return False
    return True


def _checked(
    chunks: Iterable[Array], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[tuple[int, Array]]:
    """Each chunk with the byte at which it starts. DataError unless all of them make ``shape``."""
    num_rows, row_bytes = 0, math.prod(shape[1:]) * dtype.itemsize
    for chunk in chunks:
        if chunk.dtype != dtype or chunk.shape[1:] != shape[1:] or num_rows + len(chunk) > shape[0]:
            raise DataError(
                f"features {chunk.dtype} {list(chunk.shape)} after {num_rows} rows do not fit an "
                f"entry {dtype} {list(shape)}. The encoder must give one dtype and one width."
            )
        yield num_rows * row_bytes, chunk
        num_rows += len(chunk)
    if num_rows != shape[0]:
        raise DataError(f"features ended after {num_rows} of {shape[0]} rows.")


def _open(path: Path, key: FeatureKey) -> Array | None:
    found = arrow_array.read(path)
    if found is None:
        return None
    values, header = found
    if header["digest"] != key.digest or values.dtype != key.dtype:
        logger.warning("%s is not the entry that its name says; it is built again", path)
        return None
    return values


def _describe(path: Path) -> Entry | None:
    found = arrow_array.read(path)
    if found is None:
        return None
    values, header = found
    size_bytes = path.stat().st_size
    return Entry(header["digest"], path, size_bytes, values.shape, header["key"])


def _free_bytes(folder: Path, temporary: Path | None) -> int:
    """What is free once the temporary file is gone."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    taken = temporary.stat().st_blocks * 512 if temporary and temporary.exists() else 0
    return shutil.disk_usage(existing).free + taken


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
