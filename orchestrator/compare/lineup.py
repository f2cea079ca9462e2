"""Which runs a comparison is made of: every method with every seed, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import ConfigError, FedarenaError
from fl_core.local import check_pair
from orchestrator.compare.effort import centralised_of, local_only_of
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
from orchestrator.loading import config_hash, load_config, resolve, to_dict
from scenarios.data.catalogue import load_dataset
from scenarios.evaluate import OWN
from scenarios.scenario import Scenario, build_population
from scenarios.scored import own_metric

Source = ExperimentConfig | Path | str | Mapping[str, Any]
Ints = npt.NDArray[np.int64]
Kind = Literal["method", "reference"]

LOCAL_ONLY, CENTRALISED = "local only", "centralised"
LOWER_IS_BETTER = ("nll", "ece", "brier", "_std", "worse_than_zero_shot", "participation_gap")


@dataclass(frozen=True)
class Question:
    """What is asked of a comparison.

    seeds: runs per method, from the config's seed upwards. vary_data: each draws the data anew
    too. references: hold the methods against reference rows. metric: by which methods are ranked.
    target_accuracy: of that metric, whose price in megabytes is asked for.
    """

    seeds: int = 3
    vary_data: bool = False
    references: bool = True
    metric: str = OWN
    target_accuracy: float | None = None

    def __post_init__(self) -> None:
        faults = []
        try:
            check_fields(self, seeds=">= 1", target_accuracy="from 0 to 1")
        except ConfigError as error:
            faults += error.faults
        if not self.metric.startswith("eval/"):
            faults.append(f"metric = {self.metric!r} is not allowed: it must begin with eval/.")
        elif self.metric.endswith(LOWER_IS_BETTER):
            faults.append(
                f"metric = {self.metric!r} is not allowed: methods are ranked by a metric of which "
                f"more is better, such as {OWN}."
            )
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Row:
    """One row of a table: a config for each seed, resolved.

    alone: the row of the same learner trained by each client alone, by its method's name; None
    where there is none.
    """

    scenario: str
    method: str
    kind: Kind
    configs: Mapping[int, ExperimentConfig]
    alone: str | None = None


@dataclass
class _Entry:
    """A row while the others are still being found; ``configs`` are not resolved yet."""

    label: str
    kind: Kind
    configs: list[ExperimentConfig]
    alone: _Entry | None = None
    scenario: str = field(default="")

    @property
    def base(self) -> ExperimentConfig:
        return self.configs[0]

    @property
    def hash(self) -> str:
        return config_hash(self.base)


def line_up(
    sources: Sequence[Source], question: Question, overrides: Sequence[str] = ()
) -> list[Row]:
    """The rows of a comparison: the experiments given, then references that train as much.

    ``local only`` and ``centralised`` are added for each learner in each scenario, unless they are
    among ``sources``. ConfigError tells every fault of every source at once.
    """
    given = [
        _Entry(method_label(base), kind_of(base), seeded)
        for base, seeded in _seeded(sources, question, overrides)
    ]
    entries = _without_twins(given)
    if question.references:
        _add_references(entries)
    _name_scenarios(entries)
    _name_methods(entries)
    return [_row(entry) for entry in entries]


def headline_metric(sources: Sequence[Source], overrides: Sequence[str] = ()) -> str:
    """What rows are ranked by where nothing else is asked: the headline of clients' own models."""
    try:
        return own_metric(_load(sources[0], overrides).headline)
    except (ConfigError, IndexError):  # told by ``line_up``, with the faults of the others
        return OWN


def _seeded(
    sources: Sequence[Source], question: Question, overrides: Sequence[str]
) -> list[tuple[ExperimentConfig, list[ExperimentConfig]]]:
    if not sources:
        raise ConfigError("nothing to compare: name at least one experiment.")
    if isinstance(sources, str):
        raise ConfigError(f"{sources!r} is one experiment: give a list of them, [{sources!r}].")
    found, faults = [], []
    for source in sources:
        try:
            base = _load(source, overrides)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if question.vary_data and base.scenario.manifest is not None:
            faults.append(
                f"{method_label(base)}: scenario.manifest = {str(base.scenario.manifest)!r} fixes "
                "who has which data, so data cannot vary with the seed. Leave one of them out."
            )
        found.append((base, [_at_seed(base, i, question.vary_data) for i in range(question.seeds)]))
    if faults:
        raise ConfigError(faults)
    return found


def _load(source: Source, overrides: Sequence[str]) -> ExperimentConfig:
    if not isinstance(source, ExperimentConfig):
        return load_config(source, overrides)
    return load_config(to_dict(source), overrides)


