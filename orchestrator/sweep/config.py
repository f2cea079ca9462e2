"""A sweep's config: a base experiment, axes over its settings, seeds, and how methods are tuned.

Axes with ``grid``, ``range`` or ``variants`` span the cells that are compared, and each cell is
run with every seed. Axes with ``choice``, ``uniform``, ``log_uniform`` or ``integers`` are
hyper-parameters: they are tuned on validation data within a method (section ``tuning``), and the
cells are run with what came out best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fl_core.checks import check_fields
from fl_core.errors import ConfigError

FORBID = {"extra": "forbid"}
BUDGET = "communication.budget"
METHOD = "method"
"""The axis that says which method a trial runs; without it, learner and federation say so."""
CELL_KINDS, TUNED_KINDS = (
    ("grid", "range", "variants"),
    (
        "choice",
        "uniform",
        "log_uniform",
        "integers",
    ),
)


@dataclass(frozen=True)
class Steps:
    """start, start + step, ... up to stop, which is included where a step meets it."""

    __pydantic_config__: ClassVar = FORBID
    start: float
    stop: float
    step: float

    def __post_init__(self) -> None:
        check_fields(self, step="> 0")
        if self.stop < self.start:
            raise ConfigError(f"stop = {self.stop:g} is below start = {self.start:g}.")

    @property
    def values(self) -> tuple[float | int, ...]:
        count = math.floor((self.stop - self.start) / self.step + 1e-9) + 1
        found = [self.start + i * self.step for i in range(count)]
        whole = all(float(x).is_integer() for x in (self.start, self.step))
        return tuple(int(x) if whole else float(f"{x:.12g}") for x in found)


@dataclass(frozen=True)
class Axis:
    """The values of one setting, of exactly one kind.

    grid: a list; range: numbers with a step; variants: named sets of settings, dotted path ->
    value. choice: a list; uniform, log_uniform, integers: lowest and highest value. when: axis ->
    value or values: elsewhere the axis does not apply.
    """

    __pydantic_config__: ClassVar = FORBID
    grid: tuple[Any, ...] | None = None
    range: Steps | None = None
    variants: dict[str, dict[str, Any]] | None = None
    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = None
    when: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        given = self.kinds
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has no values"
            allowed = ", ".join((*CELL_KINDS, *TUNED_KINDS))
            raise ConfigError(f"{what}: it must have exactly one of {allowed}.")
        kind = given[0]
        held = vars(self)[kind]
        if kind in ("grid", "choice", "variants") and not held:
            raise ConfigError(f"{kind} is empty: it must hold at least one value.")
        if kind in ("grid", "choice") and len(set(map(label, held))) < len(held):
            raise ConfigError(f"{kind} holds a value twice: {', '.join(map(label, held))}.")
        if kind in ("uniform", "log_uniform", "integers") and not held[0] < held[1]:
            raise ConfigError(f"{kind} = {list(held)} is not allowed: the first must be lower.")
        if kind == "log_uniform" and held[0] <= 0:
            raise ConfigError(f"log_uniform = {list(held)} is not allowed: it must be above 0.")

    @property
    def kinds(self) -> list[str]:
        return [k for k in (*CELL_KINDS, *TUNED_KINDS) if vars(self)[k] is not None]

    @property
    def is_tuned(self) -> bool:
        return self.kinds[0] in TUNED_KINDS

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of a grid, a range or variants (names), or a choice."""
        if self.range is not None:
            return self.range.values
        return tuple(self.grid or self.variants or self.choice or ())

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of real numbers."""
        if self.integers is not None:
            return self.integers[1] - self.integers[0] + 1
        return len(self.values) or math.inf

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all: those of a list, or the lowest and the highest."""
        return self.values or self.uniform or self.log_uniform or self.integers or ()


