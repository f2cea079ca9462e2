"""Tables of results: by scenario, paired tests, per client, time by phase, runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.lineup import Row
from orchestrator.compare.outcomes import Outcome
from orchestrator.report.curves import Curve, Curves
from orchestrator.report.environment import environment_table
from orchestrator.report.privacy import privacy_tables
from orchestrator.report.tables import (
    METHOD,
    RUNS,
    SCENARIO,
    Cell,
    Column,
    Table,
    cell,
    number,
    percent,
)
from scenarios.scored import TITLES, Headline, headline_of, of_headline, own_metric

RESULTS = {
    "eval/personal/accuracy": percent("clients", "clients"),
    "eval/global/accuracy": percent("shared", "shared model"),
    "selected/personal/accuracy": percent("chosen", "clients, chosen round"),
    "eval/personal/worst_accuracy": percent("worst", "worst client"),
    "eval/personal/worst_tenth_accuracy": percent("worst_tenth", "worst 10 % of clients"),
    "eval/novel/accuracy": percent("novel", "new classes"),
    "worse_than_local_only": percent("below_alone", "clients worse than alone"),
    "worse_than_zero_shot": percent("below_zero_shot", "clients worse than zero-shot"),
}
"""Shares, by metric where that is accuracy; the first two with their spread."""

AMOUNTS = {
    "up_mb": Column("up_mb", "up, all clients", "MB"),
    "down_mb": Column("down_mb", "down, all clients", "MB"),
    "rounds": Column("rounds", "rounds", "", 0),
    "passes": Column("passes", "passes over the data", "", 2),
    "steps": Column("steps", "gradient steps", "", 0),
    "run_s": Column("run_s", "time", "s"),
}


def all_tables(
    rows: Sequence[Row], outcomes: Sequence[Outcome], comparison: Comparison, curves: Curves
) -> list[Table]:
    headline = headline_of(comparison.question.metric)
    return [
        summary_table(comparison),
        effort_table(outcomes, comparison, curves),
        tests_table(comparison),
        clients_table(outcomes, headline),
        cost_table(rows, curves),
        runs_table(outcomes, curves, headline),
        environment_table(rows),
        *privacy_tables(rows),
    ]


def summary_table(comparison: Comparison) -> Table:
    """One row per method or reference: means over seeds, of the last round."""
    metric = comparison.question.metric
    usual = _shares(headline_of(metric))
    shares = usual if metric in usual else {metric: percent("metric", metric), **usual}
    columns = [SCENARIO, METHOD, Column("kind", "kind"), Column("seeds", "seeds")]
    for name, column in shares.items():
        columns.append(column)
        if name == metric:
            columns += [Column("std", "sd over seeds", "points", 1)]
            columns += [percent("low", "95 % from"), percent("high", "to")]
    rows = []
    for row in comparison.summary.to_dict("records"):
        named = {str(key): value for key, value in row.items()}
        cells: list[Cell] = [str(named[key]) for key in ("scenario", "method", "kind")]
        cells.append(int(row["num_seeds"]))
        for name in shares:
            cells.append(number(named, name, 100))
            if name == metric:
                cells.append(number(named, f"{name}.std", 100))
                cells += _interval(named, name)
        rows.append(cells)
    note = (
        "Means over seeds, last round, test data. sd: sample standard deviation. 95 %: Student's t "
        "interval of the mean over seeds. Chosen round: by validation data. n/a: there is no "
        "such number."
    )
    return Table("results", "Results, with reference rows", columns, rows, note)


def effort_table(outcomes: Sequence[Outcome], comparison: Comparison, curves: Curves) -> Table:
    """What each row sent, trained and took, mean over seeds; and in which runs."""
    names = _runs_by_row(outcomes)
    columns = [SCENARIO, METHOD, Column("kind", "kind")]
    columns += [Column("mb_per_client", "busiest client", "MB"), *AMOUNTS.values(), RUNS]
    rows: list[list[Cell]] = []
    for row in comparison.summary.to_dict("records"):
        named = {str(name): value for name, value in row.items()}
        key = (str(row["scenario"]), str(row["method"]))
        ends = [curve.end for curve in curves.get(key, {}).values()]
        most = math.fsum(ends) / len(ends) if ends else 0.0
        # What it costs to bring all data together is not counted, which is not the same as none.
        cells: list[Cell] = [*key, str(row["kind"])]
        cells.append(None if number(named, "up_mb") is None else most)
        cells += [number(named, name) for name in AMOUNTS]
        rows.append([*cells, ", ".join(names[key])])
    note = (
        "Mean over seeds, whole runs; megabytes with headers. Untrained references are measured at "
        "the start of the runs named. n/a: bringing all data together is not counted."
    )
    return Table("effort", "What it took", columns, rows, note)


def tests_table(comparison: Comparison) -> Table:
    """What the leading method gains over each other row, last round."""
    columns = [
        SCENARIO,
        Column("leader", "leading method"),
        Column("other", "minus"),
        Column("kind", "kind"),
        Column("difference", "difference", "points", 1),
        Column("low", "95 % from", "points", 1),
        Column("high", "to", "points", 1),
        Column("p", "p, Holm", "", 3),
        Column("resampled", "resampled", "", 0),
    ]
    rows: list[list[Cell]] = []
    for row in comparison.differences.to_dict("records"):
        named = {str(key): value for key, value in row.items()}
        told: list[Cell] = [str(named[key]) for key in ("scenario", "leader", "other", "kind")]
        told += [number(named, key, 100) for key in ("difference", "low", "high")]
        rows.append([*told, number(named, "p_adjusted"), number(named, "num_clusters")])
    note = (
        "Paired bootstrap: clients (or seeds, where only the shared model has the metric) are "
        "resampled, each with all its seeds; p-values by Holm within the methods and within the "
        "references. p shown as 0.000 is below 0.0005."
    )
    return Table("tests", "Paired tests", columns, rows, note)


def clients_table(outcomes: Sequence[Outcome], headline: Headline) -> Table:
    """How scores are spread over clients; a client's seeds are pooled with the others'."""
    columns = [SCENARIO, METHOD, Column("num", "client results")]
    marks = (0, 10, 25, 50, 75, 90, 100)
    titles = {0: "lowest", 50: "median", 100: "highest"}
    columns += [percent(f"p{m}", titles.get(m, f"{m} % are below")) for m in marks]
    pooled: dict[tuple[str, str], list[float]] = {}
    for o in outcomes:
        values = [v for v in o.by_client.get(own_metric(headline), ()) if v is not None]
        pooled.setdefault((o.scenario, o.method), []).extend(values)
    rows: list[list[Cell]] = []
    for key, values in pooled.items():
        if values:
            spread = np.percentile(values, marks)
            rows.append([*key, len(values), *(100 * float(v) for v in spread)])
    title = TITLES[headline]
    note = (
        f"{title[0].upper()}{title[1:]} of each client's model on its own test rows, last round, "
        "all seeds together."
    )
    return Table("clients", "Spread over clients", columns, rows, note)


def cost_table(rows: Sequence[Row], curves: Curves) -> Table:
    """Seconds of each phase and peak memory per run, mean over seeds."""
    names = sorted(
        {name for own in curves.values() for c in own.values() for name in c.costs},
        key=lambda name: (not name.startswith("time/"), name),
    )
    columns = [SCENARIO, METHOD, *(_cost_column(name) for name in names)]
    told: list[list[Cell]] = []
    for row in rows:
        own = list(curves[row.scenario, row.method].values())
        told.append([row.scenario, row.method, *(_mean_cost(own, name) for name in names)])
    note = (
        "Mean over seeds. Rounds: training and aggregation; start-up is not counted. Peak memory: "
        "of one process, with the features and weights that it shares with others; on a GPU, "
        "what torch allocated there."
    )
    return Table("time", "Cost by phase", columns, told, note)


def _cost_column(name: str) -> Column:
    titles = {
        "time/round_s": "rounds",
        "time/eval_s": "scoring",
        "time/link_s": "on the declared links",
        "memory/actor_peak_bytes": "peak of an actor",
        "memory/coordinator_peak_bytes": "peak of the coordinator",
    }
    kind, _, rest = name.partition("/")
    return Column(rest, titles.get(name, rest), "s per run" if kind == "time" else "MiB")


def runs_table(outcomes: Sequence[Outcome], curves: Curves, headline: Headline) -> Table:
    """Every run that a number comes from."""
    ends = {curve.run: curve.end for own in curves.values() for curve in own.values()}
    shares = {n: c for n, c in _shares(headline).items() if n.startswith("eval/")}
    columns = [Column("run", "run"), SCENARIO, METHOD, Column("seed", "seed", "", 0)]
    columns += [*shares.values(), Column("mb_per_client", "busiest client", "MB")]
    columns += [Column("rounds", "rounds", "", 0)]
    rows = []
    for o in outcomes:
        cells: list[Cell] = [o.run, o.scenario, o.method, o.seed]
        cells += [cell(o.metrics.get(name), 100) for name in shares]
        is_own = (o.scenario, o.method) in curves
        cells += [ends.get(o.run) if is_own else 0.0, cell(o.metrics.get("rounds"))]
        rows.append(cells)
    note = (
        "Untrained references (zero-shot, majority class) stand in the first record of the run "
        "named. `fedarena show RUN` tells its settings."
    )
    return Table("runs", "Every run", columns, rows, note)


# -- details -------------------------------------------------------------------------------------


def _shares(headline: Headline) -> dict[str, Column]:
    return {of_headline(name, headline): column for name, column in RESULTS.items()}


def _runs_by_row(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[str]]:
    names: dict[tuple[str, str], list[str]] = {}
    for o in outcomes:
        names.setdefault((o.scenario, o.method), []).append(o.run)
    return names


def _interval(row: Mapping[str, object], name: str) -> list[Cell]:
    low, high = number(row, f"{name}.low", 100), number(row, f"{name}.high", 100)
    if low is None or high is None or low == high:  # an untrained row knows no seed
        return [None, None]
    return [max(0.0, low), min(100.0, high)]


def _mean_cost(curves: Sequence[Curve], name: str) -> float | None:
    known = [curve.costs[name] for curve in curves if name in curve.costs]
    unit = 1.0 if name.startswith("time/") else 2**20
    return math.fsum(known) / len(known) / unit if known else None
