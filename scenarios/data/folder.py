"""Data sets in image folders, whose levels of folders are named: ``root/SPLIT/DOMAIN/CLASS/*.png``.

The levels above the images are ``class``, once, and ``split``, ``domain`` and ``client``, at most
once each, in any order; ``*`` is a level without a meaning. Where none are given they are
``class``, or ``split,class`` below folders called train and test (or train and val). Nothing else
is guessed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fl_core.errors import DataError, did_you_mean
from scenarios.data.dataset import DEFAULT_TEMPLATES, UNSPECIFIED
from scenarios.data.draft import NUM_LISTED, SPLIT_CODES, Draft

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LEVELS = ("class", "client", "domain", "split", "*")
_SPLIT_FOLDERS = frozenset(SPLIT_CODES) - {""}


class Entry(NamedTuple):
    """One image file, relative to its root, and what is said about it."""

    file: str
    label: str
    split: int = UNSPECIFIED
    domain: str = ""
    client: str | None = None


@dataclass(frozen=True)
class FileItems:
    """Image files below one folder, by row."""

    root: Path
    files: tuple[str, ...]

    def read(self, row: int) -> bytes:
        return (self.root / self.files[row]).read_bytes()

    def where(self, row: int) -> str:
        return str(self.root / self.files[row])

    def place(self) -> str:
        return str(self.root)

    def versions(self) -> list[str]:
        return [file_version(self.root / file) for file in self.files]


def file_version(path: Path) -> str:
    """A text that changes with the file; for a missing file its path alone."""
    try:
        stat = path.stat()
    except OSError:
        return str(path)
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def draft_files(
    name: str,
    root: Path,
    entries: Sequence[Entry],
    *,
    templates: tuple[str, ...] = DEFAULT_TEMPLATES,
    class_order: tuple[str, ...] = (),
) -> Draft:
    """A draft of image files below ``root``, in the given order."""
    return Draft(
        name=name,
        items=FileItems(root, tuple(entry.file for entry in entries)),
        labels=[entry.label for entry in entries],
        templates=templates,
        domains=[entry.domain for entry in entries] if any(e.domain for e in entries) else (),
        clients=[entry.client for entry in entries] if any(e.client for e in entries) else (),
        split=[entry.split for entry in entries],
        class_order=class_order,
    )


def draft_folder(root: Path, levels: tuple[str, ...] | None = None) -> Draft:
    """The data set in an image folder; names of classes, domains and clients are the folders'.

    DataError says which folders do not fit the levels.
    """
    root = root.resolve()
    reading = _Reading(root, levels or _known_levels(root))
    entries = sorted(reading.entries())
    faults = list(reading.faults())
    if not entries and not faults:
        faults = [
            f"it holds no images (with one of {', '.join(IMAGE_SUFFIXES)}). Expected "
            f"{root}/{'/'.join(level.upper() for level in reading.levels)}/*.png.{_of_texts(root)}"
        ]
    if faults:
        raise DataError(f"image folder {root}: " + "\n  ".join(faults))
    return draft_files(root.name, root, entries)


def _of_texts(root: Path) -> str:
    if next(root.rglob("*.txt"), None) is None:
        return ""
    return " Texts are read from a table with columns text and label: Parquet, Arrow or JSON lines."


def check_levels(levels: Iterable[str]) -> Iterator[str]:
    """What is wrong with a list of levels."""
    counts = Counter(levels)
    for level in sorted(set(counts) - set(LEVELS)):
        yield f"level {level!r} is unknown.{did_you_mean(level, LEVELS)}"
    if counts["class"] != 1:
        yield f"levels must name `class` once, not {counts['class']} times."
    for level in ("client", "domain", "split"):
        if counts[level] > 1:
            yield f"levels must name `{level}` at most once, not {counts[level]} times."


def image_files(root: Path) -> Iterator[str]:
    """Image files below ``root``, relative to it; folders that start with . or _ are skipped."""
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if name[0] not in "._"]
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".":
                yield str(inside / name)


def words(name: str) -> str:
    """A name of files as words: underscores are spaces."""
    return " ".join(name.replace("_", " ").split())


class _Reading:
    """One pass over a folder: the images that fit its levels, and those that do not."""

    def __init__(self, root: Path, levels: tuple[str, ...]) -> None:
        self.root, self.levels = root, levels

    @cached_property
    def _files(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(file, PurePosixPath(file).parent.parts) for file in image_files(self.root)]

    def entries(self) -> Iterator[Entry]:
        for file, parts in self._files:
            at = dict(zip(self.levels, parts, strict=False))
            if len(parts) == len(self.levels) and at.get("split", "") in SPLIT_CODES:
                split = SPLIT_CODES[at.get("split", "")]
                yield Entry(file, at["class"], split, at.get("domain", ""), at.get("client"))

    def faults(self) -> Iterator[str]:
        depth, said = len(self.levels), ",".join(self.levels)
        astray = [file for file, parts in self._files if len(parts) != depth]
        if astray:
            yield (
                f"{len(astray)} of {len(self._files)} images do not lie {depth} folders deep, as "
                f"the levels {said} say: {', '.join(sorted(astray)[:NUM_LISTED])}. Say what each "
                f"level of folders means, such as {self.root}?levels=domain,class (one of "
                f"{', '.join(LEVELS)} for each level; * has no meaning)."
            )
        if "split" in self.levels:
            place = self.levels.index("split")
            found = {parts[place] for _, parts in self._files if len(parts) == depth}
            unknown = sorted(found - _SPLIT_FOLDERS)
            if unknown:
                yield (
                    f"folders {', '.join(unknown)} are no splits; allowed are "
                    f"{', '.join(sorted(_SPLIT_FOLDERS))}. Move them elsewhere, or say with "
                    f"?levels= what the folders mean."
                )


def _known_levels(root: Path) -> tuple[str, ...]:
    names = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] not in "._"}
    beside_train = names & (_SPLIT_FOLDERS - {"train"})
    return ("split", "class") if "train" in names and beside_train else ("class",)
