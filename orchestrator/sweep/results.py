"""What a sweep has produced: one row per trial, and means over seeds by method and cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoint import RunStore
from orchestrator.results import Result
from orchestrator.sweep.agenda import Agenda, Choice
from orchestrator.sweep.config import label
from orchestrator.sweep.design import MEGABYTES, Design

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.sweep.run import Ended


@dataclass(frozen=True)
class SweepResult:
    """Every trial's end. choices: what tuning came to, by group; lost: why a group had no tests.

    not_mirrored: why the copy of a run, or of the sweep, lacks something, by its folder's name.
    """

    folder: Path
    axes: Sequence[str]
    ended: Sequence[Ended]
    choices: Mapping[str, Choice]
    lost: Mapping[str, str]
    not_mirrored: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def collect(
        cls, design: Design, agenda: Agenda, ended: Sequence[Ended], store: RunStore
    ) -> SweepResult:
        """In the order of methods and cells, whichever trial ended first."""
        groups = {group.key: i for i, group in enumerate(design.groups)}
        cells = {repr(design.labels(cell)): i for i, cell in enumerate(design.cells)}
        ordered = sorted(
            ended,
            key=lambda e: (
                groups[e.trial.group],
                e.trial.stage == "test",
                cells[repr(e.trial.cell)],
                e.trial.config.seed,
                e.trial.key,
            ),
        )
        axes = [n for n in design.sweep.axes if any(n in e.trial.cell for e in ended)]
        budgets = {e.trial.cell[MEGABYTES] for e in ended if MEGABYTES in e.trial.cell}
        if MEGABYTES not in axes and len(budgets) > 1:  # those that are a run each
            axes.append(MEGABYTES)
        return cls(store.folder, axes, ordered, agenda.choices, agenda.lost)

    @property
    def failed(self) -> list[Ended]:
        return [e for e in self.ended if e.status == "failed"]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: method, axes, seed, how it ended, its run, and its ``summary``."""
        import pandas as pd

        rows = []
        for ended in self.ended:
            trial = ended.trial
            row: dict[str, Any] = {"method": trial.method, "stage": trial.stage}
            row |= {name: trial.cell.get(name, "") for name in self.axes}
            row |= {name: label(value) for name, value in trial.tuned.items()}
            row |= {"seed": trial.config.seed, "status": ended.status, "run": ended.run.name}
            records = RunStore(ended.run).records()
            row["rounds"] = len(records) - 1 if records else 0
            rows.append({**row, **(Result(ended.run, records).summary if records else {})})
        return pd.DataFrame(rows)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Test trials only: mean, std (ddof 1) and count of each metric over seeds."""
        import pandas as pd

        table = self.trials
        if table.empty:
            return pd.DataFrame()
        table = table[(table["stage"] == "test") & (table["status"] != "failed")]
        keys = ["method", *self.axes]
        metrics = [c for c in table.columns if "/" in c or c == "rounds"]
        grouped = table.groupby(keys, sort=False)[metrics]
        parts = {"mean": grouped.mean(), "std": grouped.std(), "count": grouped.count()}
        return pd.concat(parts, axis=1)

    def write(self) -> None:
        """``trials.csv`` and ``summary.csv`` in the sweep's folder."""
        store = RunStore(self.folder)
        store.write_text("trials.csv", self.trials.to_csv(index=False))
        flat = self.summary.copy()
        if not flat.empty:
            flat.columns = [" ".join(reversed(column)) for column in flat.columns.to_flat_index()]
            store.write_text("summary.csv", flat.sort_index(axis=1).to_csv())
