"""``fedarena data show``: who holds which data, as a table, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from scenarios.population import Population

MAX_CLIENT_ROWS = 20
"""With more clients the table shows quantiles."""

QUANTILES = {"smallest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "largest": 1.0}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heterogeneity:
    """How much the clients' training data differ.

    ``label_distance`` and ``domain_distance``: mean over clients of the total-variation distance
    (from 0, all alike, to below 1) between a client's histogram and that of all training rows.
    ``size_variation``: the standard deviation of the sizes over their mean; ``size_gini``: their
    Gini coefficient, 0 where all are equal.
    """

    label_distance: float
    domain_distance: float
    size_variation: float
    size_gini: float


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option(
    "--picture", "picture_file", type=click.Path(path_type=Path), help="Write a PNG picture."
)
@click.option(
    "--save",
    "manifest",
    type=click.Path(path_type=Path),
    help="Write the population as a manifest.",
)
def show(
    source: Path, overrides: tuple[str, ...], picture_file: Path | None, manifest: Path | None
) -> None:
    """Show which client holds how much of what.

    SOURCE is an experiment's YAML file, with overrides such as scenario.num_clients=20, or the
    population.parquet of a run.
    """
    from rich.console import Console

    population = read_population(source, overrides)
    console = Console()
    console.print(client_table(population))
    for line in summary_lines(population):
        console.print(line, highlight=False, soft_wrap=True)
    if picture_file is not None:
        from scenarios.picture import picture

        picture(population).savefig(_prepared(picture_file), dpi=120, format="png")
        console.print(f"picture: {picture_file}", highlight=False, soft_wrap=True)
    if manifest is not None:
        population.save(_prepared(manifest))
        console.print(f"manifest: {manifest}", highlight=False, soft_wrap=True)


def read_population(source: Path, overrides: Sequence[str] = ()) -> Population:
    """The population of an experiment's YAML file, or of a manifest (which takes no overrides)."""
    from scenarios.population import Population
    from scenarios.scenario import build_population

    if source.suffix == ".parquet":
        if overrides:
            raise DataError(
                f"{source} is a saved population, so nothing can be overridden: got "
                f"{' '.join(overrides)}. Give the experiment's YAML file instead."
            )
        return Population.load(source)
    from orchestrator.loading import load_config
    from scenarios.data.catalogue import load_dataset

    config = load_config(source, overrides)
    hashes = config.store.expanduser() / "hashes"
    return build_population(config.scenario, load_dataset(config.scenario.dataset, hashes))


def measure_heterogeneity(population: Population) -> Heterogeneity:
    sizes = population.num_examples.astype(np.float64)
    ranks = np.arange(1, len(sizes) + 1)
    gini = 2 * (ranks * np.sort(sizes)).sum() / (len(sizes) * sizes.sum()) - 1 - 1 / len(sizes)
    return Heterogeneity(
        label_distance=_mean_distance(population.histogram()),
        domain_distance=_mean_distance(population.domain_histogram()),
        size_variation=float(sizes.std() / sizes.mean()),
        size_gini=float(max(gini, 0.0)),
    )


def client_table(population: Population) -> Table:
    """One line per client, or quantiles over clients where there are many."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    columns = _columns(population)
    many = population.num_clients > MAX_CLIENT_ROWS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"of {population.num_clients:,} clients" if many else "client", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    if many:
        for name, level in QUANTILES.items():
            values = (float(np.quantile(column, level)) for column in columns.values())
            table.add_row(name, *map(_cell, columns, values))
        means = (float(column.mean()) for column in columns.values())
        table.add_row("mean", *(_cell(n, v, digits=1) for n, v in zip(columns, means, strict=True)))
        return table
    names = population.provenance.get("clients") or range(population.num_clients)
    for client, name in enumerate(names):
        table.add_row(escape(str(name)), *(_cell(n, float(c[client])) for n, c in columns.items()))
    return table


def summary_lines(population: Population) -> list[str]:
    """What the table adds up to, how heterogeneous it is, and its hash."""
    found = measure_heterogeneity(population)
    unheld = int((population.histogram().sum(axis=0) == 0).sum())
    bare = len(population.clients_without_test)
    lines = [
        f"{population.dataset}: {population.num_clients:,} clients, {len(population.classes):,} "
        f"classes, {len(population.domains):,} domains; rows: {len(population.train.rows):,} to "
        f"train on, {len(population.global_validation):,} to validate, "
        f"{len(population.global_test):,} to test",
        f"distance of a client's labels to all: {found.label_distance:.3f}"
        + (f", of its domains: {found.domain_distance:.3f}" if len(population.domains) > 1 else "")
        + f" (mean total variation, 0 to 1); sizes: variation {found.size_variation:.2f}, "
        f"Gini {found.size_gini:.2f}",
    ]
    lines += [f"{unheld:,} classes are held by no client"] if unheld else []
    public = len(population.public)
    lines += (
        [f"{public:,} rows are public: no client has them, and nobody a label"] if public else []
    )
    lines += [f"{bare:,} clients have no test row"] if bare else []
    lines += [f"hash {population.hash}"]
    return lines


def _columns(population: Population) -> dict[str, Floats]:
    """Each column of the table over clients [num_clients]."""
    held, domains = population.histogram(), population.domain_histogram()
    counts = {
        "train": population.train.counts,
        "val": population.validation.counts,
        "test": population.test.counts,
        "classes": np.count_nonzero(held, axis=1),
        "domains": np.count_nonzero(domains, axis=1),
    }
    columns: dict[str, Floats] = {name: count.astype(np.float64) for name, count in counts.items()}
    columns["largest class %"] = 100 * held.max(axis=1) / np.maximum(held.sum(axis=1), 1)
    return columns


def _cell(column: str, value: float, digits: int = 0) -> str:
    digits = 1 if column == "largest class %" else digits
    return f"{value:,.{digits}f}"


def _mean_distance(counts: Ints) -> float:
    """Mean total-variation distance of the rows [num_clients, C] to their sum, as distributions."""
    overall = counts.sum(axis=0) / counts.sum()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(np.abs(shares - overall).sum(axis=1).mean() / 2)


def _prepared(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
