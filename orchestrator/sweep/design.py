"""From a sweep's config to its trials: cells, seeds, tuning groups, and their configs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from fl_core.errors import ConfigError
from fl_core.federation import FedAvg
from fl_core.learners import CoOp
from fl_core.seeds import derive
from orchestrator.budget import one_run_answers
from orchestrator.config import ExperimentConfig
from orchestrator.loading import config_hash, load_config, resolve
from orchestrator.reading import ROOT, put
from orchestrator.sweep.axes import Values, applies, flattened, value_at
from orchestrator.sweep.config import BUDGET, METHOD, Axis, SweepConfig, label, section_name

Stage = Literal["tuning", "test"]
MEGABYTES = f"{BUDGET}.megabytes"
ATTEMPTS_PER_POINT = 50  # after so many draws a small space is taken to be exhausted


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep.

    group: what it is tuned in, or is the outcome of. cell: axis -> label, without the method;
    tuned: the values of its hyper-parameters.
    """

    stage: Stage
    method: str
    cell: Mapping[str, str]
    tuned: Mapping[str, Any]
    group: str
    hash: str
    config: ExperimentConfig

    @property
    def name(self) -> str:
        return str(self.config.name)

    @property
    def key(self) -> str:
        """Unique within the sweep, and the name of its run."""
        return f"{self.name}-{self.hash[:8]}"


@dataclass(frozen=True)
class Group:
    """Trials among which hyper-parameters are chosen; schedulers and searchers stay within one.

    cell: in which it is tuned; cells: which are run with the outcome. axes: what is tuned.
    """

    key: str
    method: str
    cell: Values
    cells: Sequence[Values]
    axes: Mapping[str, Axis]


Request = tuple[Stage, Group, Values, Values, int]
"""What a trial is made of: stage, group, cell, hyper-parameters, seed."""


