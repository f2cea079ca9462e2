"""A scenario: who has which data and what is measured, and how both are made from a data set."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fl_core.checks import check_fields
from fl_core.errors import DataError
from scenarios.carve import Cut, with_test_split
from scenarios.client_rows import ClientRows
from scenarios.data.dataset import Dataset
from scenarios.dealing import deal
from scenarios.kept import take
from scenarios.partitions import Dirichlet, Natural, Partition
from scenarios.population import Population
from scenarios.protocols import Load, Protocol, Standard
from scenarios.public import public_rows
from scenarios.targets import Target, home_target

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
DEFAULT_NUM_CLIENTS = 10


@dataclass(frozen=True)
class Scenario:
    """Who has which data. ``seed`` draws the data only: training has a seed of its own.

    ``num_clients``: None is as many as the data name for the partition ``natural``, or as the
    manifest holds, and 10 otherwise. ``shots``: training rows per class; all rows where it is None.
    ``shots_per``: over the whole federation, or of each class that a client holds.
    ``validation_fraction``: of the training split, where the data name no validation split; 0 is no
    validation, and with ``shots`` any value above 0 means at most min(shots, 4) rows per class.
    ``test_fraction`` counts only where the data name no test split. ``public_fraction``: of the
    training rows, before anything else is drawn, that no client gets and the server may have
    without their labels. ``protocol``: which rows may be
    trained on, and what models are scored on besides.
    ``manifest``: a population written by ``Population.save`` that is used again instead of a new
    one. What is set besides to another value than the field's default must be what the manifest was
    built with; the protocol must be named, and what it draws is drawn as it was then.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    dataset: str = "emoji_coarse"
    num_clients: int | None = None
    partition: Partition = field(default_factory=Dirichlet)
    shots: int | None = None
    shots_per: Literal["federation", "client"] = "federation"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    public_fraction: float = 0.0
    protocol: Protocol = field(default_factory=Standard)
    seed: int = 0
    manifest: Path | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_clients=">= 1",
            shots=">= 1",
            validation_fraction="from 0 to below 1",
            test_fraction="from 0 to below 1",
            public_fraction="from 0 to below 1",
        )
        is_told = isinstance(self.partition, Natural) or self.manifest is not None
        if self.num_clients is None and not is_told:
            object.__setattr__(self, "num_clients", DEFAULT_NUM_CLIENTS)


def build_population(scenario: Scenario, dataset: Dataset) -> Population:
    """Deal the rows of ``dataset`` out to clients, or read who has which from the manifest.

    The training rows are partitioned; validation and test rows follow (see ``deal``), so a client
    is tested on its own label distribution. DataError says why a request is impossible, and what
    would work.
    """
    if scenario.manifest is not None:
        population = Population.load(scenario.manifest)
        population.check_dataset(dataset)
        refuse_difference(scenario, population)
        return population
    cut = Cut(scenario.shots, scenario.validation_fraction, scenario.test_fraction, scenario.seed)
    whole = with_test_split(dataset, cut)
    kept = scenario.protocol.kept(whole)
    public = public_rows(whole, kept.rows, scenario.public_fraction, scenario.seed)
    kept = kept._replace(rows=np.setdiff1d(kept.rows, public))
    part = take(whole, kept)
    dealt = deal(part, cut, scenario.partition, scenario.num_clients, shots_per=scenario.shots_per)
    dealt = dealt.at(kept.rows)
    labels, domain_ids = np.full((2, len(dataset)), -1, dtype=np.int64)
    code = np.full(len(dataset), -1, dtype=np.int64)
    code[kept.rows] = part.labels
    for used in (dealt.train.rows, dealt.global_validation, dealt.global_test):
        labels[used], domain_ids[used] = code[used], dataset.domain_ids[used]
    unseen = scenario.protocol.unseen(len(dealt.train.counts), scenario.seed)
    names = {} if dealt.client_names is None else {"clients": dealt.client_names}
    population = Population(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        classes=kept.classes,
        labels=labels,
        train=dealt.train,
        validation=dealt.validation,
        test=dealt.test,
        global_validation=np.setdiff1d(dealt.global_validation, _rows_of(unseen, dealt.validation)),
        global_test=dealt.global_test,
        domains=dataset.domains,
        domain_ids=domain_ids,
        unseen=unseen,
        public=public,
        provenance={"scenario": _plain(scenario)} | names,
    )
    if len(population.clients_without_test):
        logger.info("%d clients have no test row", len(population.clients_without_test))
    return population


def build_targets(
    scenario: Scenario, dataset: Dataset, population: Population, load: Load
) -> list[Target]:
    """What models are scored on, ``home`` first; ``load`` gets other data sets by name."""
    built = population.provenance.get("scenario", {}) if scenario.manifest is not None else {}
    seed = built.get("seed", scenario.seed)
    cut = Cut(None, 0.0, built.get("test_fraction", scenario.test_fraction), seed)
    whole, spec = with_test_split(dataset, cut), scenario.dataset
    home = home_target(population, dataset, spec)
    return [home, *scenario.protocol.targets(spec, whole, population, load, seed)]


def _rows_of(clients: Ints, held: ClientRows) -> Ints:
    return np.concatenate([np.empty(0, dtype=np.int64), *(held[int(k)] for k in clients)])


def refuse_difference(scenario: Scenario, population: Population) -> None:
    """DataError where a setting is neither its default nor what the manifest was built with."""
    built = population.provenance.get("scenario", {}) | {"num_clients": population.num_clients}
    usual = _plain(Scenario()) | {"num_clients": None}
    usual["protocol"] = built.get("protocol", usual["protocol"])  # it also says what is scored
    faults = [
        f"scenario.{name} = {value!r}, but it was built with {built.get(name)!r}"
        for name, value in _plain(scenario).items()
        if name not in ("dataset", "manifest") and value not in (usual[name], built.get(name))
    ]
    if faults:
        raise DataError(
            f"scenario.manifest = {str(scenario.manifest)!r} disagrees with other settings: "
            f"{'; '.join(faults)}. Leave them out, or leave the manifest out."
        )


def _plain(scenario: Scenario) -> dict[str, Any]:
    """As it is after a way through JSON."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(scenario), default=str))
    return values
