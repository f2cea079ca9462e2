"""A population: which client holds which training, validation and test rows. It is the manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from scenarios.client_rows import ClientRows, Shard, count_labels
from scenarios.data.dataset import Dataset

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
METADATA_KEY = b"fedarena"


@dataclass(frozen=True, eq=False)
class Population:
    """The rows of every client, and of the global sets. Equal content, equal ``hash``.

    ``labels`` and ``domain_ids`` int64 [N] over all rows of the data set, -1 where a row is not
    used; the domains are for the reader and not part of the hash, since the fingerprint has them.
    ``provenance`` is what it was built from, for the reader; it is not part of the hash. A client
    without a test row is allowed: its personal metrics are masked (``clients_without_test``).
    ``unseen`` clients never train; they hold rows like the others. ``public``: rows that no client
    has, and whose labels nobody has.
    """

    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    labels: Ints
    train: ClientRows
    validation: ClientRows
    test: ClientRows
    global_validation: Ints
    global_test: Ints
    domains: tuple[str, ...]
    domain_ids: Ints
    unseen: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    public: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_clients(self) -> int:
        return len(self.train.offsets) - 1

    @property
    def num_examples(self) -> Ints:
        """Training rows per client [num_clients]: its weight."""
        return self.train.counts

    @property
    def clients_without_test(self) -> Ints:
        return np.flatnonzero(self.test.counts == 0)

    def shard(self, client: int) -> Shard:
        """Views of one client's rows. IndexError outside 0..num_clients - 1."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} is not in 0..{self.num_clients - 1}")
        return Shard(self.train[client], self.validation[client], self.test[client])

    def part(self, name: Part) -> ClientRows:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def histogram(self, part: Part = "train") -> Ints:
        """Rows per client and class, int64 [num_clients, C]."""
        held = self.part(part)
        labels = self.labels[held.rows]
        return count_labels(held.owners, labels, self.num_clients, len(self.classes))

    def domain_histogram(self, part: Part = "train") -> Ints:
        """Rows per client and domain, int64 [num_clients, D]."""
        held = self.part(part)
        domains = self.domain_ids[held.rows]
        return count_labels(held.owners, domains, self.num_clients, len(self.domains))

    @cached_property
    def hash(self) -> str:
        """Hash of the content, equal on every machine."""
        described = [self.fingerprint, self.classes, self.num_clients]
        header = json.dumps(described + [self.unseen.tolist()] * bool(len(self.unseen)))
        digest = hashlib.sha256(header.encode())
        held = [array for name in PARTS for array in vars(self.part(name)).values()]
        held += [self.public] * bool(len(self.public))
        for array in (*held, self.global_validation, self.global_test, self.labels):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def participants(self) -> Population:
        """The same with no training row at the unseen clients."""
        if not len(self.unseen):
            return self
        bare = np.empty(0, dtype=np.int64)
        rows = [bare if k in self.unseen else self.train[k] for k in range(self.num_clients)]
        return replace(self, train=ClientRows.of(rows))

    def pooled(self) -> Population:
        """One client that holds everything, for centralised training."""
        return replace(
            self,
            train=self.train.pooled(),
            validation=self.validation.pooled(),
            test=self.test.pooled(),
        )

    def check_dataset(self, dataset: Dataset) -> None:
        """DataError unless this population was built from this data."""
        if dataset.fingerprint != self.fingerprint:
            raise DataError(
                f"this population was built from data set {self.dataset!r} with fingerprint "
                f"{self.fingerprint[:12]}, but {dataset.name!r} has {dataset.fingerprint[:12]}: "
                "its rows would mean other images. Build the population anew from this data."
            )

    def save(self, path: Path) -> None:
        """One Parquet table of part, client (-1: the global sets), row, label and domain."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts: list[tuple[str, Ints, Ints]] = [
            *((name, self.part(name).owners, self.part(name).rows) for name in PARTS),
            ("global_validation", np.full(len(self.global_validation), -1), self.global_validation),
            ("global_test", np.full(len(self.global_test), -1), self.global_test),
            ("public", np.full(len(self.public), -1), self.public),
        ]
        sizes = [len(rows) for _, _, rows in parts]
        names = pa.array([name for name, _, _ in parts])
        rows = np.concatenate([rows for _, _, rows in parts])
        columns = {
            "part": pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(parts)), sizes), names),
            "client": np.concatenate([owners for _, owners, _ in parts]).astype(np.int32),
            "row": rows,
            "label": self.labels[rows].astype(np.int32),
            "domain": self.domain_ids[rows].astype(np.int32),
        }
        described = ("dataset", "fingerprint", "classes", "domains")
        header = {name: vars(self)[name] for name in described}
        header |= {"num_clients": self.num_clients, "num_rows": len(self.labels)}
        header |= {"unseen": self.unseen.tolist()}
        header |= {"provenance": dict(self.provenance), "hash": self.hash}
        metadata = {METADATA_KEY: json.dumps(header)}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Population:
        """Read what ``save`` wrote. DataError where the file is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            header = json.loads(table.schema.metadata[METADATA_KEY])
            population = _from_table(table, header)
        except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is not a readable population: {error!r}. Build it anew."
            ) from error
        if population.hash != header["hash"]:
            raise DataError(f"{path} is damaged: its rows do not match its hash. Build it anew.")
        return population


def _from_table(table: pa.Table, header: dict[str, Any]) -> Population:
    """A population from the table and header of ``Population.save``. Raises where they disagree."""
    names = table["part"].to_numpy()
    columns = ("client", "row", "label", "domain")
    owners, rows, *given = (table[name].to_numpy().astype(np.int64) for name in columns)
    labels, domain_ids = np.full((2, header["num_rows"]), -1, dtype=np.int64)
    labels[rows], domain_ids[rows] = given

    def held(part: str) -> ClientRows:
        mine = names == part
        counts = np.bincount(owners[mine], minlength=header["num_clients"])
        return ClientRows(np.cumsum([0, *counts.tolist()], dtype=np.int64), rows[mine])

    return Population(
        dataset=header["dataset"],
        fingerprint=header["fingerprint"],
        classes=tuple(header["classes"]),
        labels=labels,
        train=held("train"),
        validation=held("validation"),
        test=held("test"),
        global_validation=rows[names == "global_validation"],
        global_test=rows[names == "global_test"],
        domains=tuple(header["domains"]),
        domain_ids=domain_ids,
        unseen=np.array(header["unseen"], dtype=np.int64),
        public=rows[names == "public"],
        provenance=header["provenance"],
    )
