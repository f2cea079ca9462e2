"""How a data set is named: ``NAME``, ``PATH?OPTIONS`` or ``KIND:PLACE?OPTIONS``.

Options are written as in a web address: ``?label=kind&image=picture``, with ``%26`` for ``&`` and
so on. An existing path that has a question mark in its name is that path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from fl_core.errors import DataError, did_you_mean
from scenarios.data.roles import NAMED_ROLES, ROLES

COMMON = frozenset({"name", "template", "duplicates"})
FOLDER = COMMON | {"levels"}
TABLE = COMMON | {*ROLES, *NAMED_ROLES, "classes"}
SPLITS = frozenset({"train", "validation", "test"})
SAVED = TABLE | SPLITS
HUB = SAVED | {"config", "revision"}
SAMPLE = frozenset({"num_train", "num_test", "seed"})
TEXT_TASK = frozenset({"name", "template", "revision", "response_words"}) | SAMPLE
TEXT_GROUP = frozenset({"name", "template", "tasks"}) | SAMPLE
KINDS: Mapping[str, frozenset[str]] = {
    "folder": frozenset(FOLDER),
    "parquet": frozenset(TABLE),
    "arrow": frozenset(TABLE),
    "hf": frozenset(HUB),
}
DUPLICATES = ("refuse", "drop")


@dataclass(frozen=True)
class Spec:
    """What names a data set. ``kind`` is empty where only a path or a packaged name is given."""

    text: str
    kind: str
    place: str
    options: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()

    def check(self, allowed: Collection[str]) -> None:
        """DataError for options that mean nothing for what was named."""
        faults = [
            f"option {name!r} is unknown here.{did_you_mean(name, allowed)}"
            for name in self.options
            if name not in allowed
        ]
        if faults:
            raise DataError(f"dataset={self.text!r}: " + "\n  ".join(faults))

    def number(self, name: str, least: int) -> int | None:
        """An option as a whole number, None where it is not given."""
        value = self.options.get(name)
        if value is None:
            return None
        if not value.isdecimal() or int(value) < least:
            raise DataError(
                f"dataset={self.text!r}: {name}={value!r} must be a whole number from {least} on."
            )
        return int(value)


def parse_spec(text: str, layouts: Collection[str]) -> Spec:
    """Take a spec apart. DataError lists everything that is wrong with it."""
    if Path(text).expanduser().exists():
        return Spec(text, "", text)
    head, _, query = text.partition("?")
    kind, colon, place = head.partition(":")
    known = {*KINDS, *layouts}
    if colon and kind not in known and not Path(head).expanduser().exists():
        raise DataError(
            f"dataset={text!r}: {kind!r} is no kind of data.{did_you_mean(kind, known)}"
        )
    if not colon or kind not in known:
        kind, place = "", head
    elif not place:
        raise DataError(f"dataset={text!r}: say where the data are, such as {kind}:PATH.")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise DataError(
            f"dataset={text!r}: {error}. Options are NAME=VALUE, joined by &."
        ) from error
    faults = list(_faults(pairs))
    if faults:
        raise DataError(f"dataset={text!r}: " + "\n  ".join(faults))
    templates = tuple(value for name, value in pairs if name == "template")
    return Spec(text, kind, place, dict(pairs), templates)


def _faults(pairs: list[tuple[str, str]]) -> Iterator[str]:
    names = [name for name, _ in pairs]
    for name in sorted(set(names) - {"template"}):
        if names.count(name) > 1:
            yield f"option {name!r} is given {names.count(name)} times."
    for name, value in pairs:
        if not value:
            yield f"option {name!r} has no value."
        elif name == "template" and value.count("{}") != 1:
            yield f"template {value!r} must hold {{}} once, where the class name goes."
        elif name == "duplicates" and value not in DUPLICATES:
            yield f"duplicates={value!r} is not allowed: it must be {' or '.join(DUPLICATES)}."
