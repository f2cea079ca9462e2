"""Sets of several domains: ``ROOT/DOMAIN/CLASS/*``, with lists of the splits or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scenarios.data.dataset import DEFAULT_TEMPLATES, TEST, TRAIN
from scenarios.data.draft import NUM_LISTED, Draft
from scenarios.data.expected import Expected, Faults, find_root
from scenarios.data.folder import Entry, draft_files, image_files, words

_PARTS = {"train": TRAIN, "test": TEST}


@dataclass(frozen=True)
class DomainFolders:
    """Images in ``DOMAIN/CLASS/``, without splits. Spelling of a domain's folder is forgiven."""

    name: str
    folders: tuple[str, ...]
    domains: tuple[str, ...]
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES


@dataclass(frozen=True)
class DomainLists:
    """Images in ``DOMAIN/CLASS/``, split by ``DOMAIN_train.txt``, ``DOMAIN_test.txt``.

    Each line is a path from the root and the number of its class.
    """

    name: str
    folders: tuple[str, ...]
    domains: tuple[str, ...]
    expected: Expected
    templates: tuple[str, ...] = DEFAULT_TEMPLATES


def draft_domain_folders(layout: DomainFolders, place: Path) -> Draft:
    root = find_root(place, layout.folders)
    faults = Faults(layout.name, root)
    present = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    by_spelling = {_spelling(name): name for name in present}
    entries: list[Entry] = []
    for domain in layout.domains:
        folder = by_spelling.get(_spelling(domain))
        if folder is None:
            faults.append(f"{root / domain} is missing.")
        else:
            entries += sorted(_images(root, folder, domain, faults))
    faults.extend(layout.expected.faults(entries, (entry.domain for entry in entries)))
    faults.raise_if_any()
    return draft_files(layout.name, root, entries, templates=layout.templates)


def draft_domain_lists(layout: DomainLists, place: Path) -> Draft:
    root = find_root(place, layout.folders)
    faults = Faults(layout.name, root)
    entries: list[Entry] = []
    names: dict[int, str] = {}
    for domain in layout.domains:
        faults.need(root / domain)
        for part in _PARTS:
            listed = root / f"{domain}_{part}.txt"
            if faults.need(listed):
                entries += _listed(listed, domain, part, names, faults)
    parts = (f"{e.domain} {'test' if e.split == TEST else 'train'}" for e in entries)
    faults.extend(layout.expected.faults(entries, parts))
    faults.need_images(root, entries)
    faults.raise_if_any()
    order = tuple(name for _, name in sorted(names.items()))
    return draft_files(layout.name, root, entries, templates=layout.templates, class_order=order)


def _images(root: Path, folder: str, domain: str, faults: Faults) -> Iterator[Entry]:
    astray = []
    for file in image_files(root / folder):
        parts = file.split("/")
        if len(parts) == 2:
            yield Entry(f"{folder}/{file}", words(parts[0]), domain=words(domain))
        else:
            astray.append(f"{folder}/{file}")
    if astray:
        faults.append(
            f"{len(astray)} images do not lie in DOMAIN/CLASS/: "
            f"{', '.join(sorted(astray)[:NUM_LISTED])}."
        )


def _listed(
    path: Path, domain: str, part: str, names: dict[int, str], faults: Faults
) -> Iterator[Entry]:
    """The rows of one list; ``names`` collects what the numbers of classes mean."""
    for number, line in enumerate(faults.lines(path), start=1):
        file, _, label = line.rpartition(" ")
        parts = file.split("/")
        if len(parts) != 3 or not label.isdigit():
            faults.append(f"{path.name}, line {number}: {line!r} is not DOMAIN/CLASS/FILE NUMBER.")
            return
        name = words(parts[1])
        if names.setdefault(int(label), name) != name:
            faults.append(
                f"{path.name}, line {number}: class {label} is {name!r} here and "
                f"{names[int(label)]!r} elsewhere."
            )
            return
        yield Entry(file, name, _PARTS[part], words(domain))


def _spelling(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
