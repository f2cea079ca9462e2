"""What runs have computed and told MLflow, without clocks and memory, to be compared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import RoundRecord, RunStore
from orchestrator.results import MEASURED


@dataclass(frozen=True)
class Outcome:
    """Runs under one folder, in the order of their names.

    rounds: of each run all committed rounds; points: of each run all that MLflow has (name, step,
    value); seconds: between the first and the last round that was committed.
    """

    rounds: list[list[dict[str, Any]]]
    points: list[list[tuple[Any, ...]]]
    seconds: float

    def difference(self, other: Outcome) -> str:
        """The first thing that differs; empty where nothing does."""
        if len(self.rounds) != len(other.rounds):
            return f"{len(self.rounds)} finished runs instead of {len(other.rounds)}"
        for mine, theirs in zip(self.rounds, other.rounds, strict=True):
            if len(mine) != len(theirs):
                return f"{len(mine)} rounds instead of {len(theirs)}"
            for one, two in zip(mine, theirs, strict=True):
                if wrong := [name for name in two if one[name] != two[name]]:
                    return f"round {two['round']}: {', '.join(wrong)} differ"
        if self.points != other.points:
            return f"MLflow has other points ({sum(map(len, self.points))})"
        return ""


def outcome(folder: Path, database: Path) -> Outcome:
    """Of the finished runs under ``folder``, which is also the name of their MLflow experiment."""
    runs = sorted(path.parent for path in folder.glob("*/DONE"))
    records = [RunStore(run).records() for run in runs]
    times = [record.time_ms for run in records for record in run] or [0]
    with closing(sqlite3.connect(database)) as connection:
        points = [_points(connection, folder.name, run.name) for run in runs]
    return Outcome(
        [[_without_clocks(record) for record in run] for run in records],
        points,
        (max(times) - min(times)) / 1000,
    )


def _without_clocks(record: RoundRecord) -> dict[str, Any]:
    """``sha256`` in it covers the server's tensors and the private states, bit for bit."""
    kept = {n: v for n, v in record.metrics.items() if not n.startswith(MEASURED)}
    return {n: v for n, v in vars(record).items() if n != "time_ms"} | {"metrics": kept}


def _points(connection: sqlite3.Connection, experiment: str, run: str) -> list[tuple[Any, ...]]:
    """All points of one run, doubled ones too; the last entry is the run's status."""
    query = """
        SELECT runs.status, metrics.key, metrics.step, metrics.value, metrics.is_nan
        FROM runs JOIN metrics USING (run_uuid) JOIN experiments USING (experiment_id)
        JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'fedarena.run'
        WHERE experiments.name = ? AND tags.value = ? AND runs.lifecycle_stage = 'active'
        ORDER BY 1, 2, 3, 4, metrics.timestamp
    """
    rows = connection.execute(query, (experiment, run)).fetchall()
    return [row for row in rows if not row[1].startswith(MEASURED)]
