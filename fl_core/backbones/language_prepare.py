"""The one place that loads a whole transformers model: check it, hash it, write it for mapping."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_core.backbones.language import DTYPES, NO_OUTPUT, LanguageModel
from fl_core.backbones.language_check import check_mask, is_causal, max_positions
from fl_core.backbones.prepared import content_hash, is_complete, publish
from fl_core.errors import ConfigError, did_you_mean
from fl_core.seeds import derive

READING = ("max_length", "truncation", "quantization")
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)


def prepare(
    spec: LanguageModel, source: Path, folder: Path, key: Path, packaged: Sequence[str]
) -> Path:
    """Write the weights to ``folder/<their hash>``, how texts are read to a folder beside it."""
    key.parent.mkdir(parents=True, exist_ok=True)
    place = str(source) if source.is_dir() else spec.model
    config = _config(spec, place, packaged)
    causal = is_causal(spec, config)
    weights = _published(folder, lambda to: _write(spec, place, config, causal, to))
    facts = {name: vars(spec)[name] for name in READING}
    facts |= {"padding": _padding(spec, causal), "weights": weights, "kind": "language"}
    facts["model"] = spec.model
    _check_reading(facts, json.loads((folder / weights / "model.json").read_text()))
    target = _published(folder, lambda to: _write_reading(facts, to))
    note = key.with_suffix(f".{os.getpid()}.tmp")
    note.write_text(json.dumps({"folder": target, "spec": asdict(spec)}))
    note.replace(key)
    return folder / target


def load_quantized(folder: Path, bits: str, device: str) -> nn.Module:
    """The model of a prepared weights folder with its linear layers in 8 or 4 bits."""
    from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

    info = json.loads((folder / "model.json").read_text())
    kind = AutoModelForCausalLM if info["causal"] else AutoModel
    how = {"load_in_8bit": True} if bits == "8bit" else {"load_in_4bit": True}
    module: nn.Module = kind.from_pretrained(
        str(folder),
        quantization_config=BitsAndBytesConfig(**how),
        device_map=device,
        dtype=DTYPES[info["precision"]],
        attn_implementation="eager",
    )
    return module.eval().requires_grad_(False)


def _config(spec: LanguageModel, place: str, packaged: Sequence[str]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place)
    except UNREADABLE as error:
        raise ConfigError(
            f"model {spec.model!r} is no packaged model, no folder with a config.json, and cannot "
            f"be had from the hub: {_first_line(error)}{did_you_mean(spec.model, packaged)}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0].rstrip('.')}." if str(error).strip() else ""


def _padding(spec: LanguageModel, causal: bool) -> str:
    if spec.padding == "left" and not causal:
        raise ConfigError(
            "backbone.padding = left is for causal models: an encoder counts its positions from "
            "the left. Set backbone.padding=auto."
        )
    if spec.padding != "auto":
        return spec.padding
    return "left" if causal else "right"


def _write(spec: LanguageModel, place: str, config: Any, causal: bool, to: Path) -> str:
    """All files of the weights; ``model.json`` last. Returns their hash."""
    model, lacking = _load(spec, place, config, causal)
    check_mask(spec, model, causal, _pad_id(config))
    tensors, tied, kept = _split(model, DTYPES[spec.precision])
    save_file(tensors, to / "model.safetensors")
    model.config.save_pretrained(str(to))
    info = {
        "precision": spec.precision,
        "causal": causal,
        "model_type": config.model_type,
        "width": int(config.hidden_size),
        "num_heads": int(config.num_attention_heads),
        "num_layers": int(config.num_hidden_layers),
        "max_positions": max_positions(model),
        "lora_modules": _lora_modules(config.model_type),
        "ia3_modules": _ia3_modules(config.model_type),
        "pad_id": _pad_id(config),
        "tied": tied,
        "kept_dtype": kept,
        "tokenizer": _save_tokenizer(place, to),
    }
    info |= {NO_OUTPUT: True} if lacking else {}
    tokens = hashlib.sha256()
    for path in sorted(to.glob("*token*")):
        tokens.update(path.read_bytes())
    known = info | {"config": json.loads(model.config.to_json_string()), "t": tokens.hexdigest()}
    info["weights_hash"] = content_hash(tensors, known)
    _finish(info, to)
    return str(info["weights_hash"])


def _load(spec: LanguageModel, place: str, config: Any, causal: bool) -> tuple[Any, bool]:
    """The model, and whether it came without an output layer."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if causal else AutoModel
    if spec.pretrained == "random":
        # transformers draws from the global generator: lend it a seeded one, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "transformers", config.to_json_string()))
            model = kind.from_config(config, dtype=torch.float32)
        return model.eval(), False
    try:
        with _quietly():
            model, told = kind.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    except UNREADABLE as error:
        raise ConfigError(
            f"transformers cannot load model {spec.model!r}: {error}. For weights drawn at random "
            "set backbone.pretrained=random."
        ) from error
    return model.eval(), _fill_gaps(spec, model, sorted(told["missing_keys"]))


