"""Which classes the leading method's shared model takes for which others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.experiment import run_folder
from orchestrator.report.content import Report
from orchestrator.results import Result
from scenarios.population import Population

MOST_CLASSES = 50
"""With more, neither names nor cells of a picture can be read."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts [C, C]: test rows by true class and predicted class, all runs of a method together."""

    method: str
    classes: Sequence[str]
    counts: npt.NDArray[np.int64]
    num_runs: int

    @property
    def mistakes(self) -> list[str]:
        """The most frequent mistakes in words, the first three."""
        wrong = self.counts - np.diag(np.diagonal(self.counts))
        size = len(self.classes)
        order = np.argsort(-wrong, axis=None, kind="stable")[:3]
        pairs = [divmod(int(cell), size) for cell in order]
        totals = self.counts.sum(axis=1)
        return [
            f"{self.classes[true]} taken for {self.classes[said]} ({wrong[true, said]} of "
            f"{totals[true]})"
            for true, said in pairs
            if wrong[true, said]
        ]


def leading_confusion(report: Report, scenario: str) -> Confusion | None:
    """Of the method with the best mean, last round; None where it has no shared model, where it
    was not recorded, and where there are more than 50 classes.
    """
    method = _leader(report, scenario)
    found: list[tuple[tuple[str, ...], npt.NDArray[np.int64]]] = []
    for row in report.rows:
        if (row.scenario, row.method) == (scenario, method):
            for config in row.configs.values():
                folder = run_folder(config)
                counts = Result.load(folder).confusion
                if counts is not None and len(counts) <= MOST_CLASSES:
                    classes = Population.load(folder / "population.parquet").classes
                    found.append((tuple(classes), counts))
    if method is None or not found:
        return None
    classes = found[0][0]
    same = [counts for own, counts in found if own == classes]
    return Confusion(method, classes, np.sum(same, axis=0), len(same))


def _leader(report: Report, scenario: str) -> str | None:
    summary, metric = report.comparison.summary, report.ask.metric
    own = summary[(summary["scenario"] == scenario) & (summary["kind"] == "method")]
    if metric not in own or not own[metric].notna().any():
        return None
    return str(own.sort_values(metric, ascending=False)["method"].iloc[0])
