"""What a trial is going to take: bytes and memory from shapes, seconds from runs like it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.backbones.language import Language
from orchestrator.checkpoint import RunStore
from orchestrator.experiment import Experiment
from orchestrator.plan import outline
from orchestrator.sizing import FLOATS_PER_TOKEN, TOKENS_PER_CLASS, language_floats
from orchestrator.yaml_text import read_yaml

PROCESS_BYTES = 350e6
"""Private memory of a process that has imported torch and Ray, measured."""


@dataclass(frozen=True)
class Rates:
    """Median seconds that finished runs took. train: per client and round; score: per scoring."""

    train: float
    score: float


@dataclass(frozen=True)
class Forecast:
    """What one trial is going to take.

    first_client_bytes: of the busiest client of the first round. seconds: None where no run tells.
    """

    rounds: int
    sent_bytes: int
    first_client_bytes: int
    memory_bytes: float
    seconds: float | None


def forecast(experiment: Experiment, rates: Mapping[tuple[str, str], Rates]) -> Forecast:
    """From shapes, and from what runs of the same learner and backbone took per client round."""
    config, run = experiment.config, outline(experiment)
    ahead, rule = run.forecast, config.federation
    rounds = ahead.rounds if run.initial else 0
    num_clients = len(run.clients)
    cohort = min(rule.clients_per_round or num_clients, num_clients)
    every = config.evaluation.every
    scorings = 1 + (rounds // every if every else min(rounds, 1))
    rate = rates.get((config.learner.name, config.backbone.model))
    seconds = None if rate is None else rounds * cohort * rate.train + scorings * rate.score
    sent = ahead.total.up + ahead.total.down
    memory = _memory(experiment, run.initial)
    return Forecast(rounds, sent, run.first_client_bytes, memory, seconds)


def measured_rates(folder: Path) -> dict[tuple[str, str], Rates]:
    """Of the finished runs in a folder, by (learner, backbone)."""
    train: dict[tuple[str, str], list[float]] = {}
    score: dict[tuple[str, str], list[float]] = {}
    for done in folder.glob("*/DONE"):
        config, records = _raw_config(done.parent), RunStore(done.parent).records()
        learner, backbone = config.get("learner") or {}, config.get("backbone") or {}
        key = (str(learner.get("name")), str(backbone.get("model")))
        for record in records:
            if record.accepted and "time/round_s" in record.metrics:
                share = record.metrics["time/round_s"] / len(record.accepted)
                train.setdefault(key, []).append(share)
            if "time/eval_s" in record.metrics:
                score.setdefault(key, []).append(record.metrics["time/eval_s"])
    return {
        key: Rates(
            statistics.median(train.get(key, [0.0])), statistics.median(score.get(key, [0.0]))
        )
        for key in train.keys() | score.keys()
    }


def _memory(experiment: Experiment, initial: Mapping[str, Any]) -> float:
    """Bytes of one client actor: process, weights, features, and a group's states in training."""
    config = experiment.config
    group = config.resources.group_size
    assert isinstance(group, int)  # resolved before the run
    backbone = experiment.backbone
    weights = sum(path.stat().st_size for path in backbone.weights_folder.glob("*.safetensors"))
    trained = sum(4 * tensor.numel() for tensor in initial.values())
    if isinstance(backbone, Language):
        floats = language_floats(backbone, config.training.batch_size)
    else:
        text = backbone.info["model_cfg"]["text_cfg"]
        width, layers = text.get("width", 512), text.get("layers", 12)
        tokens = TOKENS_PER_CLASS * len(experiment.population.classes)
        floats = FLOATS_PER_TOKEN * tokens * width * layers
    activations = 4 * floats if initial else 0
    return float(PROCESS_BYTES + weights + group * (4 * trained + activations))


def _raw_config(folder: Path) -> dict[str, Any]:
    """A run's config as plain values, unchecked: it may come from another version."""
    raw = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    return raw if isinstance(raw, dict) else {}
