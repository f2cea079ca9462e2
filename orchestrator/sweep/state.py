"""A sweep's folder: what was asked for, what has been decided, what came out.

    <folder>/sweeps/<name>-<hash>/sweep.yaml    the sweep, its base inline
    <folder>/sweeps/<name>-<hash>/stopped.json  trials that a scheduler ended, and after which round
    <folder>/sweeps/<name>-<hash>/choices.json  what tuning came to, by method
    <folder>/sweeps/<name>-<hash>/trials.csv, summary.csv

The trials' own state is in their run folders; nothing here is needed to go on but sweep.yaml, and
stopped.json where a scheduler has decided something.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fl_core.errors import StateError
from orchestrator.checkpoint import RunStore
from orchestrator.loading import config_hash, load_config, to_dict
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.design import Design, Trial
from orchestrator.sweep.loading import load_sweep
from orchestrator.yaml_text import Dumper, read_yaml

if TYPE_CHECKING:
    from orchestrator.sweep.away import RunsAway

SWEEPS = "sweeps"
SWEEP_FILE, STOPS_FILE, CHOICES_FILE = "sweep.yaml", "stopped.json", "choices.json"


class SweepStore(RunStore):
    """The folder of one sweep."""

    def write_sweep(self, sweep: SweepConfig) -> None:
        self.write_text(SWEEP_FILE, to_yaml(sweep))

    def stops(self) -> dict[str, int]:
        """Rounds after which a scheduler ended a trial, by the trial's key."""
        found: dict[str, int] = json.loads(self.read_text(STOPS_FILE) or "{}")
        return found

    def write_stops(self, stops: dict[str, int]) -> None:
        self.write_text(STOPS_FILE, json.dumps(stops, indent=1))

    def chosen(self) -> dict[str, dict[str, Any]]:
        """What tuning came to, by group: the values of its hyper-parameters."""
        found = json.loads(self.read_text(CHOICES_FILE) or "{}")
        return {group: choice["point"] for group, choice in found.items()}


def to_yaml(sweep: SweepConfig) -> str:
    """YAML of which ``load_sweep`` makes an equal sweep."""
    values = to_dict(sweep)
    values["axes"] = {
        name: {kind: value for kind, value in axis.items() if value is not None}
        for name, axis in values["axes"].items()
    }
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def sweep_folder(design: Design, trials: Sequence[Trial]) -> Path:
    """Where a sweep keeps its own files: equal sweeps share it.

    trials: what ``design.check`` gives; what they compute is part of the name.
    """
    sweep = design.sweep
    about = to_dict(sweep)
    told = [about[name] for name in ("seeds", "vary_data", "scheduler", "searcher", "tuning")]
    tuned = {n: about["axes"][n] for n, axis in sweep.axes.items() if axis.is_tuned}
    text = json.dumps([*told, tuned, [trial.hash for trial in trials]], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return trials[0].config.folder / SWEEPS / f"{sweep.name}-{digest}"


def find_sweep(name: str, folder: Path) -> Path | None:
    """The folder of an earlier sweep, by its name (with or without hash) or by its path.

    StateError where several have the name.
    """
    for path in (Path(name), folder / SWEEPS / name):
        if (path / SWEEP_FILE).exists():
            return path
    found = [path for path in _sweeps_in(folder) if path.name.rpartition("-")[0] == name]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise StateError(f"{name} is the name of several sweeps in {folder}: say which: {names}.")
    return found[0] if found else None


def sweep_names(folder: Path) -> list[str]:
    """What the sweeps of a folder are called, without hashes."""
    return sorted({path.name.rpartition("-")[0] for path in _sweeps_in(folder)})


def known_sweeps(folder: Path) -> str:
    """The names of a folder's sweeps, in a message that asks for one."""
    found = ", ".join(path.name for path in _sweeps_in(folder))
    return f"Sweeps in {folder}: {found or 'none'}."


def _sweeps_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / SWEEPS).glob(f"*/{SWEEP_FILE}"))


def read_sweep(folder: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep that a folder is about."""
    raw: Any = read_yaml(folder / SWEEP_FILE)
    return load_sweep(raw, overrides)


class Runs:
    """Runs that a folder, or its mirror, holds already: by what they compute, whatever the name."""

    def __init__(self, folder: Path, away: RunsAway | None = None) -> None:
        self.folder, self.away = folder, away
        self._by_hash: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}
        here = {path.parent.name for path in folder.glob("*/config.yaml")}
        for run in here | (away.names if away is not None else set()):
            self._by_hash.setdefault(run.rpartition("-")[2], []).append(run)

    def name_for(self, trial: Trial) -> str:
        """The name under which a trial's run stands, or will stand; one for all its equals."""
        if trial.hash not in self._names:
            known = self._by_hash.get(trial.hash[:8], [])
            same = [run for run in sorted(known) if self._hash(run) == trial.hash]
            run = same[0] if same and trial.key not in same else trial.key
            self._names[trial.hash] = run.rpartition("-")[0]
        return self._names[trial.hash]

    def _hash(self, run: str) -> str | None:
        path = self.folder / run / "config.yaml"
        if self.away is not None:
            self.away.bring_known(path.parent)
        return config_hash(load_config(path)) if path.exists() else None
