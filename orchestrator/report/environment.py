"""What the runs were computed with, and where they differ in that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.checkpoint import RunStore
from orchestrator.compare.lineup import Row
from orchestrator.environment import Environment, current, read_environments
from orchestrator.experiment import run_folder
from orchestrator.report.tables import RUNS, Cell, Column, Table

ByRun = Mapping[str, Sequence[Environment]]

HARMLESS = ("CPUs", "ray", "mlflow")
"""What may differ between runs and changes no number but times."""
MOST_NAMED = 3


def environment_table(rows: Sequence[Row]) -> Table:
    """A line per value: what all runs share, and which runs have which where they differ."""
    by_run = _by_run(rows)
    told: list[list[Cell]] = []
    same: list[list[Cell]] = []
    for what, groups in _groups(by_run).items():
        if len(groups) == 1:
            same += [[what, value, "all"] for value in groups]
        else:
            told += [[what, value, names] for value, names in _named(groups).items()]
    configs = [config for row in rows for config in row.configs.values()]
    backbones = sorted({config.backbone.model.rpartition("/")[2] for config in configs})
    executors = sorted({config.resources.executor for config in configs})
    here = current()
    written = ", ".join(f"{name} {here[name]}" for name in ("fedarena", "Python") if name in here)
    told += same
    unknown = ", ".join(run for run, own in by_run.items() if not own)
    if unknown:
        told.append(["not recorded", None, unknown])
    told.append(["backbones", ", ".join(backbones), None])
    told.append(["executors", ", ".join(executors), None])
    told.append(["this report", f"{written}; {here['system']}", None])
    columns = [Column("what", "what"), Column("value", "value"), RUNS]
    note = (
        "As each run recorded at its start; on a cluster, of the coordinator's node. What differs "
        "between runs stands first. Then: the run went on with something else. Not recorded: runs "
        "of an earlier fedarena."
    )
    return Table("environment", "Environment", columns, told, note)


def environment_cautions(rows: Sequence[Row]) -> list[str]:
    """A sentence where runs that are compared were computed with different things."""
    groups = _groups(_by_run(rows))
    differing = [
        what for what, values in groups.items() if len(values) > 1 and what not in HARMLESS
    ]
    if not differing:
        return []
    return [
        f"The runs were not all computed with the same {', '.join(differing)}: some of what "
        "separates them may come from that. The table Environment says which."
    ]


def _by_run(rows: Sequence[Row]) -> ByRun:
    folders = {run_folder(config) for row in rows for config in row.configs.values()}
    return {folder.name: read_environments(RunStore(folder)) for folder in sorted(folders)}


def _groups(by_run: ByRun) -> dict[str, dict[str, list[str]]]:
    """By what, then by value: the runs, without those of which nothing is known."""
    names = [name for own in by_run.values() for e in own for name in e.values]
    known = {run: own for run, own in by_run.items() if own}
    found: dict[str, dict[str, list[str]]] = {}
    for what in dict.fromkeys(names):
        for run, own in known.items():
            told = ", then ".join(dict.fromkeys(e.values.get(what, "none") for e in own))
            found.setdefault(what, {}).setdefault(told, []).append(run)
    return found


def _named(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The runs of each value in words; where the most of them are many, only their number."""
    most = max(groups, key=lambda value: len(groups[value]))
    found = {value: ", ".join(runs) for value, runs in groups.items()}
    if len(groups[most]) > MOST_NAMED:
        found[most] = f"the other {len(groups[most])} runs"
    return found
