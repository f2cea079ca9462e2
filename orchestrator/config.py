"""The experiment's config: a frozen dataclass of frozen dataclasses; defaults stand on the fields.

``loading.py`` turns YAML and dotted overrides into an ``ExperimentConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fl_core.attacks import AnyAttack, NoAttack
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.union import AnyBackbone
from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.federation import AnyFederation, FedAvg
from fl_core.learners import AnyLearner, CoOp
from fl_core.learners.base import writes_answers
from fl_core.participation import Participation
from fl_core.remote import check_disk, check_url
from fl_core.wire import FP32, Codec, WholeCodec, for_broadcast
from fl_core.work import Training
from scenarios.augment import Augmentation
from scenarios.scenario import Scenario
from scenarios.scored import Headline

FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class Link:
    """The network between the server and a share of the clients.

    fraction: of the clients that have this link. up_mbps, down_mbps: 10^6 bits per second, from
    and to the client; latency_s: before the first bit of each message arrives.
    """

    __pydantic_config__: ClassVar = FORBID
    up_mbps: float = 10.0
    down_mbps: float = 50.0
    latency_s: float = 0.05
    fraction: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self, up_mbps="> 0", down_mbps="> 0", latency_s=">= 0", fraction="above 0 to 1"
        )


@dataclass(frozen=True)
class Budget:
    """What a run may send; a round begins only if all of its messages fit. None: no limit.

    megabytes: 10^6 bytes, headers included, of what goes ``up``, ``down`` or both ways
    (``direction``), for each client or for all together in ``total`` (``per``). seconds: that the
    rounds' messages take on the declared links.
    """

    __pydantic_config__: ClassVar = FORBID
    megabytes: float | None = None
    direction: Literal["up", "down", "both"] = "both"
    per: Literal["total", "client"] = "total"
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, megabytes="> 0", seconds="> 0")


@dataclass(frozen=True)
class Communication:
    """How updates and broadcasts are turned into bytes, and how many there may be.

    codec: of both directions; up, down: of one, in its place. With ``top_k`` as ``codec`` the
    broadcast goes whole, in the codec of top_k's values. links: the networks of the clients, whose
    fractions sum to 1; empty where none is declared. max_update_norm: L2 norm over all tensors of
    an update above which the server drops it.
    """

    __pydantic_config__: ClassVar = FORBID
    codec: Codec = field(default_factory=FP32)
    up: Codec | None = None
    down: WholeCodec | None = None
    budget: Budget = field(default_factory=Budget)
    links: tuple[Link, ...] = ()
    max_update_norm: float | None = None

    def __post_init__(self) -> None:
        faults = []
        try:
            check_fields(self, max_update_norm="> 0")
        except ConfigError as error:
            faults += error.faults
        shares = sum(link.fraction for link in self.links)
        if self.links and abs(shares - 1) > 1e-9:
            faults.append(f"links have fractions that sum to {shares:g}; they must sum to 1.")
        if self.budget.seconds is not None and not self.links:
            faults.append(
                f"budget.seconds = {self.budget.seconds:g} is not allowed without links: say how "
                "fast they are, e.g. communication.links=[{up_mbps: 10, down_mbps: 50}]."
            )
        if faults:
            raise ConfigError(faults)

    @property
    def uplink(self) -> Codec:
        return self.codec if self.up is None else self.up

    @property
    def downlink(self) -> WholeCodec:
        return for_broadcast(self.codec) if self.down is None else self.down


@dataclass(frozen=True)
class Evaluation:
    """When models are scored: after every so many rounds (0: none), and always after the last.

    references: score zero-shot (one template, and the ensemble of all) and the majority class too,
    once, before the first round. headline: the metric by which rounds are chosen and that tables
    show first; null is accuracy where classes are told apart, and rougeL where answers are written,
    which may be judged by exact_match too.
    """

    __pydantic_config__: ClassVar = FORBID
    every: int = 1
    references: bool = True
    headline: Headline | None = None

    def __post_init__(self) -> None:
        check_fields(self, every=">= 0")


@dataclass(frozen=True)
class Slice:
    """The share of a machine that one client actor owns. memory_gb: GiB of main memory."""

    __pydantic_config__: ClassVar = FORBID
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, cpus=">= 0", gpus=">= 0", memory_gb=">= 0")
        if not self.cpus and not self.gpus:
            raise ConfigError("a slice needs cpus or gpus above 0.")


@dataclass(frozen=True)
class AutoSlice:
    """One CPU where the cluster has no GPU; else the share of a GPU that the work needs.

    ``resolve`` puts the slice that it comes to in its place.
    """

    __pydantic_config__: ClassVar = FORBID
    cpus: ClassVar[float] = 1.0
    gpus: ClassVar[float] = 0.0
    memory_gb: ClassVar[float] = 0.0
    name: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Resources:
    """Where the work runs. Nothing here changes a result, save ``group_size`` and ``threads``.

    executor: ``ray``, or ``inline`` for this process (debugger, notebook). address: a running Ray
    cluster; None starts a local one. clients_per_actor: how many clients share one actor: 1 is one
    actor per client, ``auto`` as many actors as the cluster has slices. slice: what one
    actor owns; ``auto`` goes by what the work needs. group_size: clients that are trained as one
    batch; ``auto`` takes a quarter of the cohort, at most 16, and fewer where the
    texts of a few fill a CPU; 16 where only the data tell how many clients there are. threads: CPU
    threads of each actor.
    retries: how often a client that failed is tried again before it is dropped. timeout_s: seconds
    after which a silent actor is replaced.
    """

    __pydantic_config__: ClassVar = FORBID
    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None
    clients_per_actor: int | Literal["auto"] = "auto"
    slice: Slice | AutoSlice = field(default_factory=Slice)
    group_size: int | Literal["auto"] = "auto"
    threads: int = 1
    retries: int = 1
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        numbers = {n: v for n, v in vars(self).items() if isinstance(v, int | float)}
        bounds = {"clients_per_actor": ">= 1", "group_size": ">= 1", "threads": ">= 1"}
        bounds |= {"retries": ">= 0", "timeout_s": "> 0"}
        check_fields(self, **{n: b for n, b in bounds.items() if n in numbers})


@dataclass(frozen=True)
class Tracking:
    """MLflow. uri: None is ``sqlite:///mlflow.db`` in the working folder; enabled: false is off."""

    __pydantic_config__: ClassVar = FORBID
    enabled: bool = True
    uri: str | None = None
    experiment: str = "fedarena"


