"""A population: which client holds which training, validation and test rows. It is the manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import DataError
from fl_core.seeds import derive
from scenarios.carve import Cut, carve
from scenarios.data.dataset import Dataset
from scenarios.partition import Dirichlet, Partition, by_owner, share_out, split

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
METADATA_KEY = b"fedarena"


@dataclass(frozen=True)
class Scenario:
    """Who has which data. ``seed`` draws the data only: training has a seed of its own.

    ``shots``: training rows per class over the whole federation; all rows where it is None.
    ``validation_fraction``: of the training split; with ``shots``, any value above 0 means
    min(shots, 4) rows per class. ``test_fraction`` counts only where the data name no test split.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    dataset: str = "emoji_coarse"
    num_clients: int = 10
    partition: Partition = field(default_factory=Dirichlet)
    shots: int | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_clients=">= 1",
            shots=">= 1",
            validation_fraction="from 0 to below 1",
            test_fraction="from 0 to below 1",
        )


class Shard(NamedTuple):
    """The rows of one client, each ascending int64."""

    train: Ints
    validation: Ints
    test: Ints


@dataclass(frozen=True, eq=False)
class ClientRows:
    """Rows by client: client k holds rows[offsets[k]:offsets[k + 1]]. offsets [num_clients + 1]."""

    offsets: Ints
    rows: Ints

    def __getitem__(self, client: int) -> Ints:
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    @property
    def counts(self) -> Ints:
        """Rows per client [num_clients]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Ints:
        """The client of each of ``rows``."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


@dataclass(frozen=True, eq=False)
class Population:
    """The rows of every client, and of the global sets. Equal content, equal ``hash``.

    ``labels`` int64 [N] over all rows of the data set, -1 where a row is not used.
    ``provenance`` is what it was built from, for the reader; it is not part of the hash. A client
    without a test row is allowed: its personal metrics are masked (``clients_without_test``).
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
        return count_labels(held.owners, self.labels[held.rows], self.num_clients, self.classes)

    @cached_property
    def hash(self) -> str:
        """Hash of the content, equal on every machine."""
        header = json.dumps([self.fingerprint, self.classes, self.num_clients])
        digest = hashlib.sha256(header.encode())
        held = [array for name in PARTS for array in vars(self.part(name)).values()]
        for array in (*held, self.global_validation, self.global_test, self.labels):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def pooled(self) -> Population:
        """One client that holds everything, for centralised training."""
        return replace(
            self,
            train=_pool(self.train),
            validation=_pool(self.validation),
            test=_pool(self.test),
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
        """Write one Parquet table (part, client, row, label; client -1 for the global sets)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts: list[tuple[str, Ints, Ints]] = [
            *((name, self.part(name).owners, self.part(name).rows) for name in PARTS),
            ("global_validation", np.full(len(self.global_validation), -1), self.global_validation),
            ("global_test", np.full(len(self.global_test), -1), self.global_test),
        ]
        sizes = [len(rows) for _, _, rows in parts]
        names = pa.array([name for name, _, _ in parts])
        rows = np.concatenate([rows for _, _, rows in parts])
        columns = {
            "part": pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(parts)), sizes), names),
            "client": np.concatenate([owners for _, owners, _ in parts]).astype(np.int32),
            "row": rows,
            "label": self.labels[rows].astype(np.int32),
        }
        header = {name: vars(self)[name] for name in ("dataset", "fingerprint", "classes")}
        header |= {"num_clients": self.num_clients, "num_rows": len(self.labels)}
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


def build_population(scenario: Scenario, dataset: Dataset) -> Population:
    """Deal the rows of ``dataset`` out to clients.

    The training rows are partitioned; validation and test rows follow, class by class, the shares
    that each client got of the training rows, so a client is tested on its own label distribution.
    DataError says why a request is impossible, and what would work.
    """
    cut = Cut(scenario.shots, scenario.validation_fraction, scenario.test_fraction, scenario.seed)
    rows, num_clients = carve(dataset, cut), scenario.num_clients
    labels = np.full(len(dataset), -1, dtype=np.int64)
    for used in (rows.train, rows.validation, rows.test):
        labels[used] = dataset.labels[used]
    shares = split(scenario.partition, labels[rows.train], num_clients, scenario.seed)
    train = _by_client([rows.train[share] for share in shares])
    held = count_labels(train.owners, labels[train.rows], num_clients, dataset.classes)

    def follow(further: Ints, part: Part) -> ClientRows:
        rng = np.random.default_rng(derive(scenario.seed, "population", "follow", part))
        owners = share_out(held, labels[further], rng)
        return _by_client([further[share] for share in by_owner(owners, num_clients)])

    population = Population(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        classes=dataset.classes,
        labels=labels,
        train=train,
        validation=follow(rows.validation, "validation"),
        test=follow(rows.test, "test"),
        global_validation=rows.validation,
        global_test=rows.test,
        provenance={"scenario": asdict(scenario)},
    )
    if len(population.clients_without_test):
        logger.info("%d clients have no test row", len(population.clients_without_test))
    return population


def count_labels(owners: Ints, labels: Ints, num_clients: int, classes: tuple[str, ...]) -> Ints:
    """Rows per client and class, int64 [num_clients, C], from the client and label of each row."""
    cells = np.bincount(owners * len(classes) + labels, minlength=num_clients * len(classes))
    return cells.reshape(num_clients, len(classes))


def _by_client(rows: list[Ints]) -> ClientRows:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return ClientRows(offsets, np.concatenate(rows))


def _pool(held: ClientRows) -> ClientRows:
    return _by_client([np.sort(held.rows)])


def _from_table(table: pa.Table, header: dict[str, Any]) -> Population:
    """A population from the table and header of ``Population.save``. Raises where they disagree."""
    names = table["part"].to_numpy()
    owners, rows, given = (
        table[name].to_numpy().astype(np.int64) for name in ("client", "row", "label")
    )
    labels = np.full(header["num_rows"], -1, dtype=np.int64)
    labels[rows] = given

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
        provenance=header["provenance"],
    )
