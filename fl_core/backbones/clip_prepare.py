"""The one place that loads a whole open_clip model: split it, hash it, write it for mapping."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_core.backbones import extract
from fl_core.backbones.clip_origin import FORMAT, LOCAL, OpenClip, Origin
from fl_core.backbones.clip_towers import whole_model
from fl_core.backbones.prepared import content_hash, publish
from fl_core.backbones.text_tower import FunctionalTower, save_tower
from fl_core.backbones.tokens import save_tokenizer
from fl_core.backbones.vision import all_tensors
from fl_core.errors import ConfigError, did_you_mean
from fl_core.seeds import derive


def prepare(
    spec: OpenClip, origin: Origin, folder: Path, key: Path, packaged: Sequence[str]
) -> Path:
    """Load the model, write it to ``folder/<weights hash>``, and note the hash under ``key``."""
    key.parent.mkdir(parents=True, exist_ok=True)
    is_tag = _check(origin, packaged)
    model = _load(spec, origin)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        info = _write(model, spec, origin, partial, local_only=not is_tag)
        target = folder / str(info["weights_hash"])
        publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    note = Path(f"{partial}.json")
    note.write_text(json.dumps({"weights_hash": info["weights_hash"], "spec": asdict(spec)}))
    note.replace(key)
    return target


def _check(origin: Origin, packaged: Sequence[str]) -> bool:
    """Refuse what open_clip would only warn about; whether the weights come from a hub."""
    model, pretrained = origin.model, origin.pretrained
    if model.startswith(LOCAL):
        return False
    if model.startswith("hf-hub:"):
        return True
    known = open_clip.list_models()
    if model not in known:
        raise ConfigError(f"model {model!r} is unknown.{did_you_mean(model, [*known, *packaged])}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ConfigError(
            f"model {model!r} needs pretrained: a tag, a file, or 'random' for random weights."
            f"{did_you_mean('', tags)}"
        )
    if pretrained == "random" or origin.files:
        return False
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        hint = did_you_mean(pretrained, [*tags, "random"])
        raise ConfigError(
            f"pretrained {pretrained!r} is neither a file nor a tag of {model!r}.{hint}"
        )
    _check_activation(model, pretrained, bool(tag.get("quick_gelu", False)))
    return True


def _check_activation(model: str, tag: str, weights: bool) -> None:
    config = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    if weights != config:
        other = f"{model}-quickgelu" if weights else model.removesuffix("-quickgelu")
        names = {True: "QuickGELU", False: "GELU"}
        raise ConfigError(
            f"the weights {tag!r} were trained with {names[weights]}, model {model!r} computes "
            f"{names[config]}, and its features would be wrong: use model {other!r}"
        )


def _load(spec: OpenClip, origin: Origin) -> nn.Module:
    if origin.towers is not None:
        with whole_model(Path(origin.model.removeprefix(LOCAL)), origin.towers) as folder:
            return _load(spec, Origin(f"{LOCAL}{folder}", None, ()))
    random = origin.pretrained == "random"
    try:
        # open_clip draws from the global generator: lend it a seeded one, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "open_clip", origin.model))
            model: nn.Module = open_clip.create_model(
                origin.model,
                pretrained=None if random else origin.pretrained,
                precision=spec.precision,
                pretrained_text=False,
                require_pretrained=not random,
            )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"open_clip cannot load model {spec.model!r} with pretrained {spec.pretrained!r}: "
            f"{error}"
        ) from error
    return model.eval().requires_grad_(False)


def _write(
    model: Any, spec: OpenClip, origin: Origin, to: Path, *, local_only: bool
) -> dict[str, Any]:
    """All files of a prepared model; ``model.json`` last, with the hash and the files' sizes."""
    config = open_clip.get_model_config(origin.model)
    vision = all_tensors(model.visual)
    save_file(vision, to / "vision.safetensors")
    text, about = _write_text(model, config, to)
    bias = getattr(model, "logit_bias", None)
    info = {
        "format": FORMAT,
        "model_cfg": config,
        "precision": spec.precision,
        "preprocess": dict(model.visual.preprocess_cfg),
        "tokenizer": save_tokenizer(origin.model, config["text_cfg"], local_only, to / "tokenizer"),
        "text": about,
        "embed_dim": config["embed_dim"],
        "logit_scale": float(model.logit_scale),
        "logit_bias": None if bias is None else float(bias),
    }
    parts = {f"text.{name}": tensor for name, tensor in text.items()}
    parts |= {f"vision.{name}": tensor for name, tensor in vision.items()}
    info["weights_hash"] = content_hash(parts, info)
    written = sorted(path for path in to.rglob("*") if path.is_file())
    info["files"] = {str(path.relative_to(to)): path.stat().st_size for path in written}
    info["source"] = asdict(spec)
    (to / "model.json").write_text(json.dumps(info, indent=1))
    return info


def _write_text(
    model: Any, config: Mapping[str, Any], to: Path
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    try:
        tower: FunctionalTower = extract.text_tower(model)
    except extract.NotExpressible as reason:
        about = {"kind": "module", "reason": str(reason)}
    else:
        save_tower(tower, to / "text.safetensors")
        return tower.weights, {"kind": "tower"}
    length = int(config["text_cfg"].get("context_length", 77))
    text = getattr(model, "text", None)
    if text is None:  # CLIP with its text tower inlined, under TextTransformer's names
        tensors = all_tensors(model)
        other = ("visual.", "logit_")
        tensors = {name: t for name, t in tensors.items() if not name.startswith(other)}
    else:
        tensors = all_tensors(text)
        if type(text).__name__ == "HFTextEncoder":
            text.config.save_pretrained(to / "text_config")
    save_file(tensors, to / "text.safetensors")
    return tensors, {**about, "context_length": length}
