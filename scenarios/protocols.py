"""Protocols: which rows may be trained on, and what models are scored on besides.

Every protocol also has the population's own tests: the shared model on the whole test split of
what is trained on (``eval/global``), each client's model on its own (``eval/personal``). Few shots
and heterogeneity are settings of the scenario (``shots``, ``partition``), not protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import DataError, did_you_mean
from fl_core.seeds import derive
from scenarios.client_rows import ClientRows
from scenarios.data.dataset import TEST, Dataset
from scenarios.kept import Kept, in_domain, in_task, rest, task_names, without_domain
from scenarios.targets import Target, on_clients, on_rows

if TYPE_CHECKING:
    from scenarios.population import Population

Ints = npt.NDArray[np.int64]
FORBID = {"extra": "forbid"}
UNSEEN = "unseen"
"""The target of the clients that never train."""

Load = Callable[[str], Dataset]
"""A data set by the name that a config gives it."""


class _Everything:
    """What a protocol leaves as it is."""

    def kept(self, dataset: Dataset) -> Kept:
        """What may be trained on. ``dataset`` names a split for every row."""
        return Kept(np.arange(len(dataset)), dataset.classes)

    def unseen(self, num_clients: int, seed: int) -> Ints:
        """The clients that never train, ascending."""
        return np.empty(0, dtype=np.int64)

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        """What models are scored on besides; ``spec`` is the data set's name in the config."""
        return []


@dataclass(frozen=True)
class Standard(_Everything):
    """Nothing besides. ``neighbours``: other clients on whose test rows each model is scored too.

    They are drawn once per client; accuracy on them tells how far a personal model still serves
    anybody else.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["standard"] = "standard"
    neighbours: int = 0

    def __post_init__(self) -> None:
        check_fields(self, neighbours=">= 0")

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        if not self.neighbours:
            return []
        num_clients = population.num_clients
        if self.neighbours >= num_clients:
            raise DataError(
                f"scenario.protocol.neighbours = {self.neighbours}: with {num_clients} clients it "
                f"must be at most {num_clients - 1}."
            )
        rows = []
        for client in range(num_clients):
            rng = _rng(seed, "neighbours", client)
            others = np.delete(np.arange(num_clients), client)
            chosen = rng.choice(others, self.neighbours, replace=False)
            rows.append(np.unique(np.concatenate([population.test[int(c)] for c in chosen])))
        return [on_clients("neighbours", spec, dataset, population, ClientRows.of(rows))]


@dataclass(frozen=True)
class BaseToNovel(_Everything):
    """Train on the first half of the classes by name, score both halves.

    The first ceil(C / 2) classes of the sorted names are the base, the others novel (Zhou et al.,
    2022, arXiv:2203.05557; by name as in FLiP). Base rows are scored among base names, novel ones
    among novel names. ``local``: a client's own test rows among the classes that it trains on, for
    clients with disjoint classes (FedTPG, arXiv:2310.06123): partition ``disjoint_classes``.
    HM2 = HM(base, novel), HM3 = HM(local, base, novel), CM = (local + HM2) / 2.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["base_to_novel"] = "base_to_novel"

    def kept(self, dataset: Dataset) -> Kept:
        num_base = _num_base(dataset)
        base = np.flatnonzero(dataset.labels < num_base)
        return Kept(base, dataset.classes[:num_base])

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        num_base = _num_base(dataset)
        novel = (dataset.labels >= num_base) & (dataset.split == TEST)
        labels = np.where(novel, dataset.labels - num_base, -1)
        base = np.full(len(dataset), -1, dtype=np.int64)
        base[population.global_test] = population.labels[population.global_test]
        held = population.histogram() + population.histogram("test") > 0
        local = on_clients("local", spec, dataset, population, population.test)
        return [
            on_rows("base", spec, dataset, population.classes, base),
            on_rows("novel", spec, dataset, dataset.classes[num_base:], labels),
            replace(local, candidates=held, tasks=None),
        ]


@dataclass(frozen=True)
class LeaveDomainOut(_Everything):
    """Train on every domain but one, score its test rows: does it carry over to a new style?"""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["leave_domain_out"] = "leave_domain_out"
    domain: str = ""

    def kept(self, dataset: Dataset) -> Kept:
        return without_domain(dataset, self.domain, "scenario.protocol.domain")

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        held_out = in_domain(dataset, self.domain) & (dataset.split == TEST)
        only = sorted({dataset.classes[c] for c in dataset.labels[held_out]})
        unknown = [name for name in only if name not in population.classes]
        if unknown:
            raise DataError(
                f"scenario.protocol: {len(unknown)} classes stand in domain {self.domain!r} only, "
                f"such as {unknown[:3]}. Use protocol leave_task_out, which scores that domain "
                "among its own classes."
            )
        labels = _relabelled(dataset, held_out, population.classes)
        return [on_rows("held_out", spec, dataset, population.classes, labels)]


