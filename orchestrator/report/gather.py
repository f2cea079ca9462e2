"""Which runs a report is about: from sweeps, comparisons and run folders to rows with seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_core.errors import FedarenaError, StateError
from orchestrator.compare.lineup import CENTRALISED, LOCAL_ONLY, Row, kind_of
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import run_folder
from orchestrator.labels import (
    method_label,
    numbered,
    result_settings,
    scenario_label,
    scenario_settings,
    told_apart,
)
from orchestrator.loading import load_config
from scenarios.scored import own_metric

COMPARISON_FILE, TRIALS_FILE = "comparison.csv", "trials.csv"


@dataclass(frozen=True)
class Found:
    """A finished run. method: as its sweep calls it, None where nothing does."""

    config: ExperimentConfig
    method: str | None = None


@dataclass(frozen=True)
class Material:
    """What a report is made from. left_out: the name of a run, and why it is not used."""

    rows: Sequence[Row]
    left_out: Mapping[str, str]

    @property
    def configs(self) -> list[ExperimentConfig]:
        return [config for row in self.rows for config in row.configs.values()]

    @property
    def metric(self) -> str:
        """The mean over clients of what most of the runs are judged by."""
        judged = Counter(config.headline for config in self.configs)
        return own_metric(judged.most_common(1)[0][0])

    @property
    def vary_data(self) -> bool:
        """Whether the seeds of a row have each drawn who has which data."""
        drawn = [{c.scenario.seed for c in row.configs.values()} for row in self.rows]
        return any(len(seeds) > 1 for seeds in drawn)


def gather(names: Sequence[str], folder: Path) -> Material:
    """The finished runs of sweeps, comparisons and run folders; without names all in ``folder``.

    StateError where a name means nothing, or no run of all is finished.
    """
    paths: dict[Path, str | None] = {}
    for path, method in _named(names, folder):
        paths[path.absolute()] = paths.get(path.absolute()) or method
    found, left_out = [], {}
    for path, method in paths.items():
        try:
            found.append(Found(_finished(path), method))
        except FedarenaError as error:
            left_out[path.name] = str(error)
    if not found:
        why = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
        raise StateError(
            f"no finished run to report on{':' + why if why else f' in {folder}.'}\nStart one with "
            "`fedarena run`, or name another place with --folder."
        )
    return Material(rows_of(found), left_out)


def declared_budgets(names: Sequence[str], folder: Path) -> tuple[float, ...]:
    """The budgets at which the sweeps among ``names`` say that methods are compared."""
    from orchestrator.sweep.state import read_sweep

    sweeps = (_sweep_path(name, folder) for name in names)
    found = {b for path in sweeps if path is not None for b in read_sweep(path).budgets}
    return tuple(sorted(found))


def rows_of(runs: Sequence[Found]) -> list[Row]:
    """One row per method and scenario, with all of its seeds; a run of equal config stands once."""
    groups: dict[str, dict[tuple[int, int], Found]] = {}
    for run in runs:
        seeds = (run.config.seed, run.config.scenario.seed)
        groups.setdefault(_key(run), {}).setdefault(seeds, run)
    series = [s for members in groups.values() for s in _series(members)]
    firsts = [next(iter(own.values())) for own in series]
    scenarios = told_apart(
        [scenario_label(first.config) for first in firsts],
        [_known(scenario_settings(first.config)) for first in firsts],
    )
    methods = _method_names(firsts, scenarios)
    alone = _alone(firsts, scenarios, methods)
    rows = [
        Row(scenario, method, kind_of(first.config), _configs(own.values()), other)
        for scenario, method, first, own, other in zip(
            scenarios, methods, firsts, series, alone, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (row.scenario, row.kind, row.method))


# -- where runs are named ------------------------------------------------------------------------


def _named(names: Sequence[str], folder: Path) -> Iterator[tuple[Path, str | None]]:
    if not names:
        yield from ((p.parent, None) for p in sorted(folder.glob("*/config.yaml")))
    for name in names:
        path = Path(name)
        if (path / COMPARISON_FILE).exists():
            yield from ((folder / run, None) for run in _column(path / COMPARISON_FILE, "run"))
        elif (run := _run_path(path, folder)) is not None:
            yield run, None
        elif (sweep := _sweep_path(name, folder)) is not None:
            yield from _trials(sweep)
        elif inside := sorted(path.glob("*/config.yaml")):
            yield from ((p.parent, None) for p in inside)
        else:
            raise StateError(
                f"{name} is no run, sweep or comparison (looked here and in {folder}). `fedarena "
                "runs` lists the runs; a comparison is the folder given to its --out."
            )


def _run_path(path: Path, folder: Path) -> Path | None:
    return next((p for p in (path, folder / path) if (p / "config.yaml").exists()), None)


def _sweep_path(name: str, folder: Path) -> Path | None:
    from orchestrator.sweep.state import find_sweep

    return find_sweep(name, folder)


def _trials(sweep: Path) -> Iterator[tuple[Path, str | None]]:
    """The test trials of a sweep: those of its table, or what there is yet of one under way."""
    runs = sweep.parent.parent
    if (sweep / TRIALS_FILE).exists():
        import pandas as pd

        table = pd.read_csv(sweep / TRIALS_FILE, keep_default_na=False)
        for row in table[table["stage"] == "test"].to_dict("records"):
            yield runs / str(row["run"]), str(row["method"])
        return
    from orchestrator.sweep.design import Design
    from orchestrator.sweep.state import Runs, read_sweep

    known = Runs(runs)
    for trial in Design(read_sweep(sweep)).check():
        if trial.stage == "test":
            yield runs / f"{known.name_for(trial)}-{trial.hash[:8]}", trial.method


def _column(path: Path, name: str) -> list[str]:
    import pandas as pd

    return list(dict.fromkeys(pd.read_csv(path)[name].astype(str)))


def _finished(path: Path) -> ExperimentConfig:
    """The config of a finished run; StateError says why it cannot be used."""
    if not (path / "config.yaml").exists():
        raise StateError("has not begun")
    stem = path.name.rpartition("-")[0]
    config = replace(load_config(path / "config.yaml"), folder=path.parent, name=stem)
    if not (path / "DONE").exists():
        raise StateError("is not finished: `fedarena resume` goes on with it")
    if run_folder(config) != path:
        raise StateError("its folder's name does not fit its config: of another version, or moved")
    return config


# -- rows and their names ------------------------------------------------------------------------


def _key(run: Found) -> str:
    """Equal for the seeds of one row."""
    settings = result_settings(run.config)
    settings["scenario"] = {n: v for n, v in settings["scenario"].items() if n != "seed"}
    return json.dumps([run.method, settings], sort_keys=True)


def _series(members: Mapping[tuple[int, int], Found]) -> list[dict[int, Found]]:
    """By seed; one series per draw of the data where a seed was run with several."""
    seeds = [seed for seed, _ in members]
    if len(set(seeds)) == len(seeds):
        return [{seed: run for (seed, _), run in sorted(members.items(), key=lambda m: m[0])}]
    draws = sorted({drawn for _, drawn in members})
    ordered = sorted(members.items(), key=lambda member: member[0])
    return [{s: run for (s, d), run in ordered if d == drawn} for drawn in draws]


def _configs(runs: Any) -> dict[int, ExperimentConfig]:
    return {run.config.seed: run.config for run in runs}


def _method_names(firsts: Sequence[Found], scenarios: Sequence[str]) -> list[str]:
    """Distinct within each scenario, with the settings by which twins differ."""
    names = [""] * len(firsts)
    for scenario in dict.fromkeys(scenarios):
        places = [i for i, own in enumerate(scenarios) if own == scenario]
        labels = [firsts[i].method or _plain_name(firsts[i].config) for i in places]
        settings = [_known(result_settings(firsts[i].config)) for i in places]
        told = numbered(told_apart(labels, settings, ["scenario"]))
        for i, label in zip(places, told, strict=True):
            names[i] = label
    return names


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what is None: a name need not tell what is left open."""
    return {
        name: _known(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None
    }


def _plain_name(config: ExperimentConfig) -> str:
    """The method's label; references that nobody has named say what they are."""
    label, rule = method_label(config), config.federation.name
    usual = {"local_only": LOCAL_ONLY, "centralised": CENTRALISED}
    if rule in usual and label == f"{config.learner.name}-{rule}":
        return f"{usual[rule]} ({config.learner.name})"
    return label


def _alone(
    firsts: Sequence[Found], scenarios: Sequence[str], methods: Sequence[str]
) -> list[str | None]:
    """Of each row the one of the same learner where each client trains alone.

    Where there are several, the one that trains as the row does; None where that is none either.
    """
    found: list[str | None] = []
    for run, scenario in zip(firsts, scenarios, strict=True):
        lonely = [
            i
            for i, other in enumerate(firsts)
            if other.config.federation.name == "local_only"
            and (scenarios[i], other.config.learner) == (scenario, run.config.learner)
        ]
        if len(lonely) > 1:
            lonely = [i for i in lonely if firsts[i].config.training == run.config.training]
        found.append(methods[lonely[0]] if len(lonely) == 1 else None)
    return found
