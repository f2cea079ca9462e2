"""The few-shot sets in the layout of CoOp's guide, and ImageNet with its variants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scenarios.data.dataset import DEFAULT_TEMPLATES, TEST, TRAIN, VALIDATION
from scenarios.data.draft import NUM_LISTED, Draft
from scenarios.data.expected import Expected, Faults, find_root
from scenarios.data.folder import Entry, draft_files, image_files, words

PARTS: Mapping[str, int] = {"train": TRAIN, "val": VALIDATION, "test": TEST}
_NAMES = {code: name for name, code in PARTS.items()}
_SAME_NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}
"""WordNet's names of two of ImageNet's classes, which CLIP's list calls as it calls two others."""


@dataclass(frozen=True)
class SplitFile:
    """Images below ``images``, split by a JSON file: split to [path, label, class name] lists."""

    name: str
    folder: str
    images: str
    split_file: str
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantLists:
    """FGVC-Aircraft: ``images/ID.jpg`` and ``images_variant_SPLIT.txt`` with "ID class name"."""

    name: str
    folder: str
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES


@dataclass(frozen=True)
class WnidFolders:
    """ImageNet's kind: one folder per class, named by WordNet id, and ``classnames.txt``.

    ``parts``: folder below the root to the split of its rows. ``is_numbered``: the folders are
    numbers instead, which count the lines of ``classnames.txt``.
    """

    name: str
    folder: str
    parts: Mapping[str, int]
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    is_numbered: bool = False


def draft_split_file(layout: SplitFile, place: Path) -> Draft:
    root = find_root(place, [layout.folder])
    faults = Faults(layout.name, root)
    entries: list[Entry] = []
    order: dict[int, str] = {}
    if faults.need(root / layout.split_file, root / layout.images):
        rows = _read_split(root / layout.split_file, faults)
        for part, path, number, raw in rows:
            label = words(layout.renamed.get(raw, raw))
            if order.setdefault(number, label) != label:
                faults.append(f"label {number} means {order[number]!r} and {label!r}.")
            file = str(PurePosixPath(layout.images) / path)
            entries.append(Entry(file, label, PARTS[part]))
        if rows:
            faults.extend(layout.expected.faults(entries, (_NAMES[e.split] for e in entries)))
            faults.need_images(root, entries)
    faults.raise_if_any()
    return draft_files(
        layout.name, root, entries, templates=layout.templates, class_order=_in_order(order)
    )


def draft_variant_lists(layout: VariantLists, place: Path) -> Draft:
    root = find_root(place, [layout.folder])
    faults = Faults(layout.name, root)
    lists = {part: root / f"images_variant_{part}.txt" for part in PARTS}
    names: list[str] = []
    entries: list[Entry] = []
    if faults.need(root / "images", root / "variants.txt", *lists.values()):
        names = [words(line) for line in faults.lines(root / "variants.txt")]
        for part, path in lists.items():
            for line in faults.lines(path):
                image, _, variant = line.partition(" ")
                entries.append(Entry(f"images/{image}.jpg", words(variant), PARTS[part]))
        unknown = sorted({entry.label for entry in entries} - set(names))
        if unknown:
            faults.append(f"variants.txt lacks {', '.join(unknown[:NUM_LISTED])}.")
        faults.extend(layout.expected.faults(entries, (_NAMES[e.split] for e in entries)))
        faults.need_images(root, entries)
    faults.raise_if_any()
    order = tuple(names)
    return draft_files(layout.name, root, entries, templates=layout.templates, class_order=order)


def draft_wnid_folders(layout: WnidFolders, place: Path) -> Draft:
    root = find_root(place, [layout.folder])
    faults = Faults(layout.name, root)
    listed = root / "classnames.txt"
    entries: list[Entry] = []
    names: dict[str, str] = {}
    if faults.need(listed, *(root / part for part in layout.parts)):
        names = _class_names(listed, faults)
        folders = _folders_of(names, layout.is_numbered)
        for part, split in layout.parts.items():
            entries += sorted(_in_folders(root, part, split, folders, faults))
        faults.extend(layout.expected.faults(entries, (_NAMES[e.split] for e in entries)))
    faults.raise_if_any()
    present = {entry.label for entry in entries}
    order = tuple(name for _, name in sorted(names.items()) if name in present)
    return draft_files(layout.name, root, entries, templates=layout.templates, class_order=order)


def _read_split(path: Path, faults: Faults) -> list[tuple[str, str, int, str]]:
    """Part, image, label and class name of each row of a split file."""
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
        return [
            (part, str(image), int(number), str(name))
            for part in PARTS
            for image, number, name in held[part]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        faults.append(f"{path.name} is not a split file with train, val and test: {error!r}.")
        return []


def _class_names(path: Path, faults: Faults) -> dict[str, str]:
    """WordNet id to class name, in the order of the file; no two names are the same."""
    names: dict[str, str] = {}
    for line in faults.lines(path):
        wnid, _, name = line.partition(" ")
        names[wnid] = words(name)
    counts = Counter(names.values())
    for wnid, name in _SAME_NAMES.items():
        if counts[names.get(wnid, "")] > 1:
            names[wnid] = name
    for name, count in Counter(names.values()).items():
        if count > 1:
            faults.append(f"classnames.txt gives {count} classes the name {name!r}.")
    return names


def _folders_of(names: Mapping[str, str], is_numbered: bool) -> dict[str, str]:
    """Folder name to class name."""
    if is_numbered:
        return {str(number): name for number, name in enumerate(names.values())}
    return dict(names)


def _in_folders(
    root: Path, part: str, split: int, folders: Mapping[str, str], faults: Faults
) -> Iterator[Entry]:
    """The images of the class folders below one part."""
    unknown = set()
    for file in image_files(root / part):
        folder = file.split("/")[0]
        if folder in folders:
            yield Entry(f"{part}/{file}", folders[folder], split)
        else:
            unknown.add(folder)
    if unknown:
        faults.append(
            f"{part} holds {len(unknown):,} files or folders that are no class of classnames.txt: "
            f"{', '.join(sorted(unknown)[:NUM_LISTED])}. Images lie in one folder per class."
        )


def _in_order(names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(name for _, name in sorted(names.items()))