@dataclass(frozen=True)
class Unscheduled:
    """Every trial runs to its end."""

    __pydantic_config__: ClassVar = FORBID
    name: Literal["none"] = "none"


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving of tuning trials, within one method and cell.

    time: what a trial has spent, ``round`` or ``bytes`` (both ways, of all clients). grace: before
    it no trial is ended; at grace, grace * reduction, ... only the best 1/reduction go on. longest:
    of a whole trial; None is the experiment's rounds. (Li et al., 2020, arXiv:1810.05934)
    """

    __pydantic_config__: ClassVar = FORBID
    name: Literal["asha"] = "asha"
    time: Literal["round", "bytes"] = "round"
    grace: float = 1.0
    reduction: float = 3.0
    longest: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, grace="> 0", longest="> 0")
        if not self.reduction > 1:
            raise ConfigError(f"reduction = {self.reduction:g} is not allowed: it must be above 1.")
        if self.time == "bytes" and self.longest is None:
            raise ConfigError("longest is missing: with time = bytes, say how many bytes at most.")


@dataclass(frozen=True)
class RandomSearch:
    """Independent draws; the same draws for every method that has the axis."""

    __pydantic_config__: ClassVar = FORBID
    name: Literal["random"] = "random"


@dataclass(frozen=True)
class OptunaSearch:
    """Optuna's tree-structured Parzen estimator, one study per method and cell.

    batch: trials that are asked for at once, and told of together in a fixed order; so what comes
    next does not depend on which trial ended first.
    """

    __pydantic_config__: ClassVar = FORBID
    name: Literal["optuna"] = "optuna"
    batch: int = 4

    def __post_init__(self) -> None:
        check_fields(self, batch=">= 1")


@dataclass(frozen=True)
class Tuning:
    """Every method gets ``trials_per_method`` trials on validation data before test seeds run.

    per: once per ``method``, in its first cell; or in every ``cell``. metric: the validation score
    after the last round, nothing else. seed: of the tuning trials' training and of the draws; None
    is one above the highest test seed.
    """

    __pydantic_config__: ClassVar = FORBID
    trials_per_method: int
    per: Literal["method", "cell"] = "method"
    metric: Literal["validation"] = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, trials_per_method=">= 1")


@dataclass(frozen=True)
class SweepConfig:
    """A grid of experiments.

    base: settings that all trials have, inline or as a file. seeds: of training, a list, or how
    many, counted up from the base's; with ``vary_data`` the i-th seed also draws the data anew
    (scenario.seed + i).
    budgets: megabytes per client, both ways, at which methods are compared. Where the learning
    rate does not follow the end of the run and all clients take part in every round, one run up
    to the largest answers all of them; elsewhere each is a run of its own.
    """

    __pydantic_config__: ClassVar = FORBID
    name: str = "sweep"
    base: dict[str, Any] | str = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    seeds: tuple[int, ...] | int = 1
    vary_data: bool = False
    budgets: tuple[float, ...] = ()
    scheduler: Unscheduled | Asha = field(default_factory=Unscheduled)
    searcher: RandomSearch | OptunaSearch = field(default_factory=RandomSearch)
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        faults = []
        if not re.fullmatch(r"(?!.*\.\.)\w[\w.-]{0,79}", self.name, re.A):
            faults.append(
                f"name = {self.name!r} is not allowed: it names a folder, so it must be 1 to 80 "
                "letters, digits, '.', '_' or '-', without '..'."
            )
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            faults.append(f"seeds = {self.seeds!r} must be 1 or more, or a list without doubles.")
        if not all(0 < b < math.inf for b in self.budgets) or len(set(self.budgets)) < len(
            self.budgets
        ):
            faults.append(
                f"budgets = {list(self.budgets)} is not allowed: name megabytes per client above "
                "0, each once, such as [0.25, 1, 4]."
            )
        if self.tuning is not None and self.tuning.seed in self.seed_list:
            faults.append(
                f"tuning.seed = {self.tuning.seed} is a seed of the test trials too "
                f"({', '.join(map(str, self.seed_list))}): name another one, or leave it out."
            )
        if self.tuning is None and isinstance(self.scheduler, Asha):
            faults.append("scheduler = asha only ends tuning trials: add a section tuning.")
        if self.tuning is None and isinstance(self.searcher, OptunaSearch):
            faults.append("searcher = optuna only proposes tuning trials: add a section tuning.")
        if faults:
            raise ConfigError(faults)

    @property
    def seed_list(self) -> tuple[int, ...]:
        if not isinstance(self.seeds, int):
            return self.seeds
        first = self.base.get("seed", 0) if isinstance(self.base, Mapping) else 0
        first = first if isinstance(first, int) else 0  # load_sweep refuses others
        return tuple(range(first, first + self.seeds))

    @property
    def settings(self) -> dict[str, Any]:
        """The base, inline."""
        if isinstance(self.base, str):
            raise ConfigError("base names a file: load_sweep reads it into the config.")
        return self.base

    @property
    def tuning_seed(self) -> int:
        given = self.tuning.seed if self.tuning is not None else None
        return max(self.seed_list) + 1 if given is None else given


def label(value: Any) -> str:
    """A setting's value in a table or a name: a section's ``name``, a number without zeros."""
    if isinstance(value, Mapping):
        rest = [f"{k}={label(v)}" for k, v in value.items() if k != "name"]
        return " ".join([str(value["name"])] * ("name" in value) + rest)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(label, value)) if isinstance(value, list | tuple) else str(value)


def section_name(raw: Any) -> Any:
    """The type that a section asks for, None where it leaves that open."""
    return raw.get("name") if isinstance(raw, Mapping) else raw