def _fill_gaps(spec: LanguageModel, model: nn.Module, missing: Sequence[str]) -> bool:
    """Zeros for what a checkpoint lacks and nobody reads, which transformers has drawn at random.

    Returns whether the output layer is among it. ConfigError where anything else is.
    """
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    named = dict(model.named_parameters())
    words: Any = model.get_input_embeddings()  # type: ignore[operator]
    of_output = {id(own) for own in output.parameters()} if output is not None else set()
    of_output -= {id(own) for own in words.parameters()}  # where the two are one
    unread = [n for n in missing if "pooler" in n.split(".") or id(named.get(n)) in of_output]
    if len(unread) < len(missing):
        left = [name for name in missing if name not in unread]
        raise ConfigError(
            f"the weights of model {spec.model!r} lack {len(left)} tensors that its config.json "
            f"asks for, such as {left[0]}: correct one of the two, or set "
            "backbone.pretrained=random for drawn weights."
        )
    with torch.no_grad():
        for name in unread:
            named[name].zero_()
    return any(id(named[name]) in of_output for name in unread)


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers draws a progress bar for each model, and lists what it does not know in it."""
    from transformers.utils import logging as told

    shown, level = told.is_progress_bar_enabled(), told.get_verbosity()
    told.disable_progress_bar()
    told.set_verbosity_error()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if shown:
            told.enable_progress_bar()


def _split(
    model: nn.Module, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Tensors by name, the names that stand for another's, and buffers that keep their dtype."""
    named = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        other = first.setdefault(id(parameter), name)
        if other != name:
            tied[name] = other
            continue
        tensors[name] = parameter.detach().to(dtype).clone().contiguous()
    tensors |= {name: tensor.detach().clone().contiguous() for name, tensor in buffers.items()}
    return tensors, tied, sorted(buffers)


def _lora_modules(model_type: str) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    known = KNOWN.get(model_type, [])
    return list(known) if not isinstance(known, str) else []


def _ia3_modules(model_type: str) -> dict[str, list[str]]:
    from peft.utils import constants as known

    modules = known.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type, [])
    before = known.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type, [])
    return {"modules": list(modules), "feedforward": list(before)}


def _pad_id(config: Any) -> int:
    """Any token does at padding, which nobody sees; some models want their own."""
    found = getattr(config, "pad_token_id", None)
    return int(found) if found is not None and found >= 0 else 0


def _save_tokenizer(place: str, to: Path) -> bool:
    """Whether there is a tokenizer; a model without one still runs on token ids."""
    from transformers import AutoTokenizer

    if Path(place).is_dir() and not any(Path(place).glob("*token*")):
        return False
    try:
        AutoTokenizer.from_pretrained(place).save_pretrained(str(to))
    except UNREADABLE:
        return False
    return True


def _check_reading(reading: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    most = weights["max_positions"]
    if most is not None and reading["max_length"] > most:
        raise ConfigError(
            f"backbone.max_length = {reading['max_length']} is not allowed: model "
            f"{reading['model']!r} has {most} positions."
        )


def _write_reading(facts: Mapping[str, Any], to: Path) -> str:
    _finish(dict(facts), to)
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _finish(info: dict[str, Any], to: Path) -> None:
    written = sorted(path for path in to.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(to)): path.stat().st_size for path in written}
    (to / "model.json").write_text(json.dumps(info | {"files": sizes}, indent=1))


def _published(folder: Path, write: Callable[[Path], str]) -> str:
    """The name of a folder that ``write`` filled and named, in its place at once."""
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        name = write(partial)
        if not is_complete(folder / name):
            publish(partial, folder / name)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(partial)
    return name