def _at_seed(base: ExperimentConfig, offset: int, vary_data: bool) -> ExperimentConfig:
    name, seed, scenario = base.name, base.seed + offset, base.scenario
    if name is not None and name.endswith(f"-s{base.seed}"):
        name = f"{method_label(base)}-s{seed}"
    if vary_data:
        scenario = replace(scenario, seed=scenario.seed + offset)
    return replace(base, name=name, seed=seed, scenario=scenario)


def kind_of(config: ExperimentConfig) -> Kind:
    """Whether a row of this config is a method, or what methods are held against."""
    is_trained = config.learner.name != "zero_shot" and config.federation.communicates
    return "method" if is_trained else "reference"


def _without_twins(entries: Sequence[_Entry]) -> list[_Entry]:
    kept: dict[str, _Entry] = {}
    for entry in entries:
        kept.setdefault(entry.hash, entry)
    return list(kept.values())


# -- references ----------------------------------------------------------------------------------


def _add_references(entries: list[_Entry]) -> None:
    given = list(entries)
    num_examples = cache(_num_examples)
    for entry in given:
        if entry.kind == "method":
            entry.alone = _find_or_add(entries, given, entry, LOCAL_ONLY, num_examples)
            central = _find_or_add(entries, given, entry, CENTRALISED, num_examples)
            if central is not None and central.alone is None:
                central.alone = entry.alone


def _find_or_add(
    entries: list[_Entry],
    given: Sequence[_Entry],
    method: _Entry,
    label: str,
    num_examples: Callable[[Scenario, Path], Ints],
) -> _Entry | None:
    """The reference of a method: the user's own, one that another method has too, or a new one."""
    rule = label.replace(" ", "_")
    for entry in given:
        if entry.base.federation.name == rule and _task(entry.base) == _task(method.base):
            return entry
    made = []
    for config in method.configs:
        rounds = _rounds(config)
        if label == LOCAL_ONLY:
            made.append(local_only_of(config, rounds))
        else:
            held = num_examples(config.scenario, config.store)
            made.append(centralised_of(config, rounds, held))
    try:
        check_pair(made[0].learner, made[0].federation, made[0].training)
    except ConfigError:  # a pair that makes no sense has no such reference
        return None
    new = _Entry(label, "reference", made)
    for entry in entries:
        if entry.hash == new.hash:
            return entry
    entries.append(new)
    return new


def _task(config: ExperimentConfig) -> tuple[Any, ...]:
    return config.backbone, config.scenario, config.learner


def _rounds(config: ExperimentConfig) -> int:
    """The rounds that a run will have: all, or those that its budget admits."""
    budget = config.communication.budget
    if budget.megabytes is None and budget.seconds is None:
        return config.federation.rounds
    from orchestrator.plan import make_plan

    return make_plan(resolve(config)).rounds


def _num_examples(scenario: Scenario, store: Path) -> Ints:
    """Training examples of each client that may train [num_clients], 0 of the others."""
    dataset = load_dataset(scenario.dataset, store.expanduser() / "hashes")
    population = build_population(scenario, dataset)
    return population.participants().num_examples


# -- names ---------------------------------------------------------------------------------------


def _name_scenarios(entries: Sequence[_Entry]) -> None:
    """Equal scenarios get one name, different ones different names."""
    settings = [scenario_settings(entry.base) for entry in entries]
    labels = told_apart([scenario_label(entry.base) for entry in entries], settings)
    for entry, label in zip(entries, labels, strict=True):
        entry.scenario = label


def _name_methods(entries: Sequence[_Entry]) -> None:
    for scenario in dict.fromkeys(entry.scenario for entry in entries):
        own = [entry for entry in entries if entry.scenario == scenario]
        settings = [result_settings(entry.base) for entry in own]
        labels = told_apart([entry.label for entry in own], settings, ["scenario"])
        for entry, label in zip(own, numbered(labels), strict=True):  # equal ones differ by seed
            entry.label = label


def _row(entry: _Entry) -> Row:
    configs = {config.seed: _known(resolve(config)) for config in entry.configs}
    alone = entry.alone.label if entry.alone else None
    return Row(entry.scenario, entry.label, entry.kind, configs, alone)


def _known(config: ExperimentConfig) -> ExperimentConfig:
    """The same under the name of a finished run of this config, where there is one."""
    if (run_folder(config) / "rounds").exists():
        return config
    wanted = config_hash(config)
    for done in sorted(config.folder.glob(f"*-{wanted[:8]}/DONE")):
        try:
            found = config_hash(load_config(done.parent / "config.yaml"))
        except (FedarenaError, OSError):  # of another version, or damaged: then it runs anew
            continue
        if found == wanted:
            return replace(config, name=done.parent.name.removesuffix(f"-{wanted[:8]}"))
    return config
