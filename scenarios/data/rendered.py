"""Texts that are made of several columns of a file when they are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from scenarios.data.columns import Shard, read_rows
from scenarios.data.dataset import Ints
from scenarios.data.folder import file_version
from scenarios.data.forms import Form


@dataclass(frozen=True)
class RenderedItems:
    """Prompts, filled in when they are read: row r is row ``places[r]`` of one file."""

    forms: tuple[Form, ...]
    shards: tuple[Shard, ...]
    form_of: Ints
    shard_of: Ints
    places: Ints

    def read(self, row: int) -> bytes:
        import pyarrow as pa

        form, shard = self.forms[int(self.form_of[row])], self.shards[int(self.shard_of[row])]
        try:
            (found,) = read_rows(shard, form.columns, self.places[row : row + 1])
            example = form.example(found)
        except (pa.ArrowException, LookupError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if example is None:
            raise OSError("the row has lost its text or its label")
        return example.text.encode("utf-8")

    def where(self, row: int) -> str:
        return f"{self.shards[self.shard_of[row]].path}, row {self.places[row]}"

    def place(self) -> str:
        return "|".join(str(shard.path) for shard in self.shards)

    def versions(self) -> list[str]:
        files = [file_version(shard.path) for shard in self.shards]
        forms = [hashlib.sha256(repr(form).encode()).hexdigest() for form in self.forms]
        rows = zip(self.form_of, self.shard_of, self.places, strict=True)
        return [f"{files[shard]}|{forms[form]}|{place}" for form, shard, place in rows]
