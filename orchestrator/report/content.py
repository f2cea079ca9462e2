"""What a report says: the decisions, and every table, from runs that have ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fl_core.errors import ConfigError, did_you_mean
from orchestrator.compare.comparison import Comparison, summarise
from orchestrator.compare.judging import are_same_clients
from orchestrator.compare.lineup import Question, Row
from orchestrator.compare.outcomes import Outcome, outcomes_of
from orchestrator.report import result_tables
from orchestrator.report.areas import area_table
from orchestrator.report.ask import Ask
from orchestrator.report.curves import Curves, read_curves
from orchestrator.report.decisions import (
    Cheapest,
    Choice,
    MethodCurves,
    cheapest,
    choose,
    how_sure,
    sentence,
)
from orchestrator.report.environment import environment_cautions
from orchestrator.report.gather import Material
from orchestrator.report.references import Reference, best_reference
from orchestrator.report.tables import (
    METHOD,
    RUNS,
    SCENARIO,
    Cell,
    Column,
    Table,
    cell,
    percent,
)
from scenarios.scored import TITLES


@dataclass(frozen=True, eq=False)
class Answer:
    """Of one scenario: a choice per budget, and the cheapest way to the target."""

    scenario: str
    choices: Sequence[Choice]
    cheapest: Cheapest
    reference: Reference | None

    def sentences(self, what: str) -> list[str]:
        return [sentence(choice, what) for choice in self.choices]


@dataclass(frozen=True, eq=False)
class Report:
    """answers: by scenario. tables: in the order in which they are read. cautions: what limits
    the conclusions. left_out: runs that are not in it, and why.
    """

    ask: Ask
    answers: Sequence[Answer]
    tables: Sequence[Table]
    cautions: Sequence[str]
    left_out: Mapping[str, str]
    rows: Sequence[Row]
    curves: Curves
    comparison: Comparison

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)


def make_report(material: Material, ask: Ask) -> Report:
    """ConfigError where no run has the metric."""
    num_seeds = max(len(row.configs) for row in material.rows)
    question = Question(num_seeds, vary_data=material.vary_data, metric=ask.metric)
    outcomes = outcomes_of(material.rows, question)
    _refuse_unknown(outcomes, ask.metric)
    ask = replace(ask, target=_target(outcomes, ask))
    comparison = summarise(outcomes, question)
    curves = read_curves(material.rows, ask.metric)
    answers = [
        _answer(scenario, material, curves, outcomes, ask) for scenario in comparison.scenarios
    ]
    by_scenario = [(s, methods_of(material.rows, curves, s)) for s in comparison.scenarios]
    tables = [
        _budget_table(answers, ask),
        _target_table(answers, ask),
        area_table(by_scenario, ask),
        *result_tables.all_tables(material.rows, outcomes, comparison, curves),
    ]
    cautions = [*_cautions(material, answers), *environment_cautions(material.rows)]
    return Report(
        ask, answers, tables, cautions, material.left_out, material.rows, curves, comparison
    )


def methods_of(rows: Sequence[Row], curves: Curves, scenario: str) -> MethodCurves:
    """The curves of a scenario's methods, without references."""
    methods = [row for row in rows if row.scenario == scenario and row.kind == "method"]
    return {row.method: curves[scenario, row.method] for row in methods}


def _answer(
    scenario: str, material: Material, curves: Curves, outcomes: Sequence[Outcome], ask: Ask
) -> Answer:
    own = methods_of(material.rows, curves, scenario)
    measured = {
        method: by_seed
        for method, by_seed in own.items()
        if all(any(v is not None for v in curve.values[1:]) for curve in by_seed.values())
    }
    reference = best_reference(outcomes, scenario, ask.metric)
    same = _are_same_clients(scenario, material, outcomes, ask.metric)
    choices = [choose(measured, b, reference, same_clients=same) for b in sorted(ask.budgets)]
    assert ask.target is not None  # make_report has put one in
    return Answer(scenario, choices, cheapest(measured, ask.target), reference)


def _are_same_clients(
    scenario: str, material: Material, outcomes: Sequence[Outcome], metric: str
) -> bool:
    """Whether client by client is compared, over all seeds; else each seed's values alone."""
    own = [o for o in outcomes if o.scenario == scenario and o.kind == "method"]
    has_clients = all(metric in o.by_client for o in own)
    return has_clients and are_same_clients(own, material.vary_data)


def _target(outcomes: Sequence[Outcome], ask: Ask) -> float:
    """As asked, or the whole percent that every method still reaches with every seed."""
    if ask.target is not None:
        return ask.target
    own: dict[tuple[str, str], list[float]] = {}
    for o in outcomes:
        if ask.metric in o.metrics and o.kind == "method":
            own.setdefault((o.scenario, o.method), []).append(o.metrics[ask.metric])
    lowest = min((min(values) for values in own.values()), default=0.0)
    whole = math.floor(100 * lowest + 1e-9) / 100  # 100 times 0.29 lies below 29
    return max(0.0, min(lowest, whole))


