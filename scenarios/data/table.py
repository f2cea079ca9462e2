"""Data sets in tables: Parquet, Arrow and Feather files, the packaged ones and a user's own.

Columns: ``image`` (encoded bytes) or ``text``, and ``label`` (a string, or a whole number with
names in the metadata); optional ``domain``, ``client``, ``concept``, ``split``, ``sha256`` (hex of
the content hash; computed where it is missing) and ``name_aligned``. Optional metadata: key
``fedarena``, JSON with name, templates and classes; key ``huggingface``, the features that
`datasets` writes. Where a column is named as ``family``, the domains are tasks of these families;
one named as ``response`` holds what an open-ended task is answered with, a text or a list of texts
of which each will do. Then the label may be missing: all rows are of one class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from fl_core.errors import DataError, did_you_mean
from scenarios.data.columns import ColumnItems, Shard, num_rows, open_schema, read_columns
from scenarios.data.dataset import DEFAULT_TEMPLATES, Bytes, Modality, hash_array
from scenarios.data.draft import NUM_LISTED, SPLIT_CODES, Draft
from scenarios.data.hub import FORMATS
from scenarios.data.roles import ROLES, Columns

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_RECORDED = ("sha256", "name_aligned")
_TEMPLATES: Mapping[Modality, tuple[str, ...]] = {"image": DEFAULT_TEMPLATES, "text": ("{}",)}
_MAY_BE_NULL = ("split", "client")
OPEN_ENDED = "open-ended"
"""The class of all rows where only responses are given."""


def draft_table(name: str, shards: Sequence[Shard], columns: Columns | None = None) -> Draft:
    """The data set in the rows of all shards. DataError names the files and what is wrong."""
    table = _Table(name, tuple(shards), columns or Columns())
    faults = list(table.faults())
    if faults:
        raise DataError(f"{table.where}: " + "\n  ".join(faults))
    modality: Modality = "text" if "text" in table.roles else "image"
    described = table.described
    return Draft(
        name=described.get("name", name),
        items=ColumnItems(table.shards, table.roles[modality]),
        labels=table.labels,
        classes=tuple(described.get("classes", ())) or table.class_names,
        templates=tuple(described.get("templates", ())) or _TEMPLATES[modality],
        domains=table.strings("domain"),
        clients=table.strings("client"),
        concepts=table.strings("concept"),
        split=[SPLIT_CODES[split] for split in table.splits],
        recorded=table.recorded,
        name_aligned=(
            table.rows["name_aligned"].to_numpy()
            if "name_aligned" in table.rows.column_names
            else None
        ),
        modality=modality,
        families=dict(zip(table.strings("domain"), table.named("family"), strict=False)),
        responses=table.responses,
    )


@dataclass(frozen=True)
class _Table:
    """All columns but the items, and what the files say about them."""

    name: str
    shards: tuple[Shard, ...]
    columns: Columns

    @property
    def where(self) -> str:
        first = self.shards[0].path
        return str(first if len(self.shards) == 1 else first.parent)

    @cached_property
    def schema(self) -> pa.Schema:
        return self._reading(lambda: open_schema(self.shards[0]))

    @cached_property
    def roles(self) -> dict[str, str]:
        """Role to column, for the roles that are there."""
        found = {str(role): name for role, name in self.columns.named.items()}
        present = self.schema.names
        found |= {role: role for role in ROLES if role not in found and role in present}
        typed = {"image": "Image", "label": "ClassLabel"}
        for role, kind in typed.items():  # a type that says what a column is needs no name
            of_kind = [name for name in self._features if self._kind(name) == kind]
            if role not in found and len(of_kind) == 1 and of_kind[0] in present:
                found[role] = of_kind[0]
        if "text" in self.columns.named:
            found.pop("image", None)
        elif "image" in self.columns.named:
            found.pop("text", None)
        return found

    @cached_property
    def rows(self) -> pa.Table:
        import pyarrow as pa

        items = {self.roles.get("image"), self.roles.get("text")}
        names = [name for role, name in self.roles.items() if role not in ("image", "text")]
        names += [name for name in _RECORDED if name in self.schema.names and name not in items]
        unique = list(dict.fromkeys(names))
        return self._reading(
            lambda: pa.concat_tables([read_columns(shard, unique) for shard in self.shards])
        )

    @cached_property
    def described(self) -> dict[str, Any]:
        held = self._metadata(b"fedarena")
        if not isinstance(held, dict):
            raise DataError(f"{self.where}: its metadata key `fedarena` must hold a JSON object.")
        return held

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the numbers 0, 1, ... in the label column are called, where that is said."""
        named = self._features.get(self.roles.get("label", ""), {}).get("names", ())
        return self.columns.class_names or tuple(named)

    @cached_property
    def labels(self) -> list[str]:
        if "label" not in self.roles:
            return [OPEN_ENDED] * sum(self.counts)
        values = self.rows[self.roles["label"]].to_pylist()
        if self.class_names and self._is_number("label"):
            return [self.class_names[value] for value in values]
        return [str(value) for value in values]

    @cached_property
    def responses(self) -> list[tuple[str, ...]]:
        """What may answer each row; [] where no column is named for it."""
        if "response" not in self.roles:
            return []
        values = self.rows[self.roles["response"]].to_pylist()
        several = (value if isinstance(value, list) else [value] for value in values)
        return [tuple("" if text is None else str(text) for text in own) for own in several]

    @property
    def counts(self) -> list[int]:
        """The rows of each file."""
        return [num_rows(shard) for shard in self.shards]

    @cached_property
    def splits(self) -> list[str]:
        """The split of each row: its file's, or what the column says, or nothing."""
        if any(shard.split is not None for shard in self.shards):
            pairs = zip(self.shards, self.counts, strict=True)
            return [shard.split or "" for shard, count in pairs for _ in range(count)]
        return [value or "" for value in self.strings("split")]

    @cached_property
    def recorded(self) -> Bytes | None:
        values = self.strings("sha256")
        if not values:
            return None
        if any(len(value) != 64 for value in values):
            raise DataError(
                f"{self.where}: column sha256 must hold 64 hexadecimal digits in each row."
            )
        try:
            return hash_array([bytes.fromhex(value) for value in values])
        except ValueError as error:
            raise DataError(f"{self.where}: column sha256 is not hexadecimal: {error}.") from error

    def strings(self, role: str) -> list[Any]:
        """A column as strings, [] where it is missing."""
        name = self.roles.get(role, role)
        if name not in self.rows.column_names:
            return []
        values = self.rows[name].to_pylist()
        names = self._features.get(name, {}).get("names") if role in ROLES else None
        if names and self._is_number(role):
            return [names[value] if value is not None else None for value in values]
        return [str(value) if value is not None else None for value in values]

    def named(self, role: str) -> list[Any]:
        """A column that must be named, as strings; [] where it is not."""
        return self.strings(role) if role in self.roles else []

    def faults(self) -> Iterator[str]:
        """What keeps the table from being a data set; first the columns, then what they hold."""
        faults = list(self._missing())
        yield from faults or self._wrong_values()

    def _missing(self) -> Iterator[str]:
        present = self.schema.names
        for role, name in self.columns.named.items():
            if name not in present:
                yield f"no column {name}, which is to be the {role}.{did_you_mean(name, present)}"
        found = f"(found: {', '.join(present)})"
        if not {"image", "text"} & set(self.roles):
            yield f"no column image or text {found}: name it, as in ?image=COLUMN or ?text=COLUMN."
        if {"image", "text"} <= set(self.roles):
            yield (
                f"image ({self.roles['image']}) and text ({self.roles['text']}) are both there: "
                f"choose one, ?image={self.roles['image']} or ?text={self.roles['text']}."
            )
        if "label" not in self.roles and "response" not in self.roles:
            yield f"no column label {found}: name it, such as ?label=kind."
        kinds = {name: str(self.schema.field(name).type) for name in present}
        if kinds.get(self.roles.get("label", "")) in ("float", "double"):
            yield (
                f"column {self.roles['label']} holds fractions, as pandas writes numbers where "
                "some are missing. Write whole numbers, or names."
            )
        if kinds.get(self.roles.get("image", "")) in ("string", "large_string"):
            yield (
                f"column {self.roles['image']} holds strings, not encoded images: put the bytes of "
                "the files that they name into it (JSON lines cannot hold any; Parquet can), or "
                "use an image folder."
            )

    def _wrong_values(self) -> Iterator[str]:
        for role, name in self.roles.items():
            if role in ("image", "text") or role in _MAY_BE_NULL:
                continue
            nulls = [row for row, v in enumerate(self.rows[name].to_pylist()) if v is None]
            if nulls:
                yield f"column {name} is null in rows {nulls[:NUM_LISTED]}."
                return
        if "label" in self.roles and self._is_number("label"):
            yield from self._wrong_numbers()
        yield from self._wrong_families()
        if unknown := sorted(set(self.splits) - set(SPLIT_CODES)):
            allowed = ", ".join(sorted(set(SPLIT_CODES) - {""}))
            yield f"column split holds {unknown}; allowed are {allowed}."

    def _wrong_families(self) -> Iterator[str]:
        if "family" not in self.roles:
            return
        if "domain" not in self.roles:
            yield "a family is of domains: name their column too, such as ?domain=task."
            return
        pairs = sorted({*zip(self.strings("domain"), self.strings("family"), strict=True)})
        for (task, one), (other, another) in pairwise(pairs):
            if task == other:
                yield f"domain {task} is of family {one}, and of family {another}."

    def _wrong_numbers(self) -> Iterator[str]:
        values = self.rows[self.roles["label"]].to_pylist()
        if not self.class_names:
            yield (
                f"column {self.roles['label']} holds numbers, and no metadata say what they are "
                "called. Name them: ?classes=NAME_OF_0,NAME_OF_1,..."
            )
            return
        outside = [row for row, v in enumerate(values) if not 0 <= v < len(self.class_names)]
        if outside:
            yield (
                f"column {self.roles['label']} lies outside 0..{len(self.class_names) - 1} in "
                f"{len(outside)} rows: {outside[:NUM_LISTED]}. Rows without a label cannot be used."
            )

    def _is_number(self, role: str) -> bool:
        import pyarrow as pa

        return bool(pa.types.is_integer(self.schema.field(self.roles[role]).type))

    @cached_property
    def _features(self) -> dict[str, Any]:
        features = (self._metadata(b"huggingface").get("info") or {}).get("features") or {}
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}

    def _kind(self, column: str) -> str:
        return str(self._features[column].get("_type", ""))

    def _metadata(self, key: bytes) -> Any:
        try:
            return json.loads((self.schema.metadata or {}).get(key, b"{}"))
        except json.JSONDecodeError as error:
            raise DataError(f"{self.where}: its metadata are not JSON: {error}.") from error

    def _reading(self, read: Callable[[], T]) -> T:
        import pyarrow as pa

        try:
            return read()
        except (pa.ArrowException, OSError) as error:
            path, kind, _ = self.shards[0]
            if path.suffix not in FORMATS:
                raise DataError(
                    f"{self.where} is no Parquet file, and its ending names no other kind of "
                    f"table that is read ({', '.join(FORMATS)}). Write it as one of these; CSV: "
                    "pandas.read_csv(OLD).to_parquet(NEW)."
                ) from error
            called = {"parquet": "Parquet", "arrow": "Arrow", "jsonl": "JSON lines"}[kind]
            why = str(error).rstrip(".")
            raise DataError(
                f"{self.where} is not a readable {called} file: {why}. Correct it, or build or "
                "download it again; for a packaged data set reinstall fedarena."
            ) from error
