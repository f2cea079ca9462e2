"""Methods side by side, with references, spread over seeds, and a judgement of which is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_core.errors import ConfigError, did_you_mean
from orchestrator.compare.judging import VERDICT_COLUMNS, judge_scenario
from orchestrator.compare.lineup import Question, Row, Source, line_up
from orchestrator.compare.measurable import refuse_unmeasurable
from orchestrator.compare.outcomes import Outcome, outcomes_of
from orchestrator.run import Listener, run_experiments
from scenarios.statistics import over_seeds

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("scenario", "method", "kind")
SPREADS = (".std", ".low", ".high", ".num")
"""Ends of the summary's columns that belong to the column of the mean."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The outcome of a comparison, as DataFrames.

    runs: one row per run and seed. summary: one row per method, with mean, ``<metric>.std`` (of the
    sample), the bounds of the 95 % interval of the mean, ``.low`` and ``.high``, and in how many
    seeds there is a value, ``.num``. differences: the leading method minus each other one. curves:
    the asked metric over the bytes sent so far. What a method lacks is NaN. verdict: one sentence
    per scenario.
    """

    question: Question
    runs: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    curves: pd.DataFrame
    verdict: str

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(self.summary["scenario"]))


def compare(
    sources: Sequence[Source],
    question: Question | None = None,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Run what is missing of a comparison, and say what it shows. Finished runs are not repeated.

    Raises what ``run_experiments`` raises, and ConfigError for a metric that no method has.
    """
    question = question or Question()
    return compare_rows(line_up(sources, question, overrides), question)


def compare_rows(
    rows: Sequence[Row], question: Question, listen: Listener | None = None
) -> Comparison:
    """The same for rows that are lined up already."""
    refuse_unmeasurable(rows, question.metric)
    configs = [config for row in rows for config in row.configs.values()]
    run_experiments(configs, listen=listen)
    outcomes = outcomes_of(rows, question)
    _refuse_unknown_metric(outcomes, question.metric)
    return summarise(outcomes, question)


def summarise(outcomes: Sequence[Outcome], question: Question) -> Comparison:
    """Tables and verdict from outcomes; nothing is read or run."""
    import pandas as pd

    scenarios = dict.fromkeys(outcome.scenario for outcome in outcomes)
    judged = [
        judge_scenario([o for o in outcomes if o.scenario == scenario], question)
        for scenario in scenarios
    ]
    verdict = "\n".join(
        f"{scenario}: {found.verdict}" if len(scenarios) > 1 else found.verdict
        for scenario, found in zip(scenarios, judged, strict=True)
    )
    differences = [row for found in judged for row in found.differences]
    return Comparison(
        question,
        _runs(outcomes),
        _summary(outcomes),
        pd.DataFrame(differences, columns=list(VERDICT_COLUMNS)),
        _curves(outcomes),
        verdict,
    )


def _refuse_unknown_metric(outcomes: Sequence[Outcome], metric: str) -> None:
    known = {n for o in outcomes for n in o.metrics if n.startswith("eval/")}
    if metric not in known:
        raise ConfigError(
            f"metric = {metric!r} was measured for no method.{did_you_mean(metric, known)} The "
            "runs are kept: ask again with one of these, and nothing runs anew."
        )


# -- tables --------------------------------------------------------------------------------------


def _runs(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    import pandas as pd

    names = ("scenario", "method", "kind", "seed", "run")
    rows = [{name: vars(o)[name] for name in names} | dict(o.metrics) for o in outcomes]
    return pd.DataFrame(rows)


def _summary(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    import pandas as pd

    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(vars(outcome)[key] for key in KEYS), []).append(outcome)
    rows = []
    for key, members in groups.items():
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True)) | {"num_seeds": len(members)}
        for name in dict.fromkeys(name for member in members for name in member.metrics):
            spread = over_seeds([m.metrics[name] for m in members if name in m.metrics])
            row |= {name: spread.mean, f"{name}.std": spread.std}
            row |= {f"{name}.low": spread.low, f"{name}.high": spread.high}
            row[f"{name}.num"] = spread.num_seeds
        rows.append(row)
    return pd.DataFrame(rows)


def _curves(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (o.scenario, o.method, o.seed, position, num_bytes, value)
        for o in outcomes
        for position, (num_bytes, value) in enumerate(zip(o.num_bytes, o.values, strict=True))
        if value is not None
    ]
    return pd.DataFrame(rows, columns=["scenario", "method", "seed", "round", "bytes", "value"])
