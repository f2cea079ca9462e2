"""A finished run's low-rank adapters as a folder of peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fl_core.backbones.language import Language, LanguageModel
from fl_core.backbones.language_tower import DELTA, LORA_A, LORA_B
from fl_core.backbones.union import load_backbone, prepare_backbone
from fl_core.errors import StateError
from fl_core.learners import LoRA
from fl_core.types import Params
from orchestrator.config import ExperimentConfig
from orchestrator.export import CLASSES_FILE, shared_model
from orchestrator.loading import load_config
from orchestrator.results import Result
from scenarios.data.catalogue import PACKAGED_BACKBONES, PACKAGED_LANGUAGE_MODELS
from scenarios.population import Population

HEAD_FILE = "head.safetensors"


def export_adapter(run: Path, target: Path) -> list[Path]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of the shared model, which
    ``PeftModel.from_pretrained`` loads, and ``classes.json``; a classifier besides as
    ``head.safetensors`` (weight [C, d], bias [C]), on the states that ``classes.json`` says.

    StateError where the method has no shared model, or changes more than adapters can hold.
    """
    from peft import LoraConfig, TaskType

    config = load_config(run / "config.yaml")
    learner, spec = config.learner, config.backbone
    if not isinstance(learner, LoRA) or not isinstance(spec, LanguageModel):
        raise StateError(
            f"{run.name}: learner = {learner.name} trains no adapter of a language model. Export "
            "its tensors with --as safetensors."
        )
    params = shared_model(config, Result.load(run))
    _check_tensors(run.name, params)
    backbone = _language(config)
    paths = sorted({n.rpartition(".")[0] for n in params if n.endswith(f".{LORA_A}")})
    described: Any = LoraConfig(
        r=learner.rank,
        lora_alpha=learner.alpha,
        lora_dropout=learner.dropout,
        target_modules=paths,
        inference_mode=True,
        task_type=TaskType.CAUSAL_LM if backbone.causal else TaskType.FEATURE_EXTRACTION,
        base_model_name_or_path=str(PACKAGED_LANGUAGE_MODELS.get(spec.model, spec.model)),
    )
    target.mkdir(parents=True, exist_ok=True)
    described.save_pretrained(str(target))
    factors = {
        f"base_model.model.{path}.{name}.weight": params[f"{path}.{name}"].contiguous()
        for path in paths
        for name in (LORA_A, LORA_B)
    }
    save_file(factors, target / "adapter_model.safetensors")
    written = [target / "adapter_config.json", target / "adapter_model.safetensors"]
    head = {n.removeprefix("head."): t.contiguous() for n, t in params.items() if "head." in n}
    if head:
        save_file(head, target / HEAD_FILE)
        written.append(target / HEAD_FILE)
    population = Population.load(run / "population.parquet")
    about: dict[str, Any] = {"classes": list(population.classes), "run": run.name}
    about |= {"head": learner.head, "pooling": learner.pooling, "scale": learner.scale}
    (target / CLASSES_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False))
    return [*written, target / CLASSES_FILE]


def _check_tensors(run: str, params: Params) -> None:
    dense = [name for name in params if name.rpartition(".")[2] == DELTA]
    if any(bool(params[name].any()) for name in dense):
        raise StateError(
            f"{run}: this method adds dense changes to {len(dense)} layers, which no adapter of "
            "this rank holds. Export its tensors with --as safetensors."
        )
    if not any(name.endswith(f".{LORA_B}") for name in params):
        raise StateError(f"{run}: the shared model has no whole adapter to export.")


def _language(config: ExperimentConfig) -> Language:
    folder = prepare_backbone(
        config.backbone, config.store / "backbones", PACKAGED_BACKBONES, PACKAGED_LANGUAGE_MODELS
    )
    backbone = load_backbone(folder)
    assert isinstance(backbone, Language)  # it was prepared from a LanguageModel
    return backbone
