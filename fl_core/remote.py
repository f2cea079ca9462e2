"""A folder at any URL that fsspec knows: object stores, HDFS, SFTP, mounted disks.

A file is there as a whole or not at all. Object stores see to that themselves; elsewhere it is
written under a temporary name and renamed. Nothing else is asked of a file system, no locks above
all. fsspec and a protocol's own package are imported when a folder is first used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import ConfigError, FedarenaError, ResourceError, did_you_mean

PACKAGES: Mapping[str, str] = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hdfs": "pyarrow",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4",
    "oci": "ocifs",
    "oss": "ossfs",
}
"""What pip calls the package behind a protocol; its credentials come from where it looks."""
WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs"})
"""Protocols of stores in which an object that was not sent to its end is not there."""
KEY_STORES = frozenset({"s3", "s3a", "gs", "gcs"})
"""Protocols in whose URLs a ":" or "@" can only belong to a key; elsewhere they have other uses."""
_TEMPORARY = re.compile(r"\..*\.tmp")


def check_url(field: str, url: str | None) -> list[str]:
    """What is wrong with a setting that names a folder by URL: lines that begin with ``field``."""
    if url is None:
        return []
    protocol, mark, rest = url.partition("://")
    if not mark and url.startswith("/"):
        return []
    if not mark or (protocol in ("file", "local") and not rest.startswith("/")):
        return [
            f"{field} = {url!r} is relative, and would be another place on every node: it must be "
            "a URL such as s3://bucket/folder or file:///mnt/folder, or an absolute path."
        ]
    host = rest.partition("/")[0]
    is_key = protocol in KEY_STORES and bool(set(":@") & set(host))
    if is_key or ":" in host.rpartition("@")[0] or set("?#") & set(rest):
        return [
            f"{field} = {without_secrets(url)!r} holds credentials or options, which would land in "
            "configs and records: it must be the plain URL. Give them to every process in the way "
            f"of the protocol's package{_named(protocol)}, such as by environment variables."
        ]
    from fsspec.registry import available_protocols, registry

    known = {*available_protocols(), *registry} - {"https", "http"}
    if protocol not in known:
        hint = did_you_mean(protocol, {*PACKAGES, "file"})
        return [f"{field} = {url!r} has no protocol that fsspec knows: {protocol!r}.{hint}"]
    if "::" in url or not rest.strip("/"):
        return [f"{field} = {url!r} names no folder: it must be like {protocol}://bucket/folder."]
    return []


def check_disk(field: str, place: Path, instead: str) -> list[str]:
    """What is wrong with a setting that names a folder of the disk; lines begin with ``field``.

    instead: what to do where it is a URL.
    """
    protocol, mark, rest = str(place).partition(":/")  # a Path keeps one slash of a URL's two
    if not mark or not re.fullmatch(r"[a-z][a-z0-9+.-]+", protocol):
        return []
    url = without_secrets(f"{protocol}:{'///' if protocol in ('file', 'local') else '//'}{rest}")
    return [f"{field} = {url!r} is a URL, and it must be a folder of the disk: {instead}"]


def without_secrets(url: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r"[?#].*", "?***", re.sub(r"://.*@", "://***@", url))


@dataclass(frozen=True)
class RemoteFolder:
    """A folder by its URL. Names within are relative, with '/' between folders.

    Whatever fails is a ResourceError with the URL; a missing package is a ConfigError.
    """

    url: str

    def child(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    @property
    def parent(self) -> RemoteFolder:
        return RemoteFolder(self.url.rstrip("/").rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is none."""
        with self._used("read") as (fs, root):
            try:
                return bytes(fs.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of those files that are there, at once where the protocol can."""
        if not names:
            return {}
        with self._used("read") as (fs, root):
            found = fs.cat([f"{root}/{name}" for name in names], on_error="return")
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        within = f"{root.lstrip('/')}/"  # with or without a slash before it, as protocols differ
        by_name = {str(path).partition(within)[2]: content for path, content in found.items()}
        return {n: bytes(c) for n, c in by_name.items() if not isinstance(c, Exception)}

    def download(self, name: str, path: Path) -> bool:
        """Copy a file to ``path``; False where there is none."""
        with self._used("read") as (fs, root):
            try:
                fs.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError:
                return False
        return True

    def write(self, name: str, content: bytes) -> None:
        with self._in_place(name) as (fs, target):
            fs.pipe_file(target, content)

    def upload(self, name: str, path: Path) -> None:
        """Copy a local file, which must not change meanwhile."""
        path.stat()  # a missing one is no fault of the URL
        with self._in_place(name) as (fs, target):
            fs.put_file(str(path), target)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._used("written") as (fs, root), suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def remove_all(self) -> None:
        """Remove the folder with all that is in it."""
        with self._used("written") as (fs, root), suppress(FileNotFoundError):
            fs.invalidate_cache()
            fs.rm(root, recursive=True)

    def sizes(self) -> dict[str, int]:
        """Bytes of the files that lie directly in the folder; none where there is no folder."""
        entries = self._entries().items()
        return {name: int(info["size"]) for name, info in entries if info["type"] == "file"}

    def folders(self) -> list[str]:
        """Names of the folders that lie directly in this one."""
        entries = self._entries().items()
        return sorted(name for name, info in entries if info["type"] == "directory")

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        with self._used("read") as (fs, root):
            fs.invalidate_cache()
            try:
                return int(fs.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def probe(self, field: str) -> None:
        """Make sure that files can be written, read and removed; ConfigError where not."""
        name, content = f".probe-{os.urandom(6).hex()}", b"fedarena"
        advice = "Correct it, give write access, or leave it out."
        try:
            self.write(name, content)
            found = self.read(name)
            self.remove(name)
        except ResourceError as error:
            raise ConfigError(f"{field}: {error} {advice}") from error
        if found != content:
            raise ConfigError(f"{field}: {self.url} does not give back what is written. {advice}")

    def _entries(self) -> dict[str, Any]:
        with self._used("listed") as (fs, root):
            fs.invalidate_cache()
            try:
                found = fs.ls(root, detail=True)
            except FileNotFoundError:
                return {}
        named = {str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in found}
        return {name: info for name, info in named.items() if not _TEMPORARY.fullmatch(name)}

    @contextmanager
    def _in_place(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system, and where to write a file that is to be there only as a whole."""
        with self._used("written") as (fs, root):
            target = f"{root}/{name}"
            if self.url.partition("://")[0] in WHOLE_PUTS:
                yield fs, target
                return
            folder, _, last = target.rpartition("/")
            fs.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/.{last}.{os.urandom(6).hex()}.tmp"
            try:
                yield fs, temporary
                fs.mv(temporary, target)
            except BaseException:
                with suppress(Exception):
                    fs.rm_file(temporary)
                raise

    @contextmanager
    def _used(self, how: str) -> Iterator[tuple[Any, str]]:
        """The file system and the folder's path in it; what it raises is told with the URL."""
        from fsspec.core import url_to_fs

        protocol = self.url.partition("://")[0]
        try:
            fs, root = url_to_fs(self.url)
            yield fs, str(root).rstrip("/")
        except FedarenaError:
            raise
        except ImportError as error:
            package = PACKAGES.get(protocol)
            way = f"pip install {package}" if package else str(error)
            raise ConfigError(
                f"{self.url} needs the package of its protocol, here and on every node: {way}."
            ) from error
        except Exception as error:  # each protocol's package has errors of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ResourceError(
                f"{self.url} cannot be {how}: {without_secrets(reason)[:300]}."
            ) from error


def _named(protocol: str) -> str:
    return f" ({PACKAGES[protocol]})" if protocol in PACKAGES else ""
