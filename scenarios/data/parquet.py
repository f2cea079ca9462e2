"""Data sets in one Parquet file: the packaged ones, and a user's own.

Columns: ``image`` (encoded bytes) and ``label`` (string); optional ``domain``, ``concept``,
``split`` ("train" or "test"), ``sha256`` (hex of the raw RGB pixels; computed where it is missing)
and ``name_aligned``. Optional metadata key ``fedarena``: JSON with name, templates and classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.data.dataset import (
    DEFAULT_TEMPLATES,
    NO_DOMAINS,
    TEST,
    TRAIN,
    UNREADABLE,
    UNSPECIFIED,
    Bytes,
    Dataset,
    Ints,
    decode,
    hash_array,
    hash_pixels,
)

if TYPE_CHECKING:
    import pyarrow as pa

_SPLITS = {"train": TRAIN, "test": TEST, "": UNSPECIFIED, None: UNSPECIFIED}
_NUM_LISTED = 10


@dataclass(frozen=True)
class ParquetImages:
    """The ``image`` column of a Parquet file; the last two row groups read stay in memory."""

    path: Path

    def read(self, row: int) -> bytes:
        import pyarrow as pa

        try:
            version = self.path.stat().st_mtime_ns
            group, place = _locate(_group_ends(self.path, version), row)
            value = _image_column(self.path, version, group)[place].as_py()
        except (pa.ArrowException, IndexError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if not isinstance(value, bytes):
            raise OSError("the image is null")
        return value

    def where(self, row: int) -> str:
        return f"{self.path}, row {row}"


def load_parquet(path: Path) -> Dataset:
    """The data set in one Parquet file. DataError names the file and what is wrong with it."""
    path = path.resolve()
    table, metadata = _read_columns(path)
    images = ParquetImages(path)
    labels = _strings(path, table, "label")
    domains = _strings(path, table, "domain")
    class_names = tuple(sorted(set(metadata.get("classes") or labels)))
    unknown = sorted(set(labels) - set(class_names))
    if unknown:
        raise DataError(f"{path}: labels {unknown[:_NUM_LISTED]} are not among its classes.")
    domain_names = tuple(sorted(set(domains))) or NO_DOMAINS
    label_ids = _codes(labels, class_names)
    flags = table["name_aligned"].to_numpy() if "name_aligned" in table.column_names else None
    return Dataset(
        name=metadata.get("name", path.stem),
        classes=class_names,
        templates=tuple(metadata.get("templates", ())) or DEFAULT_TEMPLATES,
        labels=label_ids,
        domains=domain_names,
        domain_ids=_codes(domains or list(domain_names) * len(labels), domain_names),
        concept_ids=_concept_ids(_strings(path, table, "concept"), label_ids),
        split=_split(path, _strings(path, table, "split"), len(labels)),
        content_hashes=_hashes(path, table, images),
        images=images,
        name_aligned=flags,
    )


def _read_columns(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """All columns but the images, and the description of the data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [name for name in ("image", "label") if name not in names]
        if missing:
            raise DataError(
                f"{path}: no column {' and no column '.join(missing)} (found: {', '.join(names)}). "
                "An image data set needs `image` (encoded bytes) and `label` (string)."
            )
        wanted = ("label", "domain", "concept", "split", "sha256", "name_aligned")
        table = file.read([name for name in wanted if name in names])
        described = (file.schema_arrow.metadata or {}).get(b"fedarena", b"{}")
        metadata = json.loads(described)
    except (pa.ArrowException, OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}. Build or download it again; for a "
            "packaged data set reinstall fedarena."
        ) from error
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: its metadata key `fedarena` must hold a JSON object.")
    return table, metadata


def _strings(path: Path, table: pa.Table, name: str) -> list[str]:
    """A column as strings, [] where it is missing. Only ``split`` may hold nulls."""
    if name not in table.column_names:
        return []
    values = table[name].to_pylist()
    nulls = [row for row, value in enumerate(values) if value is None]
    if nulls and name != "split":
        raise DataError(f"{path}: column {name} is null in rows {nulls[:_NUM_LISTED]}.")
    return [str(value) if value is not None else "" for value in values]


def _codes(values: list[str], names: tuple[str, ...]) -> Ints:
    index = {name: code for code, name in enumerate(names)}
    return np.fromiter((index[value] for value in values), dtype=np.int64, count=len(values))


def _concept_ids(concepts: list[str], labels: Ints) -> Ints:
    """Concepts as ids [N]; each row is its own where the column only repeats the label."""
    if concepts:
        _, ids = np.unique(np.array(concepts), return_inverse=True)
        num_pairs = len(np.unique(np.stack([ids, labels]), axis=1).T)
        if not num_pairs == len(np.unique(ids)) == len(np.unique(labels)):
            return ids.astype(np.int64)
    return np.arange(len(labels))


def _split(path: Path, values: list[str], num_rows: int) -> npt.NDArray[np.int8]:
    unknown = sorted(set(values) - {"train", "test", ""})
    if unknown:
        raise DataError(f"{path}: column split holds {unknown}; allowed are train and test.")
    codes = [_SPLITS[value] for value in values] or [UNSPECIFIED] * num_rows
    return np.array(codes, dtype=np.int8)


def _hashes(path: Path, table: pa.Table, images: ParquetImages) -> Bytes:
    """The recorded content hashes, or those of the pixels where none are recorded."""
    recorded = _strings(path, table, "sha256")
    try:
        if recorded and all(len(value) == 64 for value in recorded):
            return hash_array([bytes.fromhex(value) for value in recorded])
    except ValueError as error:
        raise DataError(f"{path}: column sha256 is not hexadecimal: {error}.") from error
    if recorded:
        raise DataError(f"{path}: column sha256 must hold 64 hexadecimal digits in each row.")
    return compute_hashes(images, table.num_rows)


def compute_hashes(images: Any, num_rows: int) -> Bytes:
    """Content hashes [N, 32] by decoding every image. DataError lists the unreadable ones."""
    hashes, broken = [], []
    for row in range(num_rows):
        try:
            hashes.append(hash_pixels(decode(images.read(row))))
        except UNREADABLE as error:
            broken.append(f"{images.where(row)}: {error}")
    if broken:
        listed = "\n  ".join(broken[:_NUM_LISTED])
        raise DataError(
            f"{len(broken)} of {num_rows} images cannot be read:\n  {listed}\n"
            "Replace or remove them."
        )
    return hash_array(hashes)


def _locate(ends: Ints, row: int) -> tuple[int, int]:
    """Row group, and place within it, of one row. IndexError outside the file."""
    group = int(np.searchsorted(ends, row, side="right"))
    if row < 0 or group >= len(ends):
        raise IndexError(f"row {row} of {ends[-1] if len(ends) else 0}")
    return group, row - (int(ends[group - 1]) if group else 0)


@lru_cache(maxsize=16)
def _group_ends(path: Path, version: int) -> Ints:
    import pyarrow.parquet as pq

    groups = pq.ParquetFile(path).metadata
    return np.cumsum([groups.row_group(i).num_rows for i in range(groups.num_row_groups)])


@lru_cache(maxsize=2)
def _image_column(path: Path, version: int, group: int) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True).read_row_group(group, columns=["image"])["image"]
