"""What a run would do and send, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from fl_core import wire
from fl_core.seeds import generator
from orchestrator.checkpoint import RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import prepare_experiment, run_folder
from scenarios.features import FeatureStore


@dataclass(frozen=True)
class Plan:
    """round_bytes: up and down over a full cohort, an upper bound; total_bytes: over all rounds."""

    run: str
    rounds: int
    cohort: int
    group_size: int
    num_train: int
    num_test: int
    shared_floats: int
    round_bytes: int
    total_bytes: int
    state: str


def make_plan(config: ExperimentConfig) -> Plan:
    """The plan of a resolved experiment. Loads data and backbone, computes nothing."""
    experiment = prepare_experiment(config)
    setup, rule = experiment.setup(), config.federation
    frozen = setup.learner.prepare(experiment.backbone, setup.task)
    initial = setup.learner.init(frozen, generator(setup.seed, "init"))
    specs = setup.learner.tensors(initial)
    broadcast = rule.broadcast(rule.init_server(initial, specs))
    down = {name: tuple(tensor.shape) for name, tensor in broadcast.items()}
    sent = rule.update_names(rule.scopes(specs, 0))
    up = {name: shape for name, shape in down.items() if name in sent}
    num_clients = experiment.training_population.num_clients
    cohort = min(rule.clients_per_round or num_clients, num_clients)
    rounds = rule.rounds if initial else 0
    both = sum(wire.message_bytes(setup.codec, shapes) for shapes in (down, up))
    round_bytes = cohort * both if rule.communicates else 0
    assert isinstance(config.resources.group_size, int)  # resolved before
    return Plan(
        run=run_folder(config).name,
        rounds=rounds,
        cohort=cohort,
        group_size=config.resources.group_size,
        num_train=int(experiment.population.num_examples.sum()),
        num_test=len(experiment.population.global_test),
        shared_floats=sum(tensor.numel() for tensor in broadcast.values()),
        round_bytes=round_bytes,
        total_bytes=rounds * round_bytes,
        state=_state(config, experiment.features.values()),
    )


def _state(config: ExperimentConfig, keys: object) -> str:
    store = RunStore(run_folder(config))
    if store.read_text("DONE") is not None:
        return "finished"
    done = max(0, len(store.records()) - 1)
    features = FeatureStore(config.store)
    stored = all(features.open(key) is not None for key in keys)  # type: ignore[attr-defined]
    return f"{done} rounds done" if done else ("features stored" if stored else "new")
