"""What a run would do and send, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fl_core.errors import ConfigError
from fl_core.round import plan_round
from fl_core.seeds import generator
from fl_core.setting import Setting, Standing, expected_loads
from fl_core.types import Params, ServerState
from fl_core.wire import shapes_of
from orchestrator.budget import (
    Forecast,
    Purse,
    draw_links,
    horizon,
    no_round_error,
    one_run_answers,
    rounds_to_schedule,
)
from orchestrator.checkpoint import RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import Experiment, prepare_experiment, run_folder
from orchestrator.privacy import expected_privacy
from scenarios.features import FeatureKey, FeatureStore
from scenarios.shared_store import shared_at


@dataclass(frozen=True)
class Outline:
    """A run before its first round: where it starts, who can train, what it may send.

    setting: its rule's ``rounds`` are those over which the learning rate falls. initial: the
    learner's tensors, empty where nothing is trained.
    """

    setting: Setting
    purse: Purse
    clients: Sequence[int]
    initial: Params
    server: ServerState

    @property
    def max_rounds(self) -> int:
        """The rounds that are asked for; the budget may admit fewer."""
        return self.setting.rule.rounds if self.initial else 0

    @property
    def standing(self) -> Standing:
        shapes = shapes_of(self.setting.rule.broadcast(self.server))
        return Standing(0, shapes, self.server.changed)

    @cached_property
    def forecast(self) -> Forecast:
        return horizon(self.setting, self.purse, self.standing, self.clients, self.max_rounds)

    @property
    def first_client_bytes(self) -> int:
        """What the busiest client of the first round sends and receives; 0 where none trains."""
        if not self.max_rounds:
            return 0
        plan = plan_round(self.setting, 0, self.clients)
        loads = expected_loads(self.setting, self.standing, plan.cohort)
        return max((load.up + load.down for load in loads.values()), default=0)

    @property
    def expected_rounds(self) -> int:
        """The rounds that the run will have if every client answers."""
        return self.forecast.rounds if self.purse.is_limited else self.max_rounds


def outline(experiment: Experiment) -> Outline:
    """The outline of an experiment. ConfigError where its budget admits no round, or settings name
    clients that it does not have.
    """
    config, setup = experiment.config, experiment.setup()
    num_clients = experiment.population.num_clients  # which may come from the data
    if faults := config.participation.faults(num_clients) + config.attack.faults(num_clients):
        raise ConfigError(faults)
    frozen = setup.learner.prepare(experiment.backbone, setup.home.task)
    initial = setup.learner.init(frozen, generator(setup.seed, "init"))
    specs, terms = setup.learner.tensors(initial), config.communication
    clients = np.flatnonzero(np.diff(setup.offsets)).tolist()  # those with data to train on
    assert isinstance(config.resources.group_size, int)  # resolved before the run
    setting = Setting(
        setup.rule,
        setup.up,
        specs,
        setup.seed,
        config.resources.group_size,
        down=setup.down,
        max_update_norm=terms.max_update_norm if setup.rule.communicates else None,
        participation=config.participation,
    )
    purse = Purse(terms.budget, draw_links(terms.links, setup.seed, clients))
    server = setup.rule.init_server(initial, specs, len(clients))
    whole = Outline(setting, purse, clients, initial, server)
    if not (purse.is_limited and whole.max_rounds):
        return whole
    if not whole.forecast.rounds:
        raise no_round_error(setting, purse, whole.standing, clients)
    rounds = rounds_to_schedule(config.training, whole.max_rounds, whole.forecast)
    rule = replace(config.federation, rounds=rounds)
    return replace(whole, setting=replace(setting, rule=rule))


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    rounds: that its budget admits; asked_rounds: without a budget. round_up_bytes and
    round_down_bytes: of the first round, over its cohort; total_bytes: both ways over all rounds,
    if every client answers; link_s: seconds that all rounds' messages take, where links are
    declared. one_run_answers: whether this run's first rounds are the run of each smaller budget.
    privacy: the epsilon that it spends at most, or why there is none; None where none is promised.
    """

    run: str
    rounds: int
    asked_rounds: int
    cohort: int
    group_size: int
    num_train: int
    num_test: int
    shared_floats: int
    round_up_bytes: int
    round_down_bytes: int
    total_bytes: int
    link_s: float | None
    one_run_answers: bool
    privacy: str | None
    state: str


def make_plan(config: ExperimentConfig) -> Plan:
    """The plan of a resolved experiment. Loads data and backbone, computes nothing."""
    experiment = prepare_experiment(config)
    run = outline(experiment)
    rule, forecast = config.federation, run.forecast
    broadcast = rule.broadcast(run.server)
    num_clients = len(run.clients)
    return Plan(
        run=run_folder(config).name,
        rounds=forecast.rounds,
        asked_rounds=rule.rounds if run.initial else 0,
        cohort=min(rule.clients_per_round or num_clients, num_clients),
        group_size=run.setting.group_size,
        num_train=int(experiment.training_population.num_examples.sum()),
        num_test=len(experiment.population.global_test),
        shared_floats=sum(tensor.numel() for tensor in broadcast.values()),
        round_up_bytes=forecast.first.up,
        round_down_bytes=forecast.first.down,
        total_bytes=forecast.total.up + forecast.total.down,
        link_s=forecast.seconds if run.purse.links else None,
        one_run_answers=one_run_answers(
            config.training, config.communication, config.federation, config.participation
        ),
        privacy=expected_privacy(
            config, experiment.training_population.num_examples.tolist(), forecast.rounds
        ),
        state=_state(config, experiment.all_features),
    )


def _state(config: ExperimentConfig, keys: Sequence[FeatureKey]) -> str:
    store = RunStore(run_folder(config))
    if store.read_text("DONE") is not None:
        return "finished"
    done = max(0, len(store.records()) - 1)
    features = FeatureStore(config.store, shared_at(config.shared_store))
    stored = all(features.holds(key) for key in keys)
    return f"{done} rounds done" if done else ("features stored" if stored else "new")
