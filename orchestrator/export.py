"""Files that a finished run leaves for others: final parameters, tables, a picture of the data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip, find_origin
from fl_core.errors import StateError
from fl_core.learners import Learner
from fl_core.seeds import generator
from fl_core.types import Params, Task
from orchestrator.config import ExperimentConfig
from orchestrator.environment import ENVIRONMENT_FILE
from orchestrator.loading import load_config
from orchestrator.results import Result
from scenarios.data.catalogue import PACKAGED_BACKBONES, load_dataset
from scenarios.picture import picture
from scenarios.population import Population
from scenarios.targets import home_target

SHARED_FILE = "shared.safetensors"
CLASSIFIER_FILE, CLASSES_FILE = "classifier.safetensors", "classes.json"
LINEAR_WITHIN = 1e-4
"""Relative error up to which scores count as linear in the features; float32 gives about 1e-6."""


def export_run(result: Result) -> dict[str, Path]:
    """Write the exports into the run's folder; artifact name -> path, for tracking.

    shared.safetensors: the final shared tensors. clients.csv: headline of each client's model on
    its own test data, last round. confusion.csv, confusion_chosen.csv: test rows by true class
    (row) and class that the shared model predicts (column), in the last and the chosen round.
    environment.json: what the run was computed with. summary.json: the numbers of the final table.
    """
    folder = result.folder
    found = {
        "config.yaml": folder / "config.yaml",
        "population.parquet": folder / "population.parquet",
    }
    if result.parameters:
        found[SHARED_FILE] = folder / SHARED_FILE
        save_file(result.parameters, found[SHARED_FILE])
    found["population.png"] = folder / "population.png"
    if not found["population.png"].exists():
        population = Population.load(folder / "population.parquet")
        picture(population).savefig(found["population.png"], dpi=120)
    found["clients.csv"] = folder / "clients.csv"
    found["clients.csv"].write_text(_client_table(result))
    if (folder / ENVIRONMENT_FILE).exists():
        found[ENVIRONMENT_FILE] = folder / ENVIRONMENT_FILE
    found |= _confusions(result)
    found["summary.json"] = folder / "summary.json"
    found["summary.json"].write_text(json.dumps(result.summary, indent=2, sort_keys=True))
    return found


def _confusions(result: Result) -> dict[str, Path]:
    import pandas as pd

    wanted = {"confusion.csv": result.last, "confusion_chosen.csv": result.selected}
    found = {}
    for name, record in wanted.items():
        counts = None if record is None else result.confusion_after(record)
        if counts is not None:
            classes = Population.load(result.folder / "population.parquet").classes
            table = pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes)
            found[name] = result.folder / name
            table.to_csv(found[name])
    return found


def _client_table(result: Result) -> str:
    import pandas as pd

    table = pd.DataFrame(dict(result.last.client_metrics))
    table.index.name = "client"
    return table.to_csv()


# -- for programs that know nothing of fedarena --------------------------------------------------


def export_shared(run: Path, target: Path) -> list[Path]:
    """Write the final shared tensors as ``shared.safetensors``.

    StateError where the method shares none.
    """
    params = Result.load(run).parameters
    if not params:
        raise StateError(f"{run.name}: this method shares no tensors, so there are none to export.")
    target.mkdir(parents=True, exist_ok=True)
    path = target / SHARED_FILE
    save_file({name: t.contiguous() for name, t in params.items()}, path)
    return [path]


def export_classifier(run: Path, target: Path) -> list[Path]:
    """Write ``classifier.safetensors`` and ``classes.json`` of the shared model.

    class_weights: [D, C] with columns of length 1 for most methods; logit_scale: a scalar. The
    logits of normalised image features f [B, D] are ``logit_scale * f @ class_weights``. StateError
    where the method has no shared model, or where its scores are not linear in the features.
    """
    config = load_config(run / "config.yaml")
    if not isinstance(config.backbone, OpenClip):
        raise StateError(
            f"{run.name}: a classifier for open_clip is of images, and this run is on "
            f"{config.backbone.model}. Export its adapters with --as peft."
        )
    population = Population.load(run / "population.parquet")
    dataset = load_dataset(config.scenario.dataset, config.store / "hashes")
    home = home_target(population, dataset, config.scenario.dataset)
    task = Task(home.classes, home.templates)
    folder = prepare_clip(config.backbone, config.store / "backbones", PACKAGED_BACKBONES)
    backbone = load_clip(folder)
    weights = _class_weights(config, Result.load(run), backbone, task)  # [D, C]
    origin = find_origin(config.backbone, PACKAGED_BACKBONES)
    about = {
        "classes": list(task.classes),
        "model": origin.model,
        "pretrained": origin.pretrained,
        "run": run.name,
    }
    target.mkdir(parents=True, exist_ok=True)
    tensors = {"class_weights": weights, "logit_scale": torch.tensor(backbone.scale)}
    save_file(tensors, target / CLASSIFIER_FILE)
    (target / CLASSES_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False))
    return [target / CLASSIFIER_FILE, target / CLASSES_FILE]


def _class_weights(config: ExperimentConfig, result: Result, backbone: Clip, task: Task) -> Tensor:
    """Class weights [D, C] of the shared model, read off its scores of the unit vectors.

    Nothing has to be known of the method for that, save that it is linear; which is tried out.
    """
    learner: Learner = config.learner
    if tuple(learner.inputs) != ("features",):
        raise StateError(_not_linear(result.name, learner.name))
    params = shared_model(config, result)
    frozen = learner.prepare(backbone, task)
    size = backbone.embed_dim
    drawn = torch.randn(64, size, generator=generator(0, "linearity"))
    probes = torch.nn.functional.normalize(drawn, dim=-1)  # [64, D]
    with torch.no_grad():
        weights = learner.logits(params, frozen, {"features": torch.eye(size)})  # [D, C]
        logits = learner.logits(params, frozen, {"features": probes})
    error = (probes @ weights - logits).abs().max()
    if error > LINEAR_WITHIN * logits.abs().max():
        raise StateError(_not_linear(result.name, learner.name))
    return (weights / backbone.scale).contiguous()


def shared_model(config: ExperimentConfig, result: Result) -> Params:
    """The shared parameters, empty for a learner that trains nothing."""
    if (params := result.shared_model) is None:
        raise StateError(
            f"{result.name}: federation = {config.federation.name} has no shared model to export."
        )
    return params


def _not_linear(run: str, learner: str) -> str:
    return (
        f"{run}: with learner = {learner} the class weights depend on the image, so no [D, C] "
        "matrix is this model. Export its tensors with --as safetensors."
    )
