"""An experiment made ready: data, population, backbone and features, from a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fl_core.backbones.token_rows import RESPONSE_IDS, is_token_ids
from fl_core.backbones.union import Backbone, load_backbone, modality, prepare_backbone
from fl_core.errors import ConfigError
from fl_core.learners import Learner, ZeroShot
from fl_core.learners.base import writes_answers
from fl_core.types import Task
from fl_core.wire import FP32
from orchestrator.answers import check_answers
from orchestrator.config import ExperimentConfig
from orchestrator.events import Progress
from orchestrator.executors import Call, Executor
from orchestrator.jobs import EncodeJob, EncodeReply, Setup, TargetData
from orchestrator.loading import config_hash
from orchestrator.shared_backbone import share_backbone
from scenarios.augment import Augmentation
from scenarios.data.catalogue import (
    PACKAGED_BACKBONES,
    PACKAGED_LANGUAGE_MODELS,
    check_overlap,
    load_dataset,
)
from scenarios.data.dataset import Dataset
from scenarios.encode import chunk_rows
from scenarios.features import FeatureKey, FeatureStore, Output
from scenarios.population import Population
from scenarios.scenario import build_population, build_targets
from scenarios.shared_store import shared_at
from scenarios.targets import Target, refuse_overlap

ENCODE_BATCH = 64
"""Items per pass through the backbone; part of the features' key."""

OUTPUTS: dict[str, Output] = {
    "features": "global",
    "patches": "patches",
    "tokens": "tokens",
    "token_ids": "token_ids",
    "last_token": "last_token",
}
"""What the backbone has to put out for each kind of input that a learner may ask for."""


REFERENCES: Mapping[str, Learner] = {
    "zero_shot": ZeroShot(),
    "zero_shot_ensemble": ZeroShot(ensemble=True),
}
"""Untrained learners that every run on images is compared with."""


def references(config: ExperimentConfig) -> Mapping[str, Learner]:
    """Untrained learners to compare a run with.

    A language model without adapters tells classes by their names, or, with a head that would have
    to be trained first, not at all; the majority class is always there.
    """
    if not config.evaluation.references:
        return {}
    if modality(config.backbone) == "image":
        return REFERENCES
    learner = config.learner
    return {"zero_shot": learner} if learner.transfers else {}


@dataclass(frozen=True)
class Experiment:
    """Everything that does not change while an experiment runs.

    datasets, features: by the data set's name in the config; features by kind of input within.
    targets: what is scored, ``home`` first. views: of the training images, by kind of input.
    """

    config: ExperimentConfig
    datasets: Mapping[str, Dataset]
    population: Population
    targets: Sequence[Target]
    backbone: Backbone
    features: Mapping[str, Mapping[str, FeatureKey]]
    views: Mapping[str, FeatureKey] = field(default_factory=dict)

    @property
    def _is_fresh(self) -> bool:
        return self.config.augmentation.views == "fresh"

    @property
    def references(self) -> Mapping[str, Learner]:
        return references(self.config)

    @property
    def all_features(self) -> list[FeatureKey]:
        stored = [key for keys in self.features.values() for key in keys.values()]
        return [*stored, *self.views.values()]

    @property
    def training_population(self) -> Population:
        """Who trains: the clients, or for a pooled rule the one that holds everything."""
        trained = self.population.participants()
        return trained.pooled() if self.config.federation.pooled else trained

    def setup(self) -> Setup:
        """What the client actors have to know."""
        config, train = self.config, self.training_population.train
        return Setup(
            key=config_hash(config),
            learner=config.learner,
            rule=config.federation,
            training=config.training,
            up=config.communication.uplink if config.federation.communicates else FP32(),
            down=config.communication.downlink if config.federation.communicates else FP32(),
            seed=config.seed,
            threads=config.resources.threads,
            gpu_share=config.resources.slice.gpus,
            retries=config.resources.retries,
            backbone=self.backbone.folder,
            store=config.store,
            targets={target.name: self._data(target) for target in self.targets},
            references=self.references,
            augmentation=config.augmentation,
            views=self.views,
            dataset=self.datasets[config.scenario.dataset] if self._is_fresh else None,
            offsets=train.offsets,
            rows=train.rows,
            attack=config.attack,
            shared_store=config.shared_store,
        )

    def _data(self, target: Target) -> TargetData:
        task = Task(target.classes, target.templates)
        features = self.features[target.dataset]
        writes, held = writes_answers(self.config.learner), self.datasets[target.dataset].responses
        responses = {row: held[row] for row in target.rows.tolist()} if writes else {}
        data = TargetData(task, features, target.labels, responses=responses)
        if target.tasks is None:
            return data
        return replace(data, tasks=target.tasks, candidates=target.candidates)