AT_A_URL = {"folder": "mirror", "store": "shared_store"}
"""Settings that name a folder of one node, each with the setting that keeps it at a URL."""
PLACES = ("name", "folder", "store", "mirror", "shared_store", "tracking")
"""Settings that say how a run is called and where it is kept, and nothing of what it computes."""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: who has which data, what is trained, how rounds go, at which price.

    name: of the run's folder and of its MLflow run; made up from the parts where it is None.
    augmentation: what a training step sees of an image. participation: clients that come, go and
    are late. attack: clients that work against the others.
    seed: of training (cohorts, batches, initial values); the data have ``scenario.seed``.
    folder: where run folders are made. store: where what is computed once is kept. mirror: a URL
    that fsspec knows, below which runs are copied, and found again where ``folder`` has not got
    them. shared_store: a URL from which the stores of all nodes fill.
    """

    __pydantic_config__: ClassVar = FORBID
    name: str | None = None
    seed: int = 0
    backbone: AnyBackbone = field(default_factory=OpenClip)
    scenario: Scenario = field(default_factory=Scenario)
    learner: AnyLearner = field(default_factory=CoOp)
    federation: AnyFederation = field(default_factory=FedAvg)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    participation: Participation = field(default_factory=Participation)
    attack: AnyAttack = field(default_factory=NoAttack)
    communication: Communication = field(default_factory=Communication)
    evaluation: Evaluation = field(default_factory=Evaluation)
    resources: Resources = field(default_factory=Resources)
    tracking: Tracking = field(default_factory=Tracking)
    folder: Path = Path("runs")
    store: Path = Path("fedarena-store")
    mirror: str | None = None
    shared_store: str | None = None

    def __post_init__(self) -> None:
        places = {"mirror": self.mirror, "shared_store": self.shared_store}
        faults = [fault for name, url in places.items() for fault in check_url(name, url)]
        for name, setting in AT_A_URL.items():
            instead = f"leave it out, and set {setting} to the URL."
            faults += check_disk(name, vars(self)[name], instead)
        if faults:
            raise ConfigError(faults)

    @property
    def headline(self) -> Headline:
        """The metric by which rounds are chosen, and that tables show first."""
        usual: Headline = "rougeL" if writes_answers(self.learner) else "accuracy"
        return self.evaluation.headline or usual
