"""The packaged data sets and backbones, and how to load a data set by name or path."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_core.errors import DataError, did_you_mean
from scenarios.data.columns import Format, Shard
from scenarios.data.dataset import Bytes, Dataset, Ints, as_items, hash_array
from scenarios.data.draft import Draft, finish
from scenarios.data.folder import check_levels, draft_folder
from scenarios.data.forms import Form, Instructions
from scenarios.data.hashing import hash_items
from scenarios.data.hub import FORMATS, hub_shards, is_saved, saved_shards, shards_below
from scenarios.data.published import LAYOUTS, draft_layout
from scenarios.data.roles import NAMED_ROLES, ROLES, Columns
from scenarios.data.spec import (
    COMMON,
    FOLDER,
    HUB,
    SAVED,
    SPLITS,
    TABLE,
    TEXT_GROUP,
    TEXT_TASK,
    Spec,
    parse_spec,
)
from scenarios.data.table import draft_table
from scenarios.data.text_published import TEXT_GROUPS, TEXT_TASKS
from scenarios.data.text_tasks import (
    ON_THE_HUB,
    Origin,
    Sample,
    TextGroup,
    TextTask,
    draft_text_tasks,
    find_shards,
)

PACKAGED = Path(__file__).resolve().parent / "packaged"

IMAGE_SETS = ("emoji_coarse", "emoji_fine", "fashion_mnist", "flags")
TEXT_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text_families": ("text_sentiment", "text_wordnet"),
        "text_sentiment": ("text_sentiment",),
        "text_wordnet": ("text_wordnet",),
    }
)
"""Texts, each row of which names its task and its family, by the files that hold them."""

PACKAGED_DATASETS: Mapping[str, tuple[Path, ...]] = MappingProxyType(
    {
        name: tuple(PACKAGED / f"{file}.parquet" for file in files)
        for name, files in {**{name: (name,) for name in IMAGE_SETS}, **TEXT_SETS}.items()
    }
)
PUBLISHED = frozenset({*LAYOUTS, *TEXT_TASKS, *TEXT_GROUPS})
"""The names that go with a place, as ``NAME:PLACE``."""
PACKAGED_BACKBONES: Mapping[str, Path] = MappingProxyType(
    {name: PACKAGED / name for name in ("emoji_clip", "emoji_clip_vit")}
)
PACKAGED_LANGUAGE_MODELS: Mapping[str, Path] = MappingProxyType({"minilm": PACKAGED / "minilm"})


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
    spec = parse_spec(f"./{text}" if packaged and Path(text).exists() else text, PUBLISHED)
    draft = _open_packaged(text, spec) if packaged else _open(spec)
    return replace(
        draft,
        name=spec.options.get("name", draft.name),
        templates=spec.templates or draft.templates,
        drop_repeats=draft.drop_repeats or spec.options.get("duplicates") == "drop",
    )


def _open_packaged(text: str, spec: Spec) -> Draft:
    spec.check(COMMON)
    name = text.partition("?")[0]
    paths = PACKAGED_DATASETS[name]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"packaged data set {text!r}: {', '.join(missing)} is missing. Reinstall fedarena."
        )
    shards = [Shard(path, "parquet") for path in paths]
    if name not in TEXT_SETS:
        return draft_table(name, shards)
    draft = draft_table(name, shards, Columns({"domain": "task", "family": "family"}))
    # Tasks on one dictionary share texts; what one of them tests must not be trained on in another.
    return replace(draft, name=name, classes=(), drop_repeats=True)


def local_place(text: str) -> str | None:
    """The path that the spec of a data set names; None for a packaged one, or one on the hub."""
    spec = parse_spec(text, PUBLISHED)
    if text.partition("?")[0] in PACKAGED_DATASETS:
        return None
    is_text = spec.kind in TEXT_TASKS or spec.kind in TEXT_GROUPS
    if is_text and spec.place == ON_THE_HUB:
        return None
    return None if spec.kind == "hf" and not Path(spec.place).is_dir() else spec.place


def _open(spec: Spec) -> Draft:
    path = Path(spec.place).expanduser()
    if spec.kind in TEXT_TASKS or spec.kind in TEXT_GROUPS:
        return _open_texts(spec)
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
        kind: Format = "arrow" if spec.kind == "arrow" else FORMATS.get(path.suffix, "parquet")
        return draft_table(path.stem, [Shard(path.resolve(), kind)], _columns(spec))
    names = [*PACKAGED_DATASETS, *sorted(PUBLISHED)]
    hint = "" if "/" in spec.place else did_you_mean(spec.place, names)
    raise DataError(
        f"dataset={spec.text!r} is neither a packaged data set nor an existing Parquet, Arrow "
        f"or JSON-lines file or folder.{hint} A published data set is named with its folder, such "
        "as oxford_pets:FOLDER."
    )


def _open_texts(spec: Spec) -> Draft:
    group = TEXT_GROUPS.get(spec.kind)
    spec.check(TEXT_TASK if group is None else TEXT_GROUP)
    names = (spec.kind,) if group is None else _members(spec, group)
    num_train, num_test = spec.number("num_train", 1), spec.number("num_test", 1)
    if group is not None:
        num_train, num_test = num_train or group.num_train, num_test or group.num_test
    sample = Sample(num_train, num_test, spec.number("seed", 0) or 0)
    origins, faults = [], []
    for name in names:
        task = TEXT_TASKS[name]
        task = replace(
            task, revision=spec.options.get("revision", task.revision), form=_form(spec, task)
        )
        try:
            found = find_shards(task, spec.place, is_one_of_several=group is not None)
            origins.append(Origin(task, found))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n  ".join(faults))
    return draft_text_tasks(spec.kind, origins, sample)


def _form(spec: Spec, task: TextTask) -> Form:
    """The task's form, without the responses that are too long."""
    most = spec.number("response_words", 1)
    if most is None:
        return task.form
    if not isinstance(task.form, Instructions):
        raise DataError(
            f"dataset={spec.text!r}: {task.name} has no responses for response_words to count. "
            "Leave it out."
        )
    return replace(task.form, response_words=most)


def _members(spec: Spec, group: TextGroup) -> tuple[str, ...]:
    """The sets of a group that are asked for, all where it is not said."""
    chosen = tuple(filter(None, spec.options.get("tasks", "").split(","))) or group.tasks
    unknown = [name for name in chosen if name not in group.tasks]
    if unknown or len(chosen) < 2 or len(set(chosen)) < len(chosen):
        hint = did_you_mean(unknown[0], group.tasks) if unknown else ""
        raise DataError(
            f"dataset={spec.text!r}: tasks must name two or more of {', '.join(group.tasks)}, "
            f"each once.{hint} A single one is named by itself, such as {group.tasks[0]}:PLACE."
        )
    return chosen


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
    roles = (*ROLES, *NAMED_ROLES)
    named = {role: spec.options[role] for role in roles if role in spec.options}
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
    unlisted = sorted({*chain(*PACKAGED_DATASETS.values())} - listed)
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
