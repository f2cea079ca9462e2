"""File systems for tests: one like an object store, and one that is a disk far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as known

Watcher = Callable[[str, str], None]


class Watched(MemoryFileSystem):
    """Files in memory; every step is written down, and may fail.

    before, after: called with ("put" | "get" | "rm", path). What ``before`` raises cuts it off.
    """

    prefix: ClassVar[str]
    calls: ClassVar[list[tuple[str, str]]]
    before: ClassVar[Watcher]
    after: ClassVar[Watcher]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        path = str(path)
        if path.startswith(cls.prefix):
            path = "memory://" + path.removeprefix(cls.prefix)
        return MemoryFileSystem._strip_protocol(path)

    @contextmanager
    def _step(self, what: str, path: str) -> Iterator[None]:
        kind = type(self)
        kind.calls.append((what, path))
        kind.before(what, path)
        yield
        kind.after(what, path)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        with self._step("put", path):
            super().pipe_file(path, value)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        with self._step("get", path):
            return bytes(super().cat_file(path, *args, **options))

    def rm_file(self, path: str) -> None:
        with self._step("rm", path):
            super().rm_file(path)

    @classmethod
    def names(cls, what: str, under: str = "") -> list[str]:
        """Last parts of the paths of all steps of a kind."""
        return [p.rpartition("/")[2] for w, p in cls.calls if w == what and under in p]

    @classmethod
    def copy_to(cls, folder: Path) -> None:
        """All files as they stand, below a folder of the disk."""
        for path, file in tuple(cls.store.items()):
            target = folder / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.getvalue())


class Bucket(Watched):
    """An object store at s3://: an object that was not sent to its end is not there; no rename."""

    protocol = "s3"
    prefix = "s3://"

    def mv(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("an object store renames nothing")


class FarDisk(Watched):
    """A disk at far://: a put that is cut off leaves half a file; there is a rename."""

    protocol = "far"
    prefix = "far://"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        try:
            super().pipe_file(path, value)
        except OSError:
            MemoryFileSystem.pipe_file(self, path, value[: len(value) // 2])
            raise


KINDS: dict[str, type[Watched]] = {"s3": Bucket, "far": FarDisk}


@contextmanager
def mounted(protocol: str) -> Iterator[type[Watched]]:
    """A new, empty file system under its protocol, while this is entered."""
    kind = KINDS[protocol]
    kind.store, kind.pseudo_dirs, kind.calls = {}, [""], []
    kind.before = kind.after = staticmethod(lambda what, path: None)  # type: ignore[assignment]
    others = known.pop(protocol, None)
    known[protocol] = kind
    kind.clear_instance_cache()
    try:
        yield kind
    finally:
        del known[protocol]
        if others is not None:
            known[protocol] = others
