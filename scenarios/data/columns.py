"""The item column of Parquet, Arrow, Feather and JSON-lines files, read row by row.

What was read last stays in memory: a row group of Parquet; all rows of JSON lines; for Arrow the
list of record batches, which lie in the mapped file where they are not compressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from scenarios.data.dataset import Ints
from scenarios.data.folder import file_version

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "arrow", "jsonl"]
JSON_BLOCK = 64 << 20
"""Bytes that are parsed at once; no line of JSON may be longer."""


class Shard(NamedTuple):
    """One file of a table, and the split that all its rows are in where its place says so."""

    path: Path
    format: Format
    split: str | None = None


@dataclass(frozen=True)
class ColumnItems:
    """One column of shards of the same schema. Rows are counted through all of them."""

    shards: tuple[Shard, ...]
    column: str

    def read(self, row: int) -> bytes:
        import pyarrow as pa

        try:
            shard, within = self._locate(row)
            group, place = _locate(_ends(shard, _version(shard)), within)
            value = _group(shard, _version(shard), group, self.column)[place].as_py()
        except (pa.ArrowException, IndexError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return _as_bytes(value, shard.path.parent)

    def where(self, row: int) -> str:
        shard, within = self._locate(row)
        return f"{shard.path}, row {within}"

    def place(self) -> str:
        first = self.shards[0].path
        return f"{first if len(self.shards) == 1 else first.parent}|{self.column}"

    def versions(self) -> list[str]:
        return [
            f"{version}|{row}"
            for shard, count in zip(self.shards, self._counts, strict=True)
            for version in (file_version(shard.path),)
            for row in range(count)
        ]

    def _locate(self, row: int) -> tuple[Shard, int]:
        if len(self.shards) == 1:
            return self.shards[0], row
        number, within = _locate(np.cumsum(self._counts), row)
        return self.shards[number], within

    @cached_property
    def _counts(self) -> list[int]:
        return [int(_ends(shard, _version(shard))[-1]) for shard in self.shards]


def open_schema(shard: Shard) -> pa.Schema:
    """Columns, types and metadata. Raises what pyarrow raises for files of another kind."""
    import pyarrow.parquet as pq

    if shard.format == "parquet":
        return pq.ParquetFile(shard.path).schema_arrow
    return _batches(shard, _version(shard))[0]


def num_rows(shard: Shard) -> int:
    """The rows of one file."""
    return int(_ends(shard, _version(shard))[-1])


def read_rows(shard: Shard, names: tuple[str, ...], rows: Ints) -> list[dict[str, Any]]:
    """Some columns of some rows, in their order. Rows that rise are read fastest.

    IndexError outside the file.
    """
    version = _version(shard)
    ends = _ends(shard, version)
    if len(rows) and (rows.min() < 0 or rows.max() >= ends[-1]):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {ends[-1]}")
    groups = np.searchsorted(ends, rows, side="right")
    found: list[dict[str, Any]] = []
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(groups)) + 1):
        if len(run):
            group = int(groups[run[0]])
            places = rows[run] - (int(ends[group - 1]) if group else 0)
            found += _group_columns(shard, version, group, names).take(places).to_pylist()
    return found


def read_columns(shard: Shard, names: list[str]) -> pa.Table:
    """Some columns of all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if shard.format == "parquet":
        return pq.ParquetFile(shard.path).read(names)
    schema, batches = _batches(shard, _version(shard))
    return pa.Table.from_batches(batches, schema).select(names)


def _as_bytes(value: Any, folder: Path) -> bytes:
    """An item as stored: bytes, text, or what `datasets` writes: a struct of bytes and a path."""
    if isinstance(value, dict):
        named = value.get("path")
        value = value.get("bytes")
        if value is None and named:
            return (folder / str(named)).read_bytes()
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bytes):
        return value
    raise OSError(f"the item is {'null' if value is None else type(value).__name__}")


def _locate(ends: Ints, row: int) -> tuple[int, int]:
    """Group, and place within it, of one row. IndexError outside the file."""
    group = int(np.searchsorted(ends, row, side="right"))
    if row < 0 or group >= len(ends):
        raise IndexError(f"row {row} of {ends[-1] if len(ends) else 0}")
    return group, row - (int(ends[group - 1]) if group else 0)


def _version(shard: Shard) -> int:
    return shard.path.stat().st_mtime_ns


@lru_cache(maxsize=256)
def _ends(shard: Shard, version: int) -> Ints:
    """The row after the last one of each group; at least one group."""
    import pyarrow.parquet as pq

    if shard.format == "parquet":
        groups = pq.ParquetFile(shard.path).metadata
        counts = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    else:
        counts = [batch.num_rows for batch in _batches(shard, version)[1]]
    return np.cumsum(counts or [0], dtype=np.int64)


@lru_cache(maxsize=2)
def _parquet_group(path: Path, version: int, group: int, column: str) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True).read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=4)
def _group_columns(shard: Shard, version: int, group: int, names: tuple[str, ...]) -> Any:
    """Some columns of one group: a table, or a record batch."""
    import pyarrow.parquet as pq

    if shard.format == "parquet":
        file = pq.ParquetFile(shard.path, memory_map=True)
        return file.read_row_group(group, columns=list(names)).combine_chunks()
    return _batches(shard, version)[1][group].select(list(names))


@lru_cache(maxsize=8)
def _batches(shard: Shard, version: int) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """All record batches of an Arrow file, of an Arrow stream as `datasets` writes it, of JSON."""
    import pyarrow as pa

    if shard.format == "jsonl":
        from pyarrow import json

        options = json.ReadOptions(use_threads=False, block_size=JSON_BLOCK)
        table = json.read_json(shard.path, read_options=options).combine_chunks()
        return table.schema, table.to_batches()
    with pa.memory_map(str(shard.path)) as mapped:
        whole = mapped.read_buffer()
    try:
        reader = pa.ipc.open_file(whole)
        return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(whole)
        return stream.schema, list(stream)


def _group(shard: Shard, version: int, group: int, column: str) -> Any:
    if shard.format == "parquet":
        return _parquet_group(shard.path, version, group, column)
    return _batches(shard, version)[1][group].column(column)
