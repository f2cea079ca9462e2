"""The packaged data sets and backbones, and how to load a data set by name or path."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_core.errors import DataError, did_you_mean
from scenarios.data.dataset import Bytes, Dataset, Ints
from scenarios.data.folder import load_folder
from scenarios.data.parquet import load_parquet

PACKAGED = Path(__file__).resolve().parent / "packaged"

IMAGE_SETS = ("emoji_coarse", "emoji_fine", "fashion_mnist", "flags")

PACKAGED_DATASETS: Mapping[str, Path] = MappingProxyType(
    {name: PACKAGED / f"{name}.parquet" for name in IMAGE_SETS}
)
PACKAGED_BACKBONES: Mapping[str, Path] = MappingProxyType({"emoji_clip": PACKAGED / "emoji_clip"})


def load_dataset(spec: str) -> Dataset:
    """A data set by packaged name, by Parquet file, or by image folder.

    A packaged name wins over a file of that name (write ``./name`` for the file). DataError for an
    unknown name, with the nearest ones, and for unreadable data.
    """
    if spec in PACKAGED_DATASETS:
        path = PACKAGED_DATASETS[spec]
        if not path.is_file():
            raise DataError(f"packaged data set {spec!r}: {path} is missing. Reinstall fedarena.")
        return load_parquet(path)
    path = Path(spec).expanduser()
    if path.is_dir():
        return load_folder(path)
    if path.is_file():
        return load_parquet(path)
    raise DataError(
        f"dataset={spec!r} is neither a packaged data set nor an existing Parquet file or image "
        f"folder.{did_you_mean(spec, PACKAGED_DATASETS)}"
    )


def overlap_with_alignment(dataset: Dataset, backbone: str) -> Ints:
    """The rows whose image the packaged ``backbone`` was aligned on; none for other backbones."""
    if backbone not in PACKAGED_BACKBONES:
        return np.empty(0, dtype=np.int64)
    aligned = _aligned_hashes(PACKAGED_BACKBONES[backbone])
    return np.flatnonzero(np.isin(_as_items(dataset.content_hashes), _as_items(aligned)))


def check_overlap(dataset: Dataset, backbone: str) -> None:
    """DataError where the packaged ``backbone`` was aligned on images of this data set."""
    rows = overlap_with_alignment(dataset, backbone)
    if len(rows):
        raise DataError(
            f"data set {dataset.name!r}: {len(rows)} of its {len(dataset)} images are among those "
            f"that backbone {backbone!r} was aligned on (rows {rows[:10].tolist()}), so results on "
            "it would say nothing about new data. Remove these rows, or use another backbone."
        )


def verify_packaged() -> list[str]:
    """Faults of the packaged files against SHA256SUMS; an empty list means that all are sound."""
    sums = PACKAGED / "SHA256SUMS"
    if not sums.is_file():
        return [f"{sums} is missing. Reinstall fedarena."]
    faults, listed = [], set()
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition(" ")
        path = PACKAGED / name.strip().lstrip("*").removeprefix("./")
        listed.add(path)
        if not path.is_file():
            faults.append(f"{path} is missing. Reinstall fedarena.")
        elif _sha256(path) != expected:
            faults.append(f"{path} differs from its checksum. Reinstall fedarena.")
    unlisted = [path for path in PACKAGED_DATASETS.values() if path not in listed]
    return faults + [f"{path} has no line in {sums}." for path in unlisted]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_items(hashes: Bytes) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Hashes uint8 [N, 32] as N comparable items."""
    return np.ascontiguousarray(hashes).view("V32").ravel()


@lru_cache(maxsize=4)
def _aligned_hashes(folder: Path) -> Bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scenarios.data.dataset import hash_array

    path = folder / "aligned_items.parquet"
    try:
        column = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}, the list of what the packaged backbone was aligned on, cannot be read: "
            f"{error}. Reinstall fedarena."
        ) from error
    return hash_array([bytes.fromhex(value) for value in column])
