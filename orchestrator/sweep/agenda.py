"""What a sweep runs next. It decides only: it touches no file, no clock and no process.

Every decision depends on scores alone, taken in a fixed order, never on which trial ended first;
so a sweep that starts again makes the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fl_core.errors import ConfigError
from fl_core.seeds import derive
from orchestrator.sweep.config import Axis, OptunaSearch
from orchestrator.sweep.design import Design, Group, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """How a tuning trial did. validation: its score, None where it failed; ended: not cut short."""

    validation: float | None
    ended: bool = True

    @property
    def rank(self) -> tuple[bool, float]:
        """Higher is better; whoever was cut short comes after all that ran to their end."""
        return self.ended, -1.0 if self.validation is None else self.validation


@dataclass(frozen=True)
class Choice:
    """What tuning a group came to. num_trials: how many it took."""

    point: Point
    validation: float | None
    num_trials: int


class Proposer(Protocol):
    """Where the points of a group come from."""

    def ask(self) -> list[Point]:
        """The next points, all to be scored before it is asked again; none at the end."""

    def tell(self, scores: Sequence[Score]) -> None:
        """The scores of the points asked last, in their order."""


@dataclass
class _Room:
    """The tuning of one group, as far as it has come."""

    group: Group
    proposer: Proposer
    batch: list[Trial] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    tried: list[Trial] = field(default_factory=list)


class Agenda:
    """Trials that are ready to run, in order; more become ready as others end."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.choices: dict[str, Choice] = {}
        self.lost: dict[str, str] = {}
        self.ready: list[Trial] = []
        self._rooms = {g.key: _Room(g, proposer(design, g)) for g in design.groups}
        self._running: set[str] = set()
        self.total = self._count()
        for room in self._rooms.values():
            self._advance(room)

    @property
    def is_finished(self) -> bool:
        return not self.ready and not self._running

    def take(self, trial: Trial) -> None:
        """A trial that was ready begins."""
        self.ready.remove(trial)
        self._running.add(trial.key)

    def end(self, trial: Trial, score: Score) -> None:
        """A trial has ended, well or not."""
        self._running.discard(trial.key)
        room = self._rooms[trial.group]
        if trial.stage == "test":
            return
        room.scores[trial.key] = score
        if all(t.key in room.scores for t in room.batch):
            room.proposer.tell([room.scores[t.key] for t in room.batch])
            self._advance(room)

    def _advance(self, room: _Room) -> None:
        """Ask for the next tuning trials of a group, or choose and go on to its test trials."""
        points = room.proposer.ask()
        room.batch = [self.design.tuning_trial(room.group, point) for point in points]
        known = room.scores.keys() | {t.key for t in self.ready} | self._running
        new = {t.key: t for t in room.batch if t.key not in known}
        room.tried += room.batch
        self.ready += new.values()
        if new:
            return
        if room.batch:  # every point was tried before
            room.proposer.tell([room.scores[t.key] for t in room.batch])
            self._advance(room)
            return
        self._choose(room)

    def _choose(self, room: _Room) -> None:
        group, tried = room.group, room.tried
        if not tried:
            self.ready += self.design.test_trials(group, {})
            return
        best = max(tried, key=lambda t: room.scores[t.key].rank)  # the first of equals
        score = room.scores[best.key]
        if score.validation is None:
            self.lost[group.key] = "no tuning trial has a validation score"
            return
        self.choices[group.key] = Choice(best.tuned, score.validation, len(tried))
        self.ready += self.design.test_trials(group, best.tuned)

    def _count(self) -> int:
        """Trials of the whole sweep, if all goes well."""
        seeds = len(self.design.sweep.seed_list)
        tests = sum(len(group.cells) for group in self.design.groups) * seeds
        return tests + sum(num_tuning(self.design, group) for group in self.design.groups)


def num_tuning(design: Design, group: Group) -> int:
    """How many tuning trials a group has."""
    tuning = design.sweep.tuning
    if tuning is None or not group.axes:
        return 0
    if _asks_optuna(design, group):
        return tuning.trials_per_method
    return len(design.points(group))


def _asks_optuna(design: Design, group: Group) -> bool:
    """Whether there is anything to search: a space of few points is tried as a whole."""
    tuning = design.sweep.tuning
    if tuning is None or not isinstance(design.sweep.searcher, OptunaSearch):
        return False
    sizes = [axis.size for axis in group.axes.values()]
    return bool(sizes) and math.prod(sizes) > tuning.trials_per_method


def proposer(design: Design, group: Group) -> Proposer:
    """Where a group's points come from: its own study, or draws by name."""
    sweep = design.sweep
    if isinstance(sweep.searcher, OptunaSearch) and sweep.tuning and _asks_optuna(design, group):
        seed = derive(sweep.tuning_seed, "optuna", group.key) % 2**32
        return Study(group.axes, sweep.tuning.trials_per_method, sweep.searcher.batch, seed)
    return Draws(design.points(group))


class Draws:
    """Points that are known from the start."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = list(points)

    def ask(self) -> list[Point]:
        points, self._points = self._points, []
        return points

    def tell(self, scores: Sequence[Score]) -> None:
        pass


class Study:
    """Points that Optuna proposes, ``batch`` at a time, ``total`` in all."""

    def __init__(self, axes: Mapping[str, Axis], total: int, batch: int, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "searcher = optuna needs the package optuna: pip install 'fedarena[search]', or "
                "use searcher: random."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=min(10, max(1, total // 2))
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._axes, self._left, self._batch = axes, total, batch
        self._space = {name: _distribution(axis) for name, axis in axes.items()}
        self._asked: list[Any] = []

    def ask(self) -> list[Point]:
        count = min(self._batch, self._left)
        self._left -= count
        self._asked = [self._study.ask(self._space) for _ in range(count)]
        return [{n: self._value(n, v) for n, v in t.params.items()} for t in self._asked]

    def tell(self, scores: Sequence[Score]) -> None:
        from optuna.trial import TrialState

        for trial, score in zip(self._asked, scores, strict=True):
            if score.validation is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, score.validation)
        self._asked = []

    def _value(self, name: str, value: Any) -> Any:
        """Optuna holds a choice by its number, since its values may be whole sections."""
        choice = self._axes[name].choice
        return value if choice is None else choice[value]


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if axis.choice is not None:
        return CategoricalDistribution(list(range(len(axis.choice))))
    if axis.integers is not None:
        return IntDistribution(*axis.integers)
    low, high = axis.log_uniform or axis.uniform or (0.0, 1.0)
    return FloatDistribution(low, high, log=axis.log_uniform is not None)
