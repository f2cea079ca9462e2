"""What runs told of their clients' examples, where their learner adds noise."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.compare.lineup import Row
from orchestrator.experiment import run_folder
from orchestrator.privacy import EPSILON, NEIGHBOURS, mechanism_of
from orchestrator.report.tables import METHOD, RUNS, SCENARIO, Cell, Column, Table
from orchestrator.results import Result

NAME = "privacy"


def privacy_tables(rows: Sequence[Row]) -> list[Table]:
    """One table, or none where no method promises anything."""
    told = [line for row in rows if (line := _line(row)) is not None]
    if not told:
        return []
    columns = [
        SCENARIO,
        METHOD,
        Column("epsilon", "epsilon"),
        Column("delta", "delta"),
        Column("noise", "noise multiplier"),
        Column("clip", "clip"),
        Column("batches", "batches"),
        Column("neighbours", "neighbours differ in"),
        Column("why", "why n/a"),
        RUNS,
    ]
    note = (
        "Epsilon: spent over the whole run, of the client that has spent most; the largest over "
        "seeds. Counted by Rényi divergences of the Gaussian mechanism; with Poisson sampling of "
        "batches with its amplification. Noise multiplier: of all that a step releases together, "
        "over its sensitivity. Clip: the L2 norm of an example's gradient. What the tables tell "
        "of losses and scores is not part of it."
    )
    return [Table(NAME, "Privacy", columns, told, note)]


def _line(row: Row) -> list[Cell] | None:
    config = next(iter(row.configs.values()))
    mechanism = mechanism_of(config)
    if mechanism is None:
        return None
    results = [Result.load(run_folder(own)) for own in row.configs.values()]
    spent = [r.summary[EPSILON] for r in results if EPSILON in r.summary]
    fault = mechanism.fault or ("" if len(spent) == len(results) else "not recorded by every run")
    poisson = config.training.sampling == "poisson"
    return [
        row.scenario,
        row.method,
        None if fault else max(spent),
        f"{mechanism.delta:g}",
        mechanism.noise_multiplier,
        mechanism.clip,
        "Poisson sampled" if poisson else "cut from permutations",
        None if fault else NEIGHBOURS,
        fault or None,
        ", ".join(result.name for result in results),
    ]
