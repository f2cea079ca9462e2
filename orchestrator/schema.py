"""What a config may hold, read off its dataclasses; and configs as plain values."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Slot:
    """What a field may hold: one of the dataclasses ``kinds``, or a single value of type ``hint``.

    default: the kind of the field's default, None where it has none. required: it has no default.
    many: the field holds a tuple of such dataclasses.
    """

    hint: Any
    kinds: tuple[type, ...] = ()
    default: type | None = None
    optional: bool = False
    required: bool = False
    many: bool = False

    @property
    def tags(self) -> dict[str, type]:
        return {tag: kind for kind in self.kinds if (tag := tag_of(kind)) is not None}

    def kind(self, raw: Mapping[str, Any]) -> type | None:
        """The dataclass that ``raw`` describes, None where its ``name`` is not known."""
        if self.tags and "name" in raw:
            name = raw["name"]
            return self.tags.get(name) if isinstance(name, str) else None
        return self.default or (self.kinds[0] if len(self.kinds) == 1 else None)


@cache
def slots(kind: type) -> Mapping[str, Slot]:
    """The fields of a config dataclass. TypeError for a schema that has no clear reading."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in fields(kind):
        item = _item(hints[field.name])
        members = members_of(hints[field.name] if item is None else item)
        kinds = tuple(m for m in members if isinstance(m, type) and is_dataclass(m))
        optional = types.NoneType in members
        if kinds and len(kinds) + optional < len(members):
            raise TypeError(f"{kind.__name__}.{field.name}: a section or a value, not either.")
        default = field.default if field.default_factory is MISSING else field.default_factory()
        nameless = [k for k in kinds if tag_of(k) is None and k is not type(default)]
        if len(kinds) > 1 and (nameless or len({tag_of(k) for k in kinds}) < len(kinds)):
            raise TypeError(f"{kind.__name__}.{field.name}: each type needs a name of its own.")
        found[field.name] = Slot(
            hint=hints[field.name],
            kinds=kinds,
            default=type(default) if type(default) in kinds else None,
            optional=optional,
            required=default is MISSING,
            many=item is not None,
        )
    return found


def _item(hint: Any) -> Any:
    """The dataclass, or union of some, that ``hint`` is a tuple of any number of; else None."""
    if typing.get_origin(hint) is not tuple:
        return None
    item, *rest = typing.get_args(hint)
    found = rest == [...] and all(is_dataclass(member) for member in members_of(item))
    return item if found else None


def members_of(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


@cache
def tag_of(kind: type) -> str | None:
    """The value of the field ``name`` that stands for this type, None where it has none."""
    hint = typing.get_type_hints(kind).get("name")
    return str(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else None


def plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in fields(value)}
        return plain({"name": held["name"], **held} if "name" in held else held)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