@dataclass(frozen=True)
class LeaveTaskOut(_Everything):
    """Train on every task but one, score that one among its own classes (FedOA, arXiv:2505.01075).

    A task is a domain of the data set, with classes of its own. ``task`` may name a family of
    tasks instead: all of them are left out, and each is scored among its own classes.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["leave_task_out"] = "leave_task_out"
    task: str = ""

    def kept(self, dataset: Dataset) -> Kept:
        held_out = in_task(dataset, self.task)
        if not held_out.any() or held_out.all():
            known = task_names(dataset)
            raise DataError(
                f"scenario.protocol.task = {self.task!r} is not one of several tasks of "
                f"{dataset.name!r} (it has: {', '.join(known)}).{did_you_mean(self.task, known)}"
            )
        return rest(dataset, held_out)

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        of_task = in_task(dataset, self.task)
        classes = tuple(dataset.classes[c] for c in np.unique(dataset.labels[of_task]))
        labels = _relabelled(dataset, of_task & (dataset.split == TEST), classes)
        return [on_rows("held_out", spec, dataset, classes, labels)]


@dataclass(frozen=True)
class CrossDataset(_Everything):
    """Train on one data set, score the test rows of others by the names of their classes."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["cross_dataset"] = "cross_dataset"
    datasets: tuple[str, ...] = ()

    def kept(self, dataset: Dataset) -> Kept:
        if not self.datasets:
            raise DataError(
                "scenario.protocol.datasets is empty: name at least one data set to score, such "
                "as [flags]; `fedarena list datasets` shows the packaged ones."
            )
        return super().kept(dataset)

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        found: list[Target] = []
        for name in self.datasets:
            other = load(name)
            clash = [target.dataset for target in found if target.name == f"dataset/{other.name}"]
            if clash:
                raise DataError(
                    f"scenario.protocol.datasets: {clash[0]!r} and {name!r} are both called "
                    f"{other.name!r}, so their metrics would be too. Name each data set once, or "
                    f"add ?name=... to one."
                )
            tests = other.split == TEST
            labels = np.where(tests if tests.any() else True, other.labels, -1)
            title = f"dataset/{other.name}"
            found.append(on_rows(title, name, other, other.classes, labels))
        return found


@dataclass(frozen=True)
class UnseenClients(_Everything):
    """Some clients never train; they are scored as newcomers (Yuan et al., 2022, arXiv:2110.14216).

    ``fraction`` of the clients, at least one. ``newcomer``: what such a client uses: the ``shared``
    model; the ``mean_personal`` model, with the mean of the others' personal tensors; or ``adapt``,
    the shared model after ``adapt_steps`` steps on its own training rows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID
    name: Literal["unseen_clients"] = "unseen_clients"
    fraction: float = 0.2
    newcomer: Literal["shared", "mean_personal", "adapt"] = "shared"
    adapt_steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, fraction="from 0 to below 1", adapt_steps=">= 1")

    def unseen(self, num_clients: int, seed: int) -> Ints:
        count = max(1, round(self.fraction * num_clients))
        if count >= num_clients:
            raise DataError(
                f"scenario.protocol.fraction = {self.fraction}: of {num_clients} clients at least "
                "one must be left to train. Lower it, or raise scenario.num_clients."
            )
        return np.sort(_rng(seed, "unseen").choice(num_clients, count, replace=False))

    def targets(
        self, spec: str, dataset: Dataset, population: Population, load: Load, seed: int
    ) -> list[Target]:
        nothing = np.empty(0, dtype=np.int64)
        unseen = set(population.unseen.tolist())
        rows = [
            population.test[client] if client in unseen else nothing
            for client in range(population.num_clients)
        ]
        return [on_clients(UNSEEN, spec, dataset, population, ClientRows.of(rows))]


Protocol = Standard | BaseToNovel | LeaveDomainOut | LeaveTaskOut | CrossDataset | UnseenClients


def _num_base(dataset: Dataset) -> int:
    if len(dataset.classes) < 4:
        raise DataError(
            f"base_to_novel needs 4 classes or more, since among one class every answer is right; "
            f"{dataset.name!r} has {len(dataset.classes)}. Use another protocol."
        )
    return -(-len(dataset.classes) // 2)


def _relabelled(dataset: Dataset, chosen: npt.NDArray[np.bool_], classes: tuple[str, ...]) -> Ints:
    """Labels [N] as places in ``classes`` for the chosen rows, -1 for the others."""
    place = np.searchsorted(np.array(classes), np.array(dataset.classes))
    return np.where(chosen, place[dataset.labels], -1)


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "protocol", *names))
