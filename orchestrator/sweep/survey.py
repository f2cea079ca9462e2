"""What all trials of a sweep need, looked at and computed once, before the first one runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from cluster.reserve import Slices, cluster_nodes, release, reserve
from cluster.slices import Bundle, count_slices, slice_bundle
from fl_core.errors import ConfigError, DataError, FedarenaError, ResourceError
from orchestrator.config import ExperimentConfig
from orchestrator.events import Progress
from orchestrator.executors import Executor, InlineExecutor, RayExecutor
from orchestrator.experiment import (
    Experiment,
    compute_features,
    input_kinds,
    prepare_experiment,
)
from orchestrator.host import num_slots
from orchestrator.loading import to_dict
from orchestrator.plan import outline
from scenarios.features import FeatureKey, FeatureStore
from scenarios.shared_store import shared_at

FREE_WITHIN_S = 10.0
"""Slices that are not free by then are taken to be other work's."""


class Survey:
    """Experiments of many configs; data and backbone are prepared once where they are the same."""

    def __init__(self) -> None:
        self._prepared: dict[str, Experiment | FedarenaError] = {}

    def experiment(self, config: ExperimentConfig) -> Experiment:
        """DataError or ConfigError, the same one every time, where it cannot be."""
        return self._experiment(_needs(config), config)

    def _experiment(self, key: str, config: ExperimentConfig) -> Experiment:
        if key not in self._prepared:
            try:
                self._prepared[key] = prepare_experiment(config)
            except FedarenaError as error:
                self._prepared[key] = error
        found = self._prepared[key]
        if isinstance(found, FedarenaError):
            raise found
        return replace(found, config=config)

    def check(self, configs: Iterable[ExperimentConfig]) -> None:
        """ConfigError with all that only data and backbone can tell, each fault once."""
        faults: dict[str, str] = {}
        looked_at: set[str] = set()
        for config in configs:
            budget = config.communication.budget
            is_limited = budget.megabytes is not None or budget.seconds is not None
            needs = _needs(config)
            learner = needs + json.dumps(to_dict(config.learner))
            try:
                experiment = self._experiment(needs, config)
                if is_limited or learner not in looked_at:
                    looked_at.add(learner)
                    outline(experiment)
            except (ConfigError, DataError) as error:
                for fault in error.faults if isinstance(error, ConfigError) else [str(error)]:
                    faults.setdefault(fault, str(config.name))
        if faults:
            raise ConfigError([f"{fault} (in {name})" for fault, name in faults.items()])

    def missing_features(self) -> list[Experiment]:
        """Of each distinct set of features that the store lacks, one experiment that reads it."""
        found: dict[tuple[str, ...], Experiment] = {}
        for experiment in self._prepared.values():
            if isinstance(experiment, Experiment):
                store = _store_of(experiment)
                lacks = [k.digest for k in experiment.all_features if not store.holds(k)]
                if lacks:
                    found.setdefault(tuple(sorted(lacks)), experiment)
        return list(found.values())

    def features(self) -> dict[FeatureKey, bool]:
        """Every kind of features that the experiments read, and whether the store holds it."""
        return {
            key: _store_of(experiment).holds(key)
            for experiment in self._prepared.values()
            if isinstance(experiment, Experiment)
            for key in experiment.all_features
        }


def _needs(config: ExperimentConfig) -> str:
    """What data, backbone and features of a config depend on: the same for many of its kind."""
    return json.dumps(
        [
            to_dict(config.backbone),
            to_dict(config.scenario),
            [sorted(config.learner.inputs), input_kinds(config)],
            to_dict(config.augmentation),
            config.evaluation.references,
            config.headline,
            bool(config.resources.slice.gpus),
            str(config.store),
            config.shared_store,
        ]
    )


def _store_of(experiment: Experiment) -> FeatureStore:
    return FeatureStore(experiment.config.store, shared_at(experiment.config.shared_store))


def fill_store(experiments: Sequence[Experiment], listen: Callable[[Progress], None]) -> None:
    """Compute what the feature store lacks, on all slices of the cluster."""
    for experiment in experiments:
        with _executor(experiment.config) as executor:
            for progress in compute_features(experiment, executor):
                listen(progress)


@contextmanager
def _executor(config: ExperimentConfig) -> Iterator[Executor]:
    resources = config.resources
    if resources.executor == "inline":
        yield InlineExecutor()
        return
    slices = _free_slices(config, slice_bundle(**vars(resources.slice)))
    executor = RayExecutor(slices, resources.timeout_s)
    try:
        yield executor
    finally:
        executor.close()
        release(slices)


def _free_slices(config: ExperimentConfig, bundle: Bundle) -> Slices:
    """All slices of the cluster where nobody else holds any, or as many as a trial gets."""
    try:
        return reserve(max(1, count_slices(cluster_nodes(), bundle)), bundle, FREE_WITHIN_S)
    except ResourceError:
        return reserve(num_slots(config), bundle)
