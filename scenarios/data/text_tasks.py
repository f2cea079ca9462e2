"""Published text sets: their files, on disk or from the hub, and the rows drawn from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.data.columns import Shard, num_rows, open_schema, read_rows
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED, Ints
from scenarios.data.draft import Draft
from scenarios.data.expected import find_root
from scenarios.data.forms import Example, Form
from scenarios.data.hub import hub_shards, split_shards
from scenarios.data.rendered import RenderedItems

logger = logging.getLogger(__name__)

ON_THE_HUB = "hub"
"""The place that means: let `datasets` fetch it."""

TEXT_TEMPLATES = ("{}",)
_BLOCK = 8192
_LEAST_READ = 64


@dataclass(frozen=True)
class TextTask:
    """One published set. ``splits``: train, and test where one is labelled, by the hub's names.

    ``file``: the one file that a copy holds, where files are not named by split.
    """

    name: str
    family: str
    hub: str
    form: Form
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    config: str | None = None
    revision: str | None = None
    folders: tuple[str, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class TextGroup:
    """Several sets that are trained on together, and how many rows of each, None for all."""

    name: str
    tasks: tuple[str, ...]
    num_train: int | None = None
    num_test: int | None = None


@dataclass(frozen=True)
class Sample:
    """How many rows are drawn of each set; None takes all."""

    num_train: int | None = None
    num_test: int | None = None
    seed: int = 0

    def wanted(self, code: int) -> int | None:
        return self.num_test if code == TEST else self.num_train


class Origin(NamedTuple):
    """A task and the files that hold it."""

    task: TextTask
    shards: tuple[Shard, ...]


class Taken(NamedTuple):
    """Rows of one task in one split: where they stand (ascending), and what they say."""

    origin: int
    code: int
    places: list[int]
    examples: list[Example]


def find_shards(
    task: TextTask, place: str, *, is_one_of_several: bool = False
) -> tuple[Shard, ...]:
    """The files of a set: on the hub, in its own folder, or in the folder which that lies in."""
    if place == ON_THE_HUB:
        return tuple(hub_shards(task.hub, task.config, task.revision, task.splits))
    above = Path(place).expanduser().resolve()
    root = find_root(above, (task.name, *task.folders))
    if not root.is_dir() or (is_one_of_several and root == above):
        names = " or ".join(dict.fromkeys((task.name, *task.folders)))
        raise DataError(
            f"{task.name}: no folder {names} in {above}. Put a copy of {task.hub} there, in the "
            f"hub's own files or as save_to_disk writes it, or write {task.name}:{ON_THE_HUB}."
        )
    if task.file and (root / task.file).is_file():
        return (Shard(root / task.file, "jsonl", "train"),)
    return tuple(split_shards(root, task.config, task.splits))


def draft_text_tasks(name: str, origins: Sequence[Origin], sample: Sample) -> Draft:
    """The rows of one or several sets, those of a split drawn by the set's name.

    Training rows whose own words stand in a test row of any of the sets are left out. DataError
    lists what is missing.
    """
    _check_columns(origins)
    taken: list[Taken] = []
    faults: list[str] = []
    tested: set[str] = set()
    for code in (TEST, TRAIN):
        drawn = [
            _draw(number, origin, code, sample, tested) for number, origin in _of(origins, code)
        ]
        faults += [fault for part in drawn for fault in _short(part, origins, sample)]
        tested |= {example.key for part in drawn for example in part.examples}
        taken += drawn
    if faults:
        raise DataError("\n  ".join(faults))
    if all("test" not in origin.task.splits for origin in origins) and sample.num_test is None:
        taken = [part._replace(code=UNSPECIFIED) for part in taken]
    taken.sort(key=lambda part: (part.origin, part.code))
    return _drafted(name, origins, taken)


def _of(origins: Sequence[Origin], code: int) -> Iterator[tuple[int, Origin]]:
    """The sets that have rows of a split; test rows of a set without any come from its others."""
    for number, origin in enumerate(origins):
        yield (
            number,
            Origin(
                origin.task, tuple(s for s in origin.shards if s.split == _split(origin.task, code))
            ),
        )


def _split(task: TextTask, code: int) -> str:
    return "test" if code == TEST and "test" in task.splits else "train"


def _draw(number: int, origin: Origin, code: int, sample: Sample, tested: set[str]) -> Taken:
    """The first ``wanted`` usable rows of a drawn order, or all of them, by their place."""
    wanted = sample.wanted(code)
    if wanted is None and code == TEST and "test" not in origin.task.splits:
        return Taken(number, code, [], [])
    total = sum(num_rows(shard) for shard in origin.shards)
    order = np.arange(total)
    if wanted is not None:
        part = "test" if code == TEST else "train"
        rng = np.random.default_rng(derive(sample.seed, "text rows", origin.task.name, part))
        order = rng.permutation(total)
    found: list[tuple[int, Example]] = []
    left_out = 0
    step = _BLOCK if wanted is None else max(wanted, _LEAST_READ)
    for start in range(0, total, step):
        if wanted is not None and len(found) >= wanted:
            break
        for place, example in _read(origin, order[start : start + step]):
            if example is not None and example.key not in tested:
                found.append((place, example._replace(text="")))  # read again when asked for
            left_out += example is not None and example.key in tested
    if left_out:
        logger.info("%s: %d rows are left out: also tested on", origin.task.name, left_out)
    kept = sorted(found[:wanted], key=lambda pair: pair[0])
    return Taken(number, code, [place for place, _ in kept], [example for _, example in kept])


def _read(origin: Origin, places: Ints) -> Iterator[tuple[int, Example | None]]:
    """The examples at some places, in their order; the files are read from front to back."""
    form, ends = origin.task.form, _ends(origin.shards)
    found: dict[int, Example | None] = {}
    rising = np.sort(places)
    starts = np.searchsorted(rising, [0, *ends])
    for shard, first, last, begin in zip(
        origin.shards, starts[:-1], starts[1:], [0, *ends[:-1]], strict=True
    ):
        rows = rising[first:last]
        held = read_rows(shard, form.columns, rows - begin)
        found |= zip(rows.tolist(), map(form.example, held), strict=True)
    return ((place, found[place]) for place in places.tolist())


def _ends(shards: Sequence[Shard]) -> list[int]:
    return list(accumulate(num_rows(shard) for shard in shards))


def _check_columns(origins: Sequence[Origin]) -> None:
    import pyarrow as pa

    faults = []
    for task, shards in origins:
        for shard in shards:
            try:
                present = open_schema(shard).names
            except (pa.ArrowException, OSError) as error:
                faults.append(f"{task.name}: {shard.path} cannot be read: {error}.")
                continue
            missing = [name for name in task.form.columns if name not in present]
            if missing:
                faults.append(
                    f"{task.name}: {shard.path} has no column {', '.join(missing)} (found: "
                    f"{', '.join(present)}); it should be as {task.hub} on the hub."
                )
    if faults:
        raise DataError("\n  ".join(faults))


def _short(part: Taken, origins: Sequence[Origin], sample: Sample) -> Iterator[str]:
    task, wanted, found = origins[part.origin].task, sample.wanted(part.code), len(part.places)
    option, split = ("num_test", "test") if part.code == TEST else ("num_train", "training")
    if wanted is not None and found < wanted:
        yield (
            f"{task.name}: {found:,} usable {split} rows, but {option}={wanted} are asked for. Set "
            f"{option} to {found} or less."
        )
    elif not found and (part.code == TRAIN or "test" in task.splits):
        yield f"{task.name}: no usable {split} row."


def _drafted(name: str, origins: Sequence[Origin], taken: Sequence[Taken]) -> Draft:
    shards = tuple(chain.from_iterable(origin.shards for origin in origins))
    examples = [example for part in taken for example in part.examples]
    form_of = [part.origin for part in taken for _ in part.places]
    located = [_located(origins, part, shards) for part in taken if part.places]
    tasks = [origins[number].task for number in form_of]
    is_mixed = len(origins) > 1
    return Draft(
        name=name,
        items=RenderedItems(
            forms=tuple(origin.task.form for origin in origins),
            shards=shards,
            form_of=np.array(form_of, dtype=np.int64),
            shard_of=np.concatenate([which for which, _ in located]),
            places=np.concatenate([places for _, places in located]),
        ),
        labels=[example.label for example in examples],
        templates=TEXT_TEMPLATES,
        domains=[task.name for task in tasks] if is_mixed else (),
        families={o.task.name: o.task.family for o in origins} if is_mixed else {},
        clients=[e.client for e in examples] if any(e.client for e in examples) else (),
        concepts=[example.key for example in examples],
        split=[part.code for part in taken for _ in part.places],
        modality="text",
        responses=[(e.response,) for e in examples if e.response],
    )


def _located(
    origins: Sequence[Origin], part: Taken, shards: tuple[Shard, ...]
) -> tuple[Ints, Ints]:
    """For each row its file, as a place in ``shards``, and its row in that file."""
    task, held = origins[part.origin]
    split = _split(task, TRAIN if part.code == UNSPECIFIED else part.code)
    before = sum(len(origin.shards) for origin in origins[: part.origin])
    ours = [number for number, shard in enumerate(held) if shard.split == split]
    ends = np.array(_ends([held[number] for number in ours]))
    places = np.array(part.places, dtype=np.int64)
    which = np.searchsorted(ends, places, side="right")
    begins = np.concatenate([[0], ends[:-1]])
    return before + np.array(ours)[which], places - begins[which]
