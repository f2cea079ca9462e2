"""Data sets in image folders: ``root/class/*.png``, or ``root/{train,test}/class/*.png``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_core.errors import DataError
from scenarios.data.dataset import (
    DEFAULT_TEMPLATES,
    NO_DOMAINS,
    TEST,
    TRAIN,
    UNSPECIFIED,
    Dataset,
)
from scenarios.data.parquet import compute_hashes

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class FolderImages:
    """Image files below one folder, by row."""

    root: Path
    files: tuple[str, ...]

    def read(self, row: int) -> bytes:
        return (self.root / self.files[row]).read_bytes()

    def where(self, row: int) -> str:
        return str(self.root / self.files[row])


def load_folder(root: Path) -> Dataset:
    """The data set in an image folder; classes are the folders' names, as they are.

    Every image is decoded once for its content hash. DataError where the layout is not understood,
    or for unreadable images (all of them listed).
    """
    root = root.resolve()
    found = [
        (file.relative_to(root).as_posix(), class_folder.name, split)
        for folder, split in _splits(root)
        for class_folder in _subfolders(folder)
        for file in class_folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise DataError(
            f"{root} holds no images. Expected {root}/CLASS/*.png or {root}/train/CLASS/*.png and "
            f"{root}/test/CLASS/*.png, with one of {', '.join(IMAGE_SUFFIXES)}."
        )
    found.sort()
    classes = tuple(sorted({label for _, label, _ in found}))
    index = {name: code for code, name in enumerate(classes)}
    images = FolderImages(root, tuple(file for file, _, _ in found))
    return Dataset(
        name=root.name,
        classes=classes,
        templates=DEFAULT_TEMPLATES,
        labels=np.array([index[label] for _, label, _ in found], dtype=np.int64),
        domains=NO_DOMAINS,
        domain_ids=np.zeros(len(found), dtype=np.int64),
        concept_ids=np.arange(len(found)),
        split=np.array([split for _, _, split in found], dtype=np.int8),
        content_hashes=compute_hashes(images, len(found)),
        images=images,
    )


def _splits(root: Path) -> list[tuple[Path, int]]:
    names = {folder.name for folder in _subfolders(root)}
    if not {"train", "test"} <= names:
        return [(root, UNSPECIFIED)]
    others = sorted(names - {"train", "test"})
    if others:
        raise DataError(
            f"{root} holds the folders train and test, but also {', '.join(others)}. Validation "
            "rows are taken from the training split: move them into train, or remove them."
        )
    return [(root / "train", TRAIN), (root / "test", TEST)]


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")
