"""A finished run's adapters of a language model as a folder of peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fl_core.backbones.language import Language, LanguageModel
from fl_core.backbones.language_front import PREFIX
from fl_core.backbones.language_layers import DELTA, IA3_IN, IA3_OUT, LORA_A, LORA_B, PROMPT
from fl_core.backbones.union import load_backbone, prepare_backbone
from fl_core.errors import StateError
from fl_core.learners import IA3, LoRA, Prefix, PromptTuning
from fl_core.types import Params
from orchestrator.config import ExperimentConfig
from orchestrator.export import CLASSES_FILE, shared_model
from orchestrator.loading import load_config
from orchestrator.results import Result
from scenarios.data.catalogue import PACKAGED_BACKBONES, PACKAGED_LANGUAGE_MODELS
from scenarios.population import Population

HEAD, HEAD_FILE = "head.", "head.safetensors"
_IN_PEFT = "base_model.model."
"""What the names of modules have before them in peft's files."""


def export_adapter(run: Path, target: Path) -> list[Path]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of the shared model, which
    ``PeftModel.from_pretrained`` loads, and ``classes.json``; a classifier besides as
    ``head.safetensors`` (weight [C, d], bias [C]), on the states that ``classes.json`` says.

    StateError where the method has no shared model, or changes more than adapters can hold.
    """
    config = load_config(run / "config.yaml")
    learner, spec = config.learner, config.backbone
    kinds = (LoRA, IA3, PromptTuning, Prefix)
    if not isinstance(learner, kinds) or not isinstance(spec, LanguageModel):
        raise StateError(
            f"{run.name}: learner = {learner.name} trains no adapter of a language model. Export "
            "its tensors with --as safetensors."
        )
    params = shared_model(config, Result.load(run))
    if isinstance(learner, LoRA):
        _check_factors(run.name, params)
    described, tensors = _of_peft(learner, params)
    described.task_type = "CAUSAL_LM" if _language(config).causal else "FEATURE_EXTRACTION"
    described.base_model_name_or_path = str(PACKAGED_LANGUAGE_MODELS.get(spec.model, spec.model))
    described.inference_mode = True
    target.mkdir(parents=True, exist_ok=True)
    described.save_pretrained(str(target))
    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(held, target / "adapter_model.safetensors")
    written = [target / "adapter_config.json", target / "adapter_model.safetensors"]
    if head := head_of(params):
        save_file(head, target / HEAD_FILE)
        written.append(target / HEAD_FILE)
    population = Population.load(run / "population.parquet")
    about: dict[str, Any] = {"classes": list(population.classes), "run": run.name}
    about |= {"head": learner.head, "pooling": learner.pooling, "scale": learner.scale}
    about |= {"max_new_tokens": learner.max_new_tokens} if learner.writes else {}
    (target / CLASSES_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False))
    return [*written, target / CLASSES_FILE]


def head_of(params: Params) -> dict[str, Tensor]:
    """The tensors of a classifier beside the adapters; none where there is no such head."""
    found = {name: tensor for name, tensor in params.items() if name.startswith(HEAD)}
    return {name.removeprefix(HEAD): tensor.contiguous() for name, tensor in found.items()}


def _of_peft(
    learner: LoRA | IA3 | PromptTuning | Prefix, params: Params
) -> tuple[Any, dict[str, Tensor]]:
    """A config of peft's, and the tensors under the names of its files."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    if isinstance(learner, PromptTuning):
        prompt = params[PROMPT]
        return PromptTuningConfig(num_virtual_tokens=len(prompt)), {"prompt_embeddings": prompt}
    if isinstance(learner, Prefix):
        prefix = params[PREFIX].flatten(1)  # [P, 2 layers h d_h]
        return PrefixTuningConfig(num_virtual_tokens=len(prefix)), {"prompt_embeddings": prefix}
    if isinstance(learner, IA3):
        before, after = (_paths(params, name) for name in (IA3_IN, IA3_OUT))
        row = {f"{_IN_PEFT}{p}.ia3_l": params[f"{p}.{IA3_IN}"][None] for p in before}
        column = {f"{_IN_PEFT}{p}.ia3_l": params[f"{p}.{IA3_OUT}"][:, None] for p in after}
        modules = before + after
        return IA3Config(target_modules=modules, feedforward_modules=before), row | column
    paths = _paths(params, LORA_A)
    described: Any = LoraConfig(
        r=learner.rank,
        lora_alpha=learner.alpha,
        lora_dropout=learner.dropout,
        target_modules=paths,
    )
    names = [f"{path}.{factor}" for path in paths for factor in (LORA_A, LORA_B)]
    return described, {f"{_IN_PEFT}{name}.weight": params[name] for name in names}


def _paths(params: Params, leaf: str) -> list[str]:
    """The modules that have a tensor of this name."""
    return sorted(name.rpartition(".")[0] for name in params if name.endswith(f".{leaf}"))


def _check_factors(run: str, params: Params) -> None:
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
