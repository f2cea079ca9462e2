"""What clients share in an actor: stored inputs, labels, and the learner's frozen part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fl_core.arrays import as_tensor
from fl_core.backbones.chunks import ChunkedTower
from fl_core.backbones.clip import Clip
from fl_core.backbones.token_rows import trimmed
from fl_core.backbones.union import load_backbone
from fl_core.learners import Learner
from fl_core.local import Problem
from fl_core.seeds import generator
from orchestrator.jobs import Setup
from orchestrator.shared_backbone import bring_backbone
from scenarios.features import FeatureKey, FeatureStore
from scenarios.shared_store import shared_at


def build_problem(setup: Setup, device: torch.device, target: str, learner: Learner) -> Problem:
    """A target's stored features and labels, and a learner's frozen part for its classes.

    Beside what the learner reads stands that by which the rule tells inputs apart.
    """
    data = setup.targets[target]
    bring_backbone(setup.backbone, setup.shared_store)
    backbone = load_backbone(setup.backbone, str(device))
    if setup.training.classes_at_once and isinstance(backbone, Clip):
        text = ChunkedTower(backbone.text, setup.training.classes_at_once)
        backbone = replace(backbone, text=text)
    frozen = learner.prepare(backbone, data.task)
    per_input = setup.rule.per_input(setup.learner)
    kinds = dict.fromkeys((*learner.inputs, *([per_input.kind] if per_input else [])))
    inputs = stored_inputs(setup, {kind: data.features[kind] for kind in kinds}, device)
    # A row without a label is never asked for, but the first row fills up idle lanes.
    labels = torch.from_numpy(np.maximum(data.labels, 0)).to(device)
    initial = learner.init(frozen, generator(setup.seed, "init"))
    problem = Problem(
        learner, frozen, initial, inputs, labels, backbone.groupable, responses=data.responses
    )
    if data.tasks is None or data.candidates is None:
        return problem
    tasks, candidates = as_tensor(data.tasks), as_tensor(data.candidates)
    return replace(problem, tasks=tasks.to(device), candidates=candidates.to(device))


def stored_inputs(
    setup: Setup, keys: Mapping[str, FeatureKey], device: torch.device
) -> dict[str, torch.Tensor]:
    """Kinds of inputs from the feature store; on the CPU they share its pages."""
    store = FeatureStore(setup.store, shared_at(setup.shared_store))
    inputs: dict[str, torch.Tensor] = {}
    for kind, key in keys.items():
        values = store.open(key)
        if values is None:
            shared = f", and so has {setup.shared_store}" if setup.shared_store else ""
            raise RuntimeError(f"the feature store {setup.store} has lost {key.digest}{shared}")
        inputs[kind] = as_tensor(values)
    return {kind: values.to(device) for kind, values in trimmed(inputs).items()}
