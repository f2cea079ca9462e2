"""Parquet files of the packaged data sets: columns, metadata, and the split by concept."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scenarios.data.packaged.recipe.pictures import content_hash, decode
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.sources import source

METADATA_KEY = b"fedarena"


@dataclass(frozen=True)
class Description:
    """What a data set says about itself, stored as JSON in the file."""

    name: str
    description: str
    templates: Sequence[str]
    sources: Sequence[str]


@dataclass(frozen=True)
class ImageRow:
    image: bytes
    label: str
    domain: str
    concept: str
    split: str
    name_aligned: bool


def split_by_concept(labels: dict[str, str], train_share: float, purpose: str) -> dict[str, str]:
    """`train` or `test` for each concept, in about that share within each label."""
    groups: dict[str, list[str]] = defaultdict(list)
    for concept in sorted(labels):
        groups[labels[concept]].append(concept)
    split = {}
    for label, concepts in groups.items():
        order = numpy_generator(purpose, label).permutation(len(concepts))
        num_train = round(train_share * len(concepts))
        split |= {
            concepts[place]: "train" if rank < num_train else "test"
            for rank, place in enumerate(order)
        }
    return split


def _metadata(description: Description, columns: dict[str, list[Any]]) -> dict[bytes, bytes]:
    items = [source(name) for name in description.sources]
    content = {
        "name": description.name,
        "description": description.description,
        "templates": list(description.templates),
        "classes": sorted(set(columns["label"])),
        "domains": sorted(set(columns["domain"])) if "domain" in columns else [],
        "licences": sorted({item.licence for item in items}),
        "attribution": [
            f"{item.name} {item.version}: {item.holder}, {item.upstream} ({item.licence})"
            for item in items
        ],
        "sources": [
            {"name": item.name, "version": item.version, "registry": item.registry}
            for item in items
        ],
    }
    return {METADATA_KEY: json.dumps(content, ensure_ascii=False).encode()}


def _write(path: Path, description: Description, columns: dict[str, list[Any]]) -> None:
    table = pa.table(columns).replace_schema_metadata(_metadata(description, columns))
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=2000)


def write_images(path: Path, description: Description, rows: Iterable[ImageRow]) -> None:
    """Rows in a fixed order: by split, label, concept, domain."""
    ordered = sorted(
        rows, key=lambda row: (row.split != "train", row.label, row.concept, row.domain)
    )
    records = [asdict(row) | {"sha256": content_hash(decode(row.image))} for row in ordered]
    _write(path, description, {key: [record[key] for record in records] for key in records[0]})


def write_texts(path: Path, description: Description, records: Sequence[dict[str, str]]) -> None:
    """Rows with text, label, family, task, split and sha256, in the order given."""
    _write(path, description, {key: [record[key] for record in records] for key in records[0]})
