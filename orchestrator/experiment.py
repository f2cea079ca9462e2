"""An experiment made ready: data, population, backbone and features, from a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.types import Task
from fl_core.wire import FP32
from orchestrator.config import ExperimentConfig
from orchestrator.events import Progress
from orchestrator.executors import Call, Executor
from orchestrator.jobs import EncodeJob, EncodeReply, Setup
from orchestrator.loading import config_hash
from scenarios.data.catalogue import PACKAGED_BACKBONES, check_overlap, load_dataset
from scenarios.data.dataset import Dataset
from scenarios.encode import chunk_rows
from scenarios.features import FeatureKey, FeatureStore
from scenarios.population import Population, build_population

ENCODE_BATCH = 64
"""Images per pass through the image tower; part of the features' key."""


OUTPUTS: dict[str, Literal["global", "patches"]] = {"features": "global"}
"""What the image tower has to put out for each kind of input that a learner may ask for."""


@dataclass(frozen=True)
class Experiment:
    """Everything that does not change while an experiment runs."""

    config: ExperimentConfig
    dataset: Dataset
    population: Population
    backbone: Clip
    features: dict[str, FeatureKey]

    @property
    def training_population(self) -> Population:
        """Who trains: the clients, or for a pooled rule the one that holds everything."""
        return self.population.pooled() if self.config.federation.pooled else self.population

    def setup(self) -> Setup:
        """What the client actors have to know."""
        config, train = self.config, self.training_population.train
        return Setup(
            key=config_hash(config),
            learner=config.learner,
            rule=config.federation,
            training=config.training,
            codec=config.communication.codec if config.federation.communicates else FP32(),
            task=Task(self.dataset.classes, self.dataset.templates),
            seed=config.seed,
            threads=config.resources.threads,
            gpu_share=config.resources.slice.gpus,
            retries=config.resources.retries,
            backbone=self.backbone.folder,
            store=config.store,
            features=self.features,
            labels=self.dataset.labels,
            offsets=train.offsets,
            rows=train.rows,
        )


def prepare_experiment(config: ExperimentConfig) -> Experiment:
    """Load the data, deal it out, and prepare the backbone; computes no features yet."""
    dataset = load_dataset(config.scenario.dataset)
    check_overlap(dataset, config.backbone.model)
    population = build_population(config.scenario, dataset)
    folder = prepare_clip(config.backbone, config.store / "backbones", PACKAGED_BACKBONES)
    backbone = load_clip(folder)
    features = {
        kind: feature_key(config, dataset, backbone, kind) for kind in config.learner.inputs
    }
    return Experiment(config, dataset, population, backbone, features)


def feature_key(
    config: ExperimentConfig, dataset: Dataset, backbone: Clip, kind: str
) -> FeatureKey:
    """The address of a data set's features in the store."""
    return FeatureKey(
        weights=backbone.weights_hash,
        data=dataset.content_fingerprint,
        transform=str(sorted(backbone.info["preprocess"].items())),
        output=OUTPUTS[kind],
        dtype="float32",
        device="cuda" if config.resources.slice.gpus else "cpu",
        torch_version=torch.__version__,
        batch_size=ENCODE_BATCH,
    )


def compute_features(experiment: Experiment, executor: Executor) -> Iterator[Progress]:
    """Fill the feature store where it lacks something, on all slots; tells how far it is."""
    for key in experiment.features.values():
        store = FeatureStore(experiment.config.store)
        if store.open(key) is not None:
            continue
        chunks = chunk_rows(np.arange(len(experiment.dataset)), ENCODE_BATCH)
        yield Progress("image features", 0, len(chunks))
        done: list[np.ndarray] = []
        for features in _encoded(experiment, executor, chunks):
            done.append(features)
            yield Progress("image features", len(done), len(chunks))
        store.write(key, iter(done), (len(experiment.dataset), *done[0].shape[1:]))


def _encoded(
    experiment: Experiment, executor: Executor, chunks: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Features chunk by chunk, in order, computed by all slots at once."""
    resources = experiment.config.resources

    def make(index: int) -> Callable[[bool], EncodeJob]:
        return lambda cold: EncodeJob(
            dataset=experiment.dataset,
            backbone=experiment.backbone.folder,
            chunks=((index, chunks[index]),),
            batch_size=ENCODE_BATCH,
            threads=resources.threads,
            gpu_share=resources.slice.gpus,
        )

    calls = [Call(i % executor.num_slots, make(i)) for i in range(len(chunks))]
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
