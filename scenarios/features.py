"""The content-addressed store of what a frozen backbone computes, memory-mapped by every reader.

An entry is one Arrow IPC file ``<digest>.arrow`` with one record batch of one fixed-size-list
column, so that it is one contiguous array on disk. It is written under a temporary name, synced and
renamed, under a lock of this node; on shared storage two nodes may write the same entry twice,
with equal content. An entry that is damaged or cut short counts as absent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fl_core.durable import sync_path
from fl_core.errors import ResourceError
from scenarios import arrow_array
from scenarios.locks import acquire
from scenarios.shared_store import SharedStore

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Output = Literal["global", "patches", "tokens", "token_ids", "states", "last_token"]

FORMAT = 1
ENTRY_FILE = "features.arrow"
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class FeatureKey:
    """All that stored features depend on.

    ``weights``: hash of the backbone's weights; ``data``: ``Dataset.content_fingerprint``, or
    ``response_fingerprint`` of what is computed from the responses; ``transform``: a text that
    names the preprocessing and its numbers; ``dtype``: a NumPy dtype; ``batch_size``: the fixed
    batch shape, on which the last bits depend.
    """

    weights: str
    data: str
    transform: str
    output: Output
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
class FeatureStore:
    """A folder of entries. Any number of processes and nodes may read and write it at once.

    shared: where an entry that is not here is looked for.
    """

    root: Path
    shared: SharedStore | None = None

    def path(self, key: FeatureKey) -> Path:
        return self.root / f"{key.digest}.arrow"

    def open(self, key: FeatureKey) -> Array | None:
        """The entry [N, ...] as a read-only view of the mapped file, or None.

        One that only the shared store has is fetched, by one process of a node.
        """
        found = _open(self.path(key), key)
        if found is not None or self.shared is None:
            return found
        with self._lock(key.digest) as is_locked:
            if is_locked:
                self._remove_stale(key.digest)
            found = _open(self.path(key), key)
            return self._fetch(key, self.shared) if found is None else found

    def holds(self, key: FeatureKey) -> bool:
        """Whether ``open`` would find the entry; nothing is fetched."""
        if _open(self.path(key), key) is not None:
            return True
        return self.shared is not None and self.shared.holds(key.digest)

    def share(self, key: FeatureKey) -> None:
        """Send an entry that is here to the shared store, if there is one that lacks it."""
        if self.shared is not None:
            self.shared.publish(key.digest, {ENTRY_FILE: self.path(key)})

    def write(self, key: FeatureKey, chunks: Iterable[Array], shape: tuple[int, ...]) -> Array:
        """Store chunks [b, ...] in row order that together have ``shape`` (an array is one chunk).

        One process of a node writes, the others wait for it. Where the entry is there already,
        ``chunks`` is not read; nor before the disk space is taken. ResourceError for a full disk or
        no write access; DataError where the chunks do not add up to ``shape`` in the key's dtype.
        """
        found = self.open(key)
        if found is not None:
            return found
        with self._lock(key.digest) as is_locked:
            found = _open(self.path(key), key)
            if found is not None:
                return found
            if is_locked:
                self._remove_stale(key.digest)
            self._write(key, shape, [chunks] if isinstance(chunks, np.ndarray) else chunks)
        found = _open(self.path(key), key)
        if found is None:
            raise ResourceError(f"{self.path(key)} cannot be read back right after it was written.")
        return found

    def _fetch(self, key: FeatureKey, shared: SharedStore) -> Array | None:
        """The entry from the shared store, made durable here; the caller holds its lock."""
        temporary = self._temporary(key)
        try:
            if not shared.fetch(key.digest, lambda name: temporary):
                return None
            with self._told_plainly():
                sync_path(temporary)
                temporary.replace(self.path(key))
                sync_path(self.root)
        finally:
            temporary.unlink(missing_ok=True)
        return _open(self.path(key), key)

    def _temporary(self, key: FeatureKey) -> Path:
        return self.root / f"{key.digest}.{_host()}.{os.urandom(6).hex()}{_TEMPORARY}"

    def _write(self, key: FeatureKey, shape: tuple[int, ...], chunks: Iterable[Array]) -> None:
        dtype = np.dtype(key.dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        header = {"digest": key.digest, "shape": shape, "key": asdict(key)}
        temporary = self._temporary(key)
        told_plainly = partial(self._told_plainly, num_bytes, temporary)
        with told_plainly():
            file = temporary.open("w+b")
        try:
            with told_plainly():
                start = arrow_array.lay_out(file, temporary, header, dtype)
            for offset, chunk in arrow_array.checked(chunks, shape, dtype):
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
                is_locked = acquire(handle, f"features {digest}", wait=wait)
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


def _open(path: Path, key: FeatureKey) -> Array | None:
    found = arrow_array.read(path)
    if found is None:
        return None
    values, header = found
    if header["digest"] != key.digest or values.dtype != key.dtype:
        logger.warning("%s is not the entry that its name says; it is built again", path)
        return None
    return values


def _free_bytes(folder: Path, temporary: Path | None) -> int:
    """What is free once the temporary file is gone."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    taken = temporary.stat().st_blocks * 512 if temporary and temporary.exists() else 0
    return shutil.disk_usage(existing).free + taken


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
