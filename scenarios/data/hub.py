"""Data sets of the Hugging Face library: by id, or saved to disk. All end as Arrow files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fl_core.errors import DataError, did_you_mean
from scenarios.data.columns import Format, Shard
from scenarios.data.draft import NUM_LISTED, SPLIT_CODES

FORMATS: Mapping[str, Format] = {
    ".arrow": "arrow",
    ".feather": "arrow",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
_DICT, _STATE = "dataset_dict.json", "state.json"


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of `datasets` wrote this folder."""
    return (folder / _DICT).is_file() or (folder / _STATE).is_file()


def saved_shards(folder: Path, wanted: Mapping[str, str]) -> list[Shard]:
    """The Arrow files of a folder that ``save_to_disk`` wrote; ``wanted`` as in ``hub_shards``."""
    folder = folder.resolve()
    try:
        if not (folder / _DICT).is_file():
            if wanted:
                options = ", ".join(f"{ours}={name}" for ours, name in wanted.items())
                raise DataError(
                    f"{folder} is one data set without splits, so {options} means nothing. Leave "
                    "it out: test rows are then drawn. Or save a DatasetDict with its splits."
                )
            return _shards(folder, None)
        splits = json.loads((folder / _DICT).read_text(encoding="utf-8"))["splits"]
        chosen = choose_splits(str(folder), splits, wanted)
        return [shard for name, ours in chosen for shard in _shards(folder / name, ours)]
    except (OSError, json.JSONDecodeError, LookupError, TypeError) as error:
        raise DataError(
            f"{folder} is not a whole data set as `datasets` saves it: {error!r}. Save it again "
            "with save_to_disk."
        ) from error


def hub_shards(
    dataset_id: str, config: str | None, revision: str | None, wanted: Mapping[str, str]
) -> list[Shard]:
    """The Arrow files of a data set on the hub, downloaded by `datasets` where they are not yet.

    ``wanted``: our split to the hub's name of it; splits of known names where it is empty.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "hf: needs the package `datasets`. Install it: pip install 'fedarena[hf]'."
        ) from error
    try:
        loaded = datasets.load_dataset(dataset_id, name=config, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hf:{dataset_id} cannot be loaded: {type(error).__name__}: {error}. Check the id, the "
            "option config, the network, and for a gated set `hf auth login`."
        ) from error
    return [
        Shard(Path(file["filename"]), "arrow", ours)
        for name, ours in choose_splits(f"hf:{dataset_id}", list(loaded), wanted)
        for file in loaded[name].cache_files
    ]


def split_shards(root: Path, config: str | None, wanted: Mapping[str, str]) -> list[Shard]:
    """The files of a copy of a data set, whose names or folders start with a split's name.

    ``train-00000-of-00001.parquet``, ``train.jsonl`` and ``train/0000.parquet`` are of the split
    train; a folder of the name ``config`` is looked into alone. ``wanted`` as in ``hub_shards``.
    """
    root = root / config if config and (root / config).is_dir() else root
    if is_saved(root):
        return saved_shards(root, wanted)
    files = sorted(path for path in root.rglob("*") if path.suffix in FORMATS and path.is_file())
    found: list[Shard] = []
    faults = []
    for ours, name in wanted.items():
        held = [path for path in files if _is_of_split(path, root, name)]
        found += [Shard(path, FORMATS[path.suffix], ours) for path in held]
        if not held:
            faults.append(f"no file of the split {name}, such as {name}-00000-of-00001.parquet.")
    if faults:
        raise DataError(f"{root}: " + "\n  ".join(faults))
    return found


def _is_of_split(path: Path, root: Path, name: str) -> bool:
    stem = path.name.removesuffix(path.suffix)
    return stem == name or stem.startswith(f"{name}-") or name in path.relative_to(root).parts[:-1]


def shards_below(root: Path) -> list[Shard]:
    """The Parquet files of a folder, as the hub lays them out: ``train-00000-of-00002.parquet``.

    A name that starts with no known split leaves the split to the column of that name.
    """
    files = sorted(root.rglob("*.parquet"))
    splits = [path.name.removesuffix(".parquet").split("-")[0].split(".")[0] for path in files]
    known = [split if split in SPLIT_CODES else None for split in splits]
    if any(known) and not all(known):
        astray = [path.name for path, split in zip(files, known, strict=True) if not split]
        raise DataError(
            f"{root}: the names of some Parquet files start with a split, but not those of "
            f"{', '.join(astray[:NUM_LISTED])}. Name a file, or move the others elsewhere."
        )
    return [
        Shard(path.resolve(), "parquet", split) for path, split in zip(files, known, strict=True)
    ]


def choose_splits(
    place: str, names: Iterable[str], wanted: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Pairs of the data's name of a split and ours. DataError for what is not there or unclear."""
    found = list(names)
    if wanted:
        faults = [
            f"no split {name!r}, which is to be {ours}.{did_you_mean(name, found)}"
            for ours, name in wanted.items()
            if name not in found
        ]
        if faults:
            raise DataError(f"{place}: " + "\n  ".join(faults))
        return [(name, ours) for ours, name in wanted.items()]
    unknown = sorted(set(found) - set(SPLIT_CODES))
    if unknown:
        raise DataError(
            f"{place} has the splits {', '.join(found)}, and it is not said what "
            f"{', '.join(unknown)} is for. Say which to use, such as ?train={found[0]}&test=NAME."
        )
    return [(name, name) for name in found]


def _shards(folder: Path, split: str | None) -> list[Shard]:
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return [Shard(folder / file["filename"], "arrow", split) for file in state["_data_files"]]
