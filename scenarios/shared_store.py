"""A store at a URL, from which each node fills its own: features, and prepared backbones.

    <url>/<name>.json      the marker: an entry's files with size and SHA-256; written last
    <url>/blobs/<SHA-256>  contents of files

An entry is there once its marker is. Contents are named by their hash, so two that publish one
entry at the same time do no harm, not even where their last bits differ: the marker names the
contents of one of them. Whatever fails is a warning: what cannot be fetched is computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import ResourceError
from fl_core.remote import RemoteFolder

logger = logging.getLogger(__name__)

BLOBS = "blobs"


@dataclass(frozen=True)
class SharedStore:
    """The folder at ``url``. Any number of processes and nodes may read and write it at once."""

    url: str

    @property
    def remote(self) -> RemoteFolder:
        return RemoteFolder(self.url)

    def holds(self, name: str) -> bool:
        """Whether an entry has been published."""
        try:
            return self._files(name) is not None
        except ResourceError as error:
            logger.warning("the shared store cannot be asked for %s: %s", name, error)
            return False

    def fetch(self, name: str, place: Callable[[str], Path]) -> bool:
        """Write an entry's files where ``place`` says; False where it is absent or damaged.

        Each file's size and content are checked. A damaged entry is removed, to be made again.
        """
        try:
            files = self._files(name)
            return files is not None and all(
                self._fetch_file(name, facts, place(file)) for file, facts in files.items()
            )
        except ResourceError as error:
            logger.warning("%s was not fetched from the shared store: %s", name, error)
            return False

    def publish(self, name: str, files: Mapping[str, Path]) -> bool:
        """Send an entry unless it is there; whether it is there then. The marker comes last."""
        try:
            known = self._files(name)
            if known is not None and all(self._is_there(facts) for facts in known.values()):
                return True
            described = {file: _describe(path) for file, path in files.items()}
            for file, facts in described.items():
                if not self._is_there(facts):
                    self.remote.upload(f"{BLOBS}/{facts['sha256']}", files[file])
            self.remote.write(f"{name}.json", json.dumps({"files": described}).encode())
        except (ResourceError, OSError) as error:
            logger.warning("%s was not sent to the shared store: %s", name, error)
            return False
        logger.info("%s was sent to %s", name, self.url)
        return True

    def _files(self, name: str) -> Mapping[str, Mapping[str, Any]] | None:
        """What an entry's marker says; None where there is none that can be read."""
        marker = self.remote.read(f"{name}.json")
        try:
            files: dict[str, dict[str, Any]] = json.loads(marker)["files"] if marker else {}
            if files and all(_is_plain(n, f) for n, f in files.items()):
                return files
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        if marker is not None:
            logger.warning("%s/%s.json is damaged, so the entry counts as absent", self.url, name)
        return None

    def _is_there(self, facts: Mapping[str, Any]) -> bool:
        return self.remote.size(f"{BLOBS}/{facts['sha256']}") == int(facts["bytes"])

    def _fetch_file(self, name: str, facts: Mapping[str, Any], path: Path) -> bool:
        blob = f"{BLOBS}/{facts['sha256']}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.remote.download(blob, path) and _describe(path) == facts:
            return True
        logger.warning("%s/%s is gone or damaged, so %s counts as absent", self.url, blob, name)
        self.remote.remove(f"{name}.json")
        self.remote.remove(blob)
        return False


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _is_plain(name: str, facts: Mapping[str, Any]) -> bool:
    """Whether a marker names a file below the entry's own folder, by a hash and a size."""
    path = Path(name)
    safe = not path.is_absolute() and ".." not in path.parts
    return safe and str(facts["sha256"]).isalnum() and isinstance(facts["bytes"], int)


def shared_at(url: str | None) -> SharedStore | None:
    """The shared store of a config; None where it names none."""
    return None if url is None else SharedStore(url)
