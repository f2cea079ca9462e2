"""From plain values to config dataclasses, with every fault noted; and dotted overrides."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from fl_core.errors import ConfigError, did_you_mean
from orchestrator.config import ExperimentConfig
from orchestrator.schema import Slot, members_of, slots, tag_of
from orchestrator.yaml_text import Loader

ROOT = Slot(ExperimentConfig, (ExperimentConfig,), ExperimentConfig)

_BAD: Any = object()
"""Stands for a value whose fault has been noted; the field's default takes its place."""


class Reader:
    """Builds dataclasses from plain values, and collects what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.bad_paths: list[str] = []

    def note(self, path: str, fault: str) -> Any:
        self.bad_paths.append(path)
        self.faults.append(fault)
        return _BAD

    def refuse(self, path: str, raw: Any, allowed: str) -> Any:
        shown = repr(raw) if len(repr(raw)) <= 60 else f"{repr(raw)[:57]}..."
        what = f"{path or 'the config'} = {shown} ({_type_name(raw)})"
        return self.note(path, f"{what} is not allowed: it must be {allowed}")

    def section(self, slot: Slot, raw: Any, path: str) -> Any:
        """The dataclass that ``raw`` describes, or _BAD."""
        if raw is None:  # also a section whose lines are all commented out
            if slot.optional:
                return None
            raw = {}
        tags = ", ".join(slot.tags)
        if isinstance(raw, str) and tags:
            raw = {"name": raw}
        if not isinstance(raw, Mapping):
            allowed = f"one of {tags}, or a mapping of settings." if tags else "a mapping."
            return self.refuse(path, raw, allowed)
        kind = slot.kind(raw)
        if kind is not None:
            return self._build(slot, kind, raw, path)
        if "name" not in raw:
            return self.note(path, f"{path}.name is missing: it must be one of {tags}.")
        name = raw["name"]
        hint = did_you_mean(str(name), slot.tags)
        return self.note(path, f"{path} = {name!r} is not known.{hint}")

    def _build(self, slot: Slot, kind: type, raw: Mapping[Any, Any], path: str) -> Any:
        known, prefix = slots(kind), f"{path}." if path else ""
        for key in raw:
            if key not in known:
                self._unknown(slot, kind, str(key), prefix)
        values: dict[str, Any] = {}
        for name, field in known.items():
            at = prefix + name
            if name in raw:
                values[name] = self._field(field, raw[name], at)
            elif field.required:
                values[name] = self.note(at, f"{at} is missing: {_allowed(field.hint)}.")
        if any(value is _BAD and known[name].required for name, value in values.items()):
            return _BAD
        try:
            return kind(**{name: value for name, value in values.items() if value is not _BAD})
        except ValueError as error:  # a ConfigError is one
            for line in error.faults if isinstance(error, ConfigError) else [str(error)]:
                word = re.split(r"\W", line)[0]
                if word in known:
                    self.note(prefix + word, prefix + line)
                else:
                    self.note(path, f"{path}: {line}" if path else line)
            return _BAD

    def _field(self, slot: Slot, raw: Any, path: str) -> Any:
        if not slot.many:
            return self.section(slot, raw, path) if slot.kinds else self._value(slot, raw, path)
        if not isinstance(raw, list):
            return self.refuse(path, raw, "a list of mappings, each with the settings of one.")
        items = [self.section(slot, item, f"{path}[{i}]") for i, item in enumerate(raw)]
        return _BAD if any(item is _BAD for item in items) else tuple(items)

    def _unknown(self, slot: Slot, kind: type, key: str, prefix: str) -> None:
        owner = f" of {tag_of(kind)}" if slot.tags else ""
        others = [tag for tag, other in slot.tags.items() if key in slots(other)]
        where = f" It is a setting of {' and '.join(others)}." if others else ""
        own = slots(kind)
        hint = did_you_mean(key, own) if others else what_may_be_meant(key, prefix, own)
        self.note(prefix + key, f"{prefix}{key} is not a setting{owner}.{where}{hint}")

    def _value(self, slot: Slot, raw: Any, path: str) -> Any:
        if isinstance(raw, Integral) and not isinstance(raw, bool):
            raw = int(raw)  # also NumPy's, as from a loop over numpy.arange
        try:
            return _adapter(slot.hint).validate_json(json.dumps(raw), strict=True)
        except (ValueError, TypeError, RecursionError):  # ValidationError is one
            words = _words(slot.hint)
            near = did_you_mean(raw, words) if words and isinstance(raw, str) else ""
            return self.refuse(path, raw, f"{_allowed(slot.hint)}.{near.split(' Known:')[0]}")

    def override(self, raw: Any, override: str) -> Any:
        """``raw`` with one ``path=value`` put in; a new value, nothing is changed in place."""
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            hint = "Write path=value, like federation.rounds=20."
            self.note(path, f"{override!r} is not an override. {hint}")
            return raw
        try:
            value = yaml.load(text, Loader)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            self.note(path, f"{path} = {text!r} cannot be read: {problem}. Put it in quotes.")
            return raw
        return put(ROOT, raw, keys, value)


def put(slot: Slot, raw: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    section = _section(raw)
    key, *rest = keys
    kind = slot.kind(section)
    child = slots(kind).get(key, Slot(None)) if kind else Slot(None)
    if rest:
        return {**section, key: put(child, section.get(key), rest, value)}
    if key == "name" and slot.tags:
        return _switch(slot, section, value)
    if child.tags and isinstance(value, str):
        value = _switch(child, _section(section.get(key)), value)
    return {**section, key: value}


def what_may_be_meant(key: str, prefix: str, known: Iterable[str]) -> str:
    """Sentences on a setting that is not ``known``: where one of its name stands, or near names."""
    elsewhere = _elsewhere(key, prefix)
    where = f" There is {' and '.join(elsewhere)}." if elsewhere else ""
    return where + did_you_mean("" if elsewhere else key, known)


def _elsewhere(key: str, prefix: str) -> list[str]:
    """Where settings of this name stand: beneath ``prefix`` if any do, at most three."""
    found = sorted(
        (path for path in _all_paths() if path.endswith(f".{key}")),
        key=lambda path: (path.count("."), path),
    )
    nearer = [path for path in found if path.startswith(prefix)]
    return (nearer or found)[:3]


@cache
def _all_paths() -> frozenset[str]:
    """The dotted path of every setting, under every type that its section may have."""

    def below(slot: Slot, path: str, above: frozenset[type]) -> Iterator[str]:
        for kind in set(slot.kinds) - above:
            for name, field in slots(kind).items():
                yield f"{path}{name}"
                yield from below(field, f"{path}{name}.", above | {kind})

    return frozenset(below(ROOT, "", frozenset()))


def _switch(slot: Slot, section: dict[str, Any], name: Any) -> dict[str, Any]:
    """The section under another type: without the settings that only the old type has."""
    old, new = slot.kind(section), slot.kind({"name": name})
    lost = slots(old).keys() - slots(new).keys() if old and new else frozenset()
    return {**{k: v for k, v in section.items() if k not in lost}, "name": name}


def _section(raw: Any) -> dict[str, Any]:
    if isinstance(raw, str):
        return {"name": raw}
    return dict(raw) if isinstance(raw, Mapping) else {}


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _words(hint: Any) -> list[str]:
    literals = [m for m in members_of(hint) if typing.get_origin(m) is Literal]
    return [str(value) for m in literals for value in typing.get_args(m)]


_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}


def _allowed(hint: Any) -> str:
    words = _words(hint)
    plain = [m for m in members_of(hint) if typing.get_origin(m) is not Literal]
    listed = [f"one of {', '.join(words)}" if len(words) > 1 else words[0]] if words else []
    return " or ".join([_NAMES.get(m, str(m)) for m in plain] + listed)


def _type_name(raw: Any) -> str:
    if isinstance(raw, Mapping):
        return "a mapping"
    return "a list" if isinstance(raw, list) else _NAMES.get(type(raw), type(raw).__name__)