def prepare_experiment(config: ExperimentConfig) -> Experiment:
    """Load the data, deal it out, and prepare the backbone; computes no features yet."""
    scenario, datasets = config.scenario, {}

    def load(spec: str) -> Dataset:
        if spec not in datasets:
            datasets[spec] = load_dataset(spec, config.store / "hashes")
            check_overlap(datasets[spec], config.backbone.model)
        return datasets[spec]

    dataset = load(scenario.dataset)
    dataset.require(modality(config.backbone))
    population = build_population(scenario, dataset)
    targets = build_targets(scenario, dataset, population, load)
    refuse_overlap(dataset, population, [(t, datasets[t.dataset]) for t in targets[1:]])
    folder = prepare_backbone(
        config.backbone, config.store / "backbones", PACKAGED_BACKBONES, PACKAGED_LANGUAGE_MODELS
    )
    backbone = load_backbone(folder)
    _check_inputs(config, backbone)
    features = {
        spec: {kind: feature_key(config, data, backbone, kind) for kind in input_kinds(config)}
        for spec, data in datasets.items()
    }
    check_answers(config, datasets, backbone, features)
    views = {
        kind: replace(key, transform=f"{key.transform}; {config.augmentation}")
        for kind, key in features[scenario.dataset].items()
        if config.augmentation.num_stored and kind in config.learner.inputs
    }
    return Experiment(config, datasets, population, targets, backbone, features, views)


def _check_inputs(config: ExperimentConfig, backbone: Backbone) -> None:
    """Refuse, before anything is computed, a learner whose inputs the backbone has not."""
    learner, model = config.learner, config.backbone.model
    for kind in learner.inputs:
        try:
            backbone.encoder(kind)
        except ConfigError as error:
            raise ConfigError(
                f"learner={learner.name} reads {kind}, which backbone.model={model} does not "
                f"give: {error}"
            ) from None


def input_kinds(config: ExperimentConfig) -> list[str]:
    """The kinds of inputs that the learner, the references and the rule read."""
    learners = [config.learner, *references(config).values()]
    kinds = {kind for learner in learners for kind in learner.inputs}
    per_input = config.federation.per_input(config.learner)
    return sorted(kinds if per_input is None else kinds | {per_input.kind})


def feature_key(
    config: ExperimentConfig, dataset: Dataset, backbone: Backbone, kind: str
) -> FeatureKey:
    """The address of a data set's features in the store."""
    responds = kind.startswith(RESPONSE_IDS)
    output: Output = OUTPUTS.get(kind, "token_ids" if responds else "states")
    return FeatureKey(
        weights=backbone.weights_hash,
        data=dataset.response_fingerprint if responds else dataset.content_fingerprint,
        transform=backbone.reading(kind),
        output=output,
        dtype="int32" if is_token_ids(kind) else "float32",
        device="cuda" if config.resources.slice.gpus else "cpu",
        torch_version=torch.__version__,
        batch_size=ENCODE_BATCH,
    )


def compute_features(experiment: Experiment, executor: Executor) -> Iterator[Progress]:
    """Fill the feature store where it lacks something, on all slots; tells how far it is."""
    config = experiment.config
    store = FeatureStore(config.store, shared_at(config.shared_store))
    share_backbone(experiment.backbone, config.shared_store)
    home, augmentation = config.scenario.dataset, config.augmentation
    wanted = [
        (experiment.datasets[spec], kind, key, Augmentation())
        for spec, keys in experiment.features.items()
        for kind, key in keys.items()
    ]
    wanted += [
        (experiment.datasets[home], kind, key, augmentation)
        for kind, key in experiment.views.items()
    ]
    for dataset, kind, key, shown in wanted:
        if store.open(key) is not None:
            store.share(key)
            continue
        what = f"{'views' if shown.num_stored else kind} of {dataset.name}"
        chunks = chunk_rows(np.arange(len(dataset)), ENCODE_BATCH)
        yield Progress(what, 0, len(chunks))
        done: list[np.ndarray] = []
        make = partial(_encode_job, experiment, dataset, kind, shown)
        for features in _encoded(executor, chunks, make):
            done.append(features)
            yield Progress(what, len(done), len(chunks))
        store.write(key, iter(done), (len(dataset), *done[0].shape[1:]))
        store.share(key)


def _encode_job(
    experiment: Experiment,
    dataset: Dataset,
    kind: str,
    augmentation: Augmentation,
    chunk: tuple[int, np.ndarray],
) -> EncodeJob:
    resources = experiment.config.resources
    return EncodeJob(
        kind=kind,
        augmentation=augmentation,
        dataset=dataset,
        backbone=experiment.backbone.folder,
        chunks=(chunk,),
        batch_size=ENCODE_BATCH,
        threads=resources.threads,
        gpu_share=resources.slice.gpus,
        shared_store=experiment.config.shared_store,
    )


def _encoded(
    executor: Executor,
    chunks: list[np.ndarray],
    make: Callable[[tuple[int, np.ndarray]], EncodeJob],
) -> Iterator[np.ndarray]:
    """Features chunk by chunk, in order, computed by all slots at once."""
    jobs = [make((index, rows)) for index, rows in enumerate(chunks)]
    slots = executor.num_slots
    calls = [Call(i % slots, lambda cold, job=job: job) for i, job in enumerate(jobs)]  # type: ignore[misc]
    waiting: dict[int, np.ndarray] = {}
    due = 0
    for _, replies in executor.run(calls):
        for reply in replies:
            assert isinstance(reply, EncodeReply)  # an EncodeJob is answered by nothing else
            waiting[reply.index] = reply.features
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def run_folder(config: ExperimentConfig) -> Path:
    """Where a resolved experiment keeps its state: equal configs share it."""
    return config.folder / f"{config.name}-{config_hash(config)[:8]}"