def _refuse_unknown(outcomes: Sequence[Outcome], metric: str) -> None:
    known = {n for o in outcomes for n in o.metrics if n.startswith("eval/")}
    if metric not in known:
        raise ConfigError(
            f"metric = {metric!r} was measured in no run.{did_you_mean(metric, known)} Ask for one "
            f"of: {', '.join(sorted(n for n in known if n.endswith(tuple(TITLES))))}."
        )


# -- the decisions as tables ---------------------------------------------------------------------


def _budget_table(answers: Sequence[Answer], ask: Ask) -> Table:
    columns = [
        SCENARIO,
        Column("budget_mb", "budget", "MB per client", None),
        Column("method", "take"),
        percent("value", ask.word),
        percent("low", "95 % from"),
        percent("high", "to"),
        Column("second", "next best"),
        Column("gain", "lead", "points", 1),
        Column("how_sure", "how sure"),
        Column("reference", "best that sends nothing"),
        percent("reference_value", f"its {ask.word}"),
        Column("seeds", "seeds"),
        RUNS,
    ]
    rows = [_budget_row(answer.scenario, choice) for answer in answers for choice in answer.choices]
    note = (
        "A budget is what the busiest client may send and receive, headers included (1 MB = 10^6 "
        "bytes). Each run counts with its last measured round within it, over the seeds that all "
        "methods which can send a round have."
    )
    return Table("budgets", "Which method at which budget", columns, rows, note)


def _budget_row(scenario: str, choice: Choice) -> list[Cell]:
    free = choice.reference
    take = "no method affords a round" if choice.method is None else choice.method
    if choice.method is not None and not choice.is_worth_it:
        take = f"none pays off (best: {choice.method})"
    gain = None if choice.gain is None else 100 * choice.gain
    return [
        scenario,
        choice.megabytes,
        take,
        cell(choice.value, 100),
        _bounded(choice.low),
        _bounded(choice.high),
        choice.second,
        gain,
        how_sure(choice.verdict) if choice.method else None,
        None if free is None else free.name,
        None if free is None else 100 * free.value,
        choice.num_seeds or None,
        ", ".join(choice.runs) or None,
    ]


def _target_table(answers: Sequence[Answer], ask: Ask) -> Table:
    columns = [
        SCENARIO,
        percent("target", f"target {ask.word}"),
        METHOD,
        Column("megabytes", "price", "MB per client", None),
        Column("low", "95 % from", "MB", None),
        Column("high", "to", "MB", None),
        Column("how_sure", "how sure"),
        Column("seeds", "seeds"),
        RUNS,
    ]
    rows: list[list[Cell]] = []
    for answer in answers:
        found = answer.cheapest
        method = "none reaches it with every seed" if found.method is None else found.method
        low = None if found.low is None else max(0.0, found.low)
        rows.append(
            [
                answer.scenario,
                100 * found.target,
                method,
                cell(found.megabytes),
                low,
                found.high,
                how_sure(found.verdict) if found.method else None,
                found.num_seeds or None,
                ", ".join(found.runs) or None,
            ]
        )
    note = (
        "The cheapest method that reaches the target with every seed: megabytes of the busiest "
        "client until the first measured round that is there. Read off the test curve: it "
        "describes the runs, and is no rule to stop by."
    )
    return Table("targets", "The cheapest way to a target", columns, rows, note)


def _methods(material: Material, scenario: str) -> list[Row]:
    return [row for row in material.rows if row.scenario == scenario and row.kind == "method"]


def _bounded(share: float | None) -> float | None:
    return None if share is None else 100 * min(1.0, max(0.0, share))


# -- what limits the conclusions -----------------------------------------------------------------


def _cautions(material: Material, answers: Sequence[Answer]) -> list[str]:
    found = []
    fewest = min(len(row.configs) for row in material.rows)
    if fewest < 3:
        found.append(
            f"Some methods have {fewest} seed{'s' if fewest > 1 else ''}: too few to tell a "
            "difference from chance. Run three or more, better five."
        )
    found += [
        f"{answer.scenario}: methods have different seeds, and decisions are over those that all "
        "have. Run what is missing."
        for answer in answers
        if len({tuple(sorted(r.configs)) for r in _methods(material, answer.scenario)}) > 1
    ]
    early = [(a, c) for a in answers for c in a.choices if c.method and c.end > c.megabytes]
    falling = [
        config
        for config in material.configs
        if config.training.schedule != "constant" and config.training.schedule_span == "run"
    ]
    if early and falling:
        found.append(
            "Values below a run's own end are read off its curve while its learning rate was still "
            "high (training.schedule over the whole run). A run planned for that budget may do "
            "better: set communication.budget, or training.schedule_span=round."
        )
    for answer in answers:
        short = [c for c in answer.choices if c.method and c.end < 0.9 * c.megabytes]
        found += [
            f"{answer.scenario}, {c.megabytes:g} MB: the runs of {c.method} end at {c.end:.3g} MB "
            "per client, so what more rounds would bring is not known."
            for c in short
        ]
    if all(row.kind == "reference" for row in material.rows):
        found.append("No run communicates, so there is no method to choose: only references.")
    return found
