"""iNaturalist-User-120k, whose clients are people, and CIFAR in its binary version.

CIFAR's other versions are pickles, which run code when they are opened, and a MATLAB file. The
binary version holds plain records, of which any one can be read without the others.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scenarios.data.dataset import DEFAULT_TEMPLATES, TEST, TRAIN
from scenarios.data.draft import NUM_LISTED, Draft
from scenarios.data.expected import Expected, Faults, find_root
from scenarios.data.folder import Entry, draft_files, file_version, image_files, words

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_HEADER = f"P6 {_SIDE} {_SIDE} 255\n".encode()


@dataclass(frozen=True)
class UserLists:
    """Images ``GROUP/SPECIES/ID.jpg`` below ``images``; CSV files say who took which.

    ``lists``: CSV file to split; columns ``image_id``, ``class`` and, but for test, ``user_id``.
    """

    name: str
    folders: tuple[str, ...]
    images: str
    lists: Mapping[str, int]
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES


@dataclass(frozen=True)
class BinaryRecords:
    """CIFAR's binary version: ``num_labels`` label bytes (the last one counts), then the pixels."""

    name: str
    folder: str
    files: Mapping[str, int]
    names_file: str
    num_labels: int
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES


@dataclass(frozen=True)
class RecordItems:
    """The pictures in files of equal records, each told as an uncompressed PPM."""

    files: tuple[Path, ...]
    num_labels: int

    def read(self, row: int) -> bytes:
        path, within = self._locate(row)
        with path.open("rb") as file:
            file.seek(within * self.record_bytes + self.num_labels)
            planes = file.read(_PIXELS)
        if len(planes) != _PIXELS:
            raise OSError("the record is cut short")
        pixels = np.frombuffer(planes, dtype=np.uint8).reshape(3, _SIDE * _SIDE)
        return _HEADER + pixels.T.tobytes()

    def where(self, row: int) -> str:
        path, within = self._locate(row)
        return f"{path}, record {within}"

    def place(self) -> str:
        return str(self.files[0].parent)

    def versions(self) -> list[str]:
        counted = zip(self.files, self.counts, strict=True)
        return [
            f"{version}|{row}"
            for path, count in counted
            for version in (file_version(path),)
            for row in range(count)
        ]

    @property
    def record_bytes(self) -> int:
        return self.num_labels + _PIXELS

    @cached_property
    def counts(self) -> list[int]:
        """Whole records of each file."""
        return [path.stat().st_size // self.record_bytes for path in self.files]

    def _locate(self, row: int) -> tuple[Path, int]:
        ends = np.cumsum(self.counts)
        number = int(np.searchsorted(ends, row, side="right"))
        return self.files[number], row - (int(ends[number - 1]) if number else 0)


def draft_user_lists(layout: UserLists, place: Path) -> Draft:
    root = find_root(place, layout.folders)
    faults = Faults(layout.name, root)
    entries: list[Entry] = []
    if faults.need(root / layout.images, *(root / listed for listed in layout.lists)):
        found = {
            Path(file).stem: f"{layout.images}/{file}" for file in image_files(root / layout.images)
        }
        species: dict[str, str] = {}
        for listed, split in layout.lists.items():
            entries += _taken(root / listed, split, found, species, faults)
        parts = ("test" if entry.split == TEST else "train" for entry in entries)
        faults.extend(layout.expected.faults(entries, parts))
    faults.raise_if_any()
    return draft_files(layout.name, root, entries, templates=layout.templates)


def draft_binary_records(layout: BinaryRecords, place: Path) -> Draft:
    root = find_root(place, [layout.folder])
    faults = Faults(layout.name, root)
    paths = [root / name for name in layout.files]
    if not faults.need(root / layout.names_file, *paths):
        faults.append(
            "It is the binary version that is read (*.bin); the pickled one is not opened."
        )
        faults.raise_if_any()
    names = [words(line) for line in faults.lines(root / layout.names_file)]
    items = RecordItems(tuple(paths), layout.num_labels)
    numbers, splits = _numbers(items, list(layout.files.values()), faults)
    outside = sorted({number for number in numbers if number >= len(names)})
    if outside:
        faults.append(f"labels {outside[:NUM_LISTED]} have no name in {layout.names_file}.")
    labels = [names[number] if number < len(names) else "" for number in numbers]
    entries = [Entry("", name, split) for name, split in zip(labels, splits, strict=True)]
    parts = ("test" if entry.split == TEST else "train" for entry in entries)
    faults.extend(layout.expected.faults(entries, parts))
    faults.raise_if_any()
    return Draft(
        name=layout.name,
        items=items,
        labels=labels,
        templates=layout.templates,
        split=splits,
        class_order=tuple(names),
    )


def _numbers(items: RecordItems, splits: list[int], faults: Faults) -> tuple[list[int], list[int]]:
    """Number of the class, and split, of each record; ``splits`` are those of the files."""
    numbers: list[int] = []
    codes: list[int] = []
    for path, split in zip(items.files, splits, strict=True):
        held = np.fromfile(path, dtype=np.uint8)
        if len(held) % items.record_bytes:
            faults.append(f"{path} is cut short: {len(held):,} bytes are no whole records.")
            continue
        records = held.reshape(-1, items.record_bytes)
        numbers += records[:, items.num_labels - 1].tolist()
        codes += [split] * len(records)
    return numbers, codes


def _taken(
    path: Path,
    split: int,
    found: Mapping[str, str],
    species: dict[str, str],
    faults: Faults,
) -> list[Entry]:
    """The rows of one CSV file; ``species`` collects which folder each class is."""
    rows = list(csv.DictReader(faults.lines(path)))
    needed = {"image_id", "class"} | ({"user_id"} if split == TRAIN else set())
    lacking = sorted(needed - set(rows[0] if rows else ()))
    if lacking:
        faults.append(f"{path.name} has no column {', '.join(lacking)}.")
        return []
    missing = [row["image_id"] for row in rows if row["image_id"] not in found]
    if missing:
        faults.append(
            f"{len(missing):,} of {len(rows):,} images of {path.name} are missing: "
            f"{', '.join(missing[:NUM_LISTED])}."
        )
    entries = []
    for row in rows:
        if row["image_id"] not in found:
            continue
        image = found[row["image_id"]]
        name = words(image.split("/")[-2])
        if species.setdefault(row["class"], name) != name:
            faults.append(f"class {row['class']} is {species[row['class']]!r} and {name!r}.")
        entries.append(Entry(image, name, split, client=row.get("user_id") or None))
    return entries
