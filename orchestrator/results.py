"""What a run has produced, read from its folder: rounds as a table, parameters, the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fl_core.errors import StateError
from fl_core.types import Params
from orchestrator.checkpoint import Counts, RoundRecord, RunStore
from orchestrator.loading import load_config
from scenarios.evaluate import ValidationScore, choose_round
from scenarios.scored import TITLES

if TYPE_CHECKING:
    import pandas as pd


MEASURED = ("time/", "memory/")
"""How the names of metrics begin in which two equal runs may differ."""

LEFT = ("comm/budget_left_bytes", "time/budget_left_s")
"""Metrics of which the last value counts, and not the sum over rounds."""


@dataclass(frozen=True)
class Result:
    """A run's committed rounds. Nothing is held but its folder and its records."""

    folder: Path
    records: Sequence[RoundRecord]

    @classmethod
    def load(cls, folder: Path) -> Result:
        """StateError where the folder holds no committed round."""
        records = RunStore(folder).records()
        if not records:
            raise StateError(f"{folder} holds no committed round. Start it with `fedarena run`.")
        return cls(folder, records)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per committed round, indexed by the number of rounds done; metrics as columns.

        ``comm/total_mb`` is what was sent so far in both directions (megabytes of 10^6 bytes).
        """
        import pandas as pd

        table = pd.DataFrame([record.metrics for record in self.records])
        table.index = pd.Index([record.round + 1 for record in self.records], name="round")
        sent = table["comm/up_bytes"] + table["comm/down_bytes"]
        table["comm/total_mb"] = sent.cumsum() / 1e6
        return table

    @property
    def last(self) -> RoundRecord:
        """The last committed round: the one that is reported."""
        return self.records[-1]

    @property
    def selected(self) -> RoundRecord | None:
        """The round with the best validation score, if it was measured."""
        by_round = {
            r.round: ValidationScore(r.validation) for r in self.records if r.validation is not None
        }
        best = choose_round(by_round)
        return None if best is None else next(r for r in self.records if r.round == best)

    @cached_property
    def confusion(self) -> Counts | None:
        """Test rows by true and predicted class [C, C]: of the shared model, after the last round.

        None where there is no shared model, and with more than 256 classes.
        """
        return self.confusion_after(self.last)

    def confusion_after(self, record: RoundRecord) -> Counts | None:
        """The same of another round: kept for the last few and the chosen one, None for others."""
        return RunStore(self.folder).confusion(record)

    @cached_property
    def shared_model(self) -> Params | None:
        """The final parameters, empty where a learner trains nothing; None where there is none."""
        state = RunStore(self.folder).server_state(self.last)
        if state is None:
            raise StateError(f"{self.folder}: the tensors of round {self.last.round} are gone.")
        rule = load_config(self.folder / "config.yaml").federation
        return rule.shared_model(state)  # without what the rule keeps for itself

    @property
    def parameters(self) -> Params:
        """The final shared tensors; empty where a method shares none."""
        return self.shared_model or {}

    @property
    def summary(self) -> dict[str, float]:
        """Scores of the last round and of the chosen one; bytes, seconds and epsilon of the run."""
        last = ("eval/", "train/", "privacy/")
        summary = {n: v for n, v in self.last.metrics.items() if n.startswith(last)}
        for record in self.records:
            for name, value in record.metrics.items():
                if name in LEFT:
                    summary[name] = value
                elif name.startswith("memory/"):
                    summary[name] = max(value, summary.get(name, 0.0))
                elif name.startswith("comm/") or name == "time/link_s":
                    summary[name] = summary.get(name, 0.0) + value
                elif name.startswith("time/"):
                    summary["time/run_s"] = summary.get("time/run_s", 0.0) + value
        if self.selected is not None:
            chosen = self.selected.metrics
            summary["selected/round"] = float(self.selected.round + 1)
            names = (f"eval/{part}/{of}" for part in ("global", "personal") for of in TITLES)
            for name in names:
                if name in chosen:
                    summary[name.replace("eval/", "selected/")] = chosen[name]
        return summary
