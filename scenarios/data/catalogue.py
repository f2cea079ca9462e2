"""The packaged data sets and backbones, and how to load a data set by name or path."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_core.errors import DataError, did_you_mean
from scenarios.data.columns import Shard
from scenarios.data.dataset import Bytes, Dataset, Ints, as_items, hash_array
from scenarios.data.draft import Draft, finish
from scenarios.data.folder import check_levels, draft_folder
from scenarios.data.hashing import hash_items
from scenarios.data.hub import hub_shards, is_saved, saved_shards
from scenarios.data.published import LAYOUTS, draft_layout
from scenarios.data.spec import COMMON, FOLDER, HUB, SAVED, SPLITS, TABLE, Spec, parse_spec
from scenarios.data.table import ROLES, Columns, draft_table, shards_below

PACKAGED = Path(__file__).resolve().parent / "packaged"

IMAGE_SETS = ("emoji_coarse", "emoji_fine", "fashion_mnist", "flags")

PACKAGED_DATASETS: Mapping[str, Path] = MappingProxyType(
    {name: PACKAGED / f"{name}.parquet" for name in IMAGE_SETS}
)
PACKAGED_BACKBONES: Mapping[str, Path] = MappingProxyType({"emoji_clip": PACKAGED / "emoji_clip"})


def load_dataset(spec: str, cache: Path | None = None) -> Dataset:
    """A data set by packaged name, path, published layout or hub id, such as ``emoji_fine``,
    ``pictures?levels=domain,class``, ``pairs.parquet?label=kind``, ``oxford_pets:FOLDER``,
    ``hf:ID``; docs/data.md lists the forms.

    A packaged name wins over a file of that name (write ``./name`` for the file). Content hashes
    that the data do not bring along are kept in the folder ``cache`` and found there the next time.
    DataError for an unknown name, with the nearest ones, and for unreadable data.
    """
    draft = open_draft(spec)
    return finish(draft, hash_items(draft, cache))


def open_draft(text: str) -> Draft:
    """What the files of a data set say, before any item is read. DataError as ``load_dataset``."""
    packaged = text.partition("?")[0] in PACKAGED_DATASETS
    spec = parse_spec(f"./{text}" if packaged and Path(text).exists() else text, LAYOUTS)
    draft = _open_packaged(text, spec) if packaged else _open(spec)
    return replace(
        draft,
        name=spec.options.get("name", draft.name),
        templates=spec.templates or draft.templates,
        drop_repeats=spec.options.get("duplicates") == "drop",
    )


def _open_packaged(text: str, spec: Spec) -> Draft:
    spec.check(COMMON)
    path = PACKAGED_DATASETS[text.partition("?")[0]]
    if not path.is_file():
        raise DataError(f"packaged data set {text!r}: {path} is missing. Reinstall fedarena.")
    return draft_table(path.stem, [Shard(path, "parquet")])


def _open(spec: Spec) -> Draft:
    path = Path(spec.place).expanduser()
    if spec.kind in LAYOUTS:
        spec.check(COMMON)
        return draft_layout(LAYOUTS[spec.kind], path)
    if spec.kind == "hf" and not path.is_dir():
        spec.check(HUB)
        options = spec.options
        shards = hub_shards(
            spec.place, options.get("config"), options.get("revision"), _splits(spec)
        )
        return draft_table(spec.place.rpartition("/")[2], shards, _columns(spec))
    if path.is_dir():
        return _open_folder(spec, path.resolve())
    if path.is_file():
        spec.check(TABLE)
        is_arrow = spec.kind == "arrow" or path.suffix in (".arrow", ".feather")
        shard = Shard(path.resolve(), "arrow" if is_arrow else "parquet")
        return draft_table(path.stem, [shard], _columns(spec))
    names = [*PACKAGED_DATASETS, *LAYOUTS]
    hint = "" if "/" in spec.place else did_you_mean(spec.place, names)
    raise DataError(
        f"dataset={spec.text!r} is neither a packaged data set nor an existing Parquet or Arrow "
        f"file or folder.{hint} A published data set is named with its folder, such as "
        "oxford_pets:FOLDER."
    )


def _open_folder(spec: Spec, path: Path) -> Draft:
    if spec.kind in ("", "hf") and is_saved(path):
        spec.check(SAVED)
        return draft_table(path.name, saved_shards(path, _splits(spec)), _columns(spec))
    holds_tables = any(next(path.glob(depth), None) for depth in ("*.parquet", "*/*.parquet"))
    if spec.kind in ("hf", "parquet") or (spec.kind == "" and holds_tables):
        spec.check(TABLE)
        shards = shards_below(path)
        if not shards:
            raise DataError(f"dataset={spec.text!r}: {path} holds no *.parquet files.")
        return draft_table(path.name, shards, _columns(spec))
    spec.check(FOLDER)
    levels = tuple(filter(None, spec.options.get("levels", "").split(",")))
    faults = list(check_levels(levels)) if levels else []
    if faults:
        raise DataError(f"dataset={spec.text!r}: " + "\n  ".join(faults))
    return draft_folder(path, levels or None)


def _columns(spec: Spec) -> Columns:
    named = {role: spec.options[role] for role in ROLES if role in spec.options}
    return Columns(named, tuple(filter(None, spec.options.get("classes", "").split(","))))


def _splits(spec: Spec) -> dict[str, str]:
    return {split: spec.options[split] for split in sorted(SPLITS) if split in spec.options}


def overlap_with_alignment(dataset: Dataset, backbone: str) -> Ints:
    """The rows whose image the packaged ``backbone`` was aligned on; none for other backbones."""
    if backbone not in PACKAGED_BACKBONES:
        return np.empty(0, dtype=np.int64)
    aligned = _aligned_hashes(PACKAGED_BACKBONES[backbone])
    return np.flatnonzero(np.isin(as_items(dataset.content_hashes), as_items(aligned)))


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


@lru_cache(maxsize=4)
def _aligned_hashes(folder: Path) -> Bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "aligned_items.parquet"
    try:
        column = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}, the list of what the packaged backbone was aligned on, cannot be read: "
            f"{error}. Reinstall fedarena."
        ) from error
    return hash_array([bytes.fromhex(value) for value in column])