class Design:
    """All that a sweep may run, as far as it is known before anything has run."""

    def __init__(self, sweep: SweepConfig) -> None:
        self.sweep = sweep

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """The combinations of grid values, in the order of the axes; the last varies fastest."""
        axes = {n: a for n, a in self.sweep.axes.items() if not a.is_tuned}
        found: list[dict[str, Any]] = [{}]
        waiting = list(axes)
        while waiting:  # conditions lead to axes that come before; load_sweep refuses circles
            name = next(n for n in waiting if not set(axes[n].when or ()) & set(waiting))
            waiting.remove(name)
            axis = axes[name]
            found = [
                {**cell, **chosen}
                for cell in found
                for chosen in ([{name: v} for v in axis.values] if applies(axis, cell) else [{}])
            ]
        found = [{n: cell[n] for n in axes if n in cell} for cell in found]
        return [
            {**cell, **chosen}
            for cell in found
            for chosen in ([{MEGABYTES: b} for b in self._budgets(cell)] or [{}])
        ]

    def _budgets(self, cell: Values) -> Sequence[float]:
        """Which of the sweep's budgets need a run of their own in this cell."""
        if not self.sweep.budgets:
            return ()
        largest = max(self.sweep.budgets)
        try:
            config = self.config({**cell, MEGABYTES: largest}, self.sweep.seed_list[0], "cell")
        except ConfigError:  # told with the faults of all trials
            return self.sweep.budgets
        rule = config.federation
        if not rule.communicates:
            return ()
        answers = one_run_answers(config.training, config.communication, rule, config.participation)
        return (largest,) if answers else self.sweep.budgets

    def method(self, cell: Values) -> str:
        """The value of the axis ``method``, or learner and federation where there is none."""
        if METHOD in self.sweep.axes:
            return label(cell[METHOD])
        raw = self._raw(cell)
        usual = {"learner": CoOp.name, "federation": FedAvg.name}
        return "-".join(label(cell.get(n) or section_name(raw.get(n)) or usual[n]) for n in usual)

    @cached_property
    def groups(self) -> list[Group]:
        tuning = self.sweep.tuning
        found: dict[str, list[dict[str, Any]]] = {}
        for cell in self.cells:
            method = self.method(cell)
            shown = "" if tuning is None or tuning.per == "method" else f" {self._shown(cell)}"
            found.setdefault(f"{method}{shown}", []).append(cell)
        return [
            Group(key, self.method(cells[0]), cells[0], cells, self._tuned_axes(cells[0]))
            for key, cells in found.items()
        ]

    def points(self, group: Group) -> list[dict[str, Any]]:
        """Distinct values of the group's hyper-parameters, drawn independently by name."""
        tuning = self.sweep.tuning
        if tuning is None or not group.axes:
            return []
        found: dict[str, dict[str, Any]] = {}
        for i in range(tuning.trials_per_method * ATTEMPTS_PER_POINT):
            point = {n: self._draw(n, axis, i) for n, axis in group.axes.items()}
            found.setdefault(repr(point), point)
            if len(found) == tuning.trials_per_method:
                break
        return list(found.values())

    def tuning_trial(self, group: Group, point: Values) -> Trial:
        return self._trial("tuning", group, group.cell, point, self.sweep.tuning_seed)

    def test_trials(self, group: Group, point: Values) -> list[Trial]:
        """Every cell of a group with every seed."""
        seeds = self.sweep.seed_list
        return [self._trial("test", group, c, point, seed) for c in group.cells for seed in seeds]

    def check(self) -> list[Trial]:
        """Trials that stand for all: hyper-parameters at each of their extremes.

        ConfigError with every fault of any of them, told once, with the first trial that has it.
        """
        found: list[Trial] = []
        faults = Counter(self._uneven_tuning())
        first: dict[str, str] = {}
        for request in self._requests():
            try:
                found.append(self._trial(*request))
            except ConfigError as error:
                faults.update(error.faults)
                first |= {f: self._words(*request) for f in error.faults if f not in first}
        if faults:
            raise ConfigError(
                [
                    f"{fault} (in {first[fault]}{f' and {n - 1} more' if n > 1 else ''})"
                    if fault in first
                    else fault
                    for fault, n in faults.items()
                ]
            )
        return found

    # -- details -----------------------------------------------------------------------------

    def _requests(self) -> Iterator[Request]:
        for group in self.groups:
            for i, point in enumerate(self._corners(group)):
                seeds = self.sweep.seed_list if not i else self.sweep.seed_list[:1]
                yield from (("test", group, c, point, s) for c in group.cells for s in seeds)
                if group.axes:
                    yield "tuning", group, group.cell, point, self.sweep.tuning_seed

    def _corners(self, group: Group) -> list[dict[str, Any]]:
        """The first value of every hyper-parameter, and each other extreme beside it."""
        first = {n: axis.extremes[0] for n, axis in group.axes.items()}
        others = [{**first, n: v} for n, axis in group.axes.items() for v in axis.extremes[1:]]
        return [first, *others]

    def _uneven_tuning(self) -> Iterator[str]:
        for group in self.groups:
            for name in self.sweep.axes:
                held = [name in self._tuned_axes(cell) for cell in group.cells]
                if any(held) and not all(held):
                    yield (
                        f"axes.{name} is tuned in some cells of {group.method} only, so there is "
                        "no one value for all of them: set tuning.per = cell."
                    )

    def _tuned_axes(self, cell: Values) -> dict[str, Axis]:
        return {n: a for n, a in self.sweep.axes.items() if a.is_tuned and applies(a, cell)}

    def _draw(self, name: str, axis: Axis, index: int) -> Any:
        share = derive(self.sweep.tuning_seed, "tuning", name, index) / 2**63
        return value_at(axis, share)

    def _words(self, stage: Stage, group: Group, cell: Values, tuned: Values, seed: int) -> str:
        """Method, values of the axes, and seed, as in ``fedprox-alpha0.1-s2``."""
        shown = self._shown({**cell, **tuned} if stage == "tuning" else cell)
        end = "tuning" if stage == "tuning" else f"s{seed}"
        return "-".join([group.method, *([shown] if shown else []), end])

    def _trial(self, stage: Stage, group: Group, cell: Values, tuned: Values, seed: int) -> Trial:
        name = file_name(self._words(stage, group, cell, tuned, seed))
        config = self.config({**cell, **tuned}, seed, name)
        labels, digest = self.labels(cell), config_hash(config)
        return Trial(stage, group.method, labels, dict(tuned), group.key, digest, config)

    def labels(self, cell: Values) -> dict[str, str]:
        """A cell as axis -> label, without what names the method."""
        return {n: label(v) for n, v in cell.items() if n not in self.method_axes}

    def config(self, values: Values, seed: int, name: str) -> ExperimentConfig:
        """The resolved experiment at these values of the axes."""
        raw = {**self._raw(values), "name": name, "seed": seed}
        try:
            config = resolve(load_config(raw))
        except ConfigError as error:
            raise ConfigError(error.faults) from None
        if self.sweep.vary_data and seed in self.sweep.seed_list:
            moved = config.scenario.seed + self.sweep.seed_list.index(seed)
            config = replace(config, scenario=replace(config.scenario, seed=moved))
        return config

    def _raw(self, values: Values) -> dict[str, Any]:
        """The base with the settings that stand for ``values``; sections before what is in them."""
        settings: list[tuple[str, Any]] = []
        if MEGABYTES in values and self.sweep.budgets:
            settings += [(f"{BUDGET}.per", "client"), (f"{BUDGET}.direction", "both")]
        for name, value in values.items():
            variants = self.sweep.axes[name].variants if name in self.sweep.axes else None
            chosen = variants[value] if variants is not None else {name: value}
            for path, setting in chosen.items():
                settings += flattened(path, setting)
        twice = [path for path, n in Counter(path for path, _ in settings).items() if n > 1]
        if twice:
            raise ConfigError([f"axes: {path} is set by two axes at once." for path in twice])
        settings.sort(key=lambda setting: setting[0].removesuffix(".name").count("."))
        raw: dict[str, Any] = dict(self.sweep.settings)
        for path, value in settings:
            raw = put(ROOT, raw, path.split("."), value)
        return raw

    def _shown(self, values: Values) -> str:
        """Values of axes, without what names the method, as in ``alpha0.1-megabytes2``."""
        shown = {n: v for n, v in values.items() if n not in self.method_axes}
        return "-".join(f"{self.short(n)}{label(v)}" for n, v in shown.items())

    @property
    def method_axes(self) -> tuple[str, ...]:
        """Axes whose values the method's name holds already."""
        return (METHOD,) if METHOD in self.sweep.axes else ("learner", "federation")

    def short(self, axis: str) -> str:
        """The last word of a setting's path, or more where two axes share it."""
        words, others = axis.split("."), [a for a in self.sweep.axes if a != axis]
        for n in range(1, len(words)):
            tail = ".".join(words[-n:])
            if not any(other == tail or other.endswith(f".{tail}") for other in others):
                return tail
        return axis


def file_name(text: str) -> str:
    """``text`` as the name of a run: what is not allowed there becomes ``_``."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "_", text)).lstrip("_.-")
    return name[:100].rstrip(".") or "trial"
