"""``resources.slice: auto``: the slice that the work of an experiment needs.

On a cluster without GPUs it is one CPU. Where there are GPUs it is an equal share of the smallest
one, from what one client actor keeps on it:

    context + weights + features + max(training, encoding)

    context   of CUDA and its libraries, per process
    weights   of all of the backbone's files
    features  rows of all data sets x embedding width x 4 bytes
    training  group size x (4 copies of what is trained + activations of the text tower)
    encoding  one batch of images through the image tower, without gradients

The formula has not been checked on a GPU. What it does not cover is refused, not guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.slices import equal_shares
from fl_core.backbones.language import Language
from fl_core.errors import ResourceError
from fl_core.types import Params
from orchestrator.config import ExperimentConfig, Slice
from orchestrator.experiment import ENCODE_BATCH, Experiment, prepare_experiment
from orchestrator.plan import outline

CONTEXT_BYTES = 0.6e9
"""Of a process with CUDA, cuBLAS and torch's kernels loaded; an estimate."""
USABLE = 0.9
"""Of a GPU's memory; the rest is for fragments and for what the driver keeps."""
COPIES = 4
"""Of what is trained: value, gradient, momentum and the broadcast."""
LIVE_WIDTHS = 10
"""Rows as wide as the tower that a block without gradients holds at once: x, its norm, queries,
keys, values, and four widths of the hidden layer."""
FLOAT_BYTES = 4
FLOATS_PER_TOKEN = 20
"""Activations that training keeps per token, layer and unit of width of a text tower, about; for
ViT-B/16 with 100 classes it gives the 0.2 GB per client that were measured."""
TOKENS_PER_CLASS = 4
"""Of a class name with its end, about; the context before it is computed once."""


def sized(config: ExperimentConfig) -> ExperimentConfig:
    """A resolved experiment whose slice was ``auto``, with the slice that it comes to.

    ResourceError where the cluster has GPUs and the share cannot be told.
    """
    plain = replace(config, resources=replace(config.resources, slice=Slice()))
    if config.resources.executor == "inline":
        return plain
    nodes = [node for node in nodes_of(plain) if node.get("GPU")]
    if not nodes:
        return plain
    usable = USABLE * _gpu_memory()
    most = max(1, int(min(node.get("CPU", 1) / node["GPU"] for node in nodes)))
    experiment = prepare_experiment(plain)
    need = gpu_bytes(experiment, outline(experiment).initial)
    found = Slice(cpus=1, gpus=equal_shares(need, usable, most))
    return replace(config, resources=replace(config.resources, slice=found))


def gpu_bytes(experiment: Experiment, initial: Params) -> float:
    """What one client actor keeps on its GPU, by the formula above.

    ResourceError for a backbone or a learner that the formula does not cover.
    """
    if isinstance(experiment.backbone, Language):
        return _language_bytes(experiment, experiment.backbone, initial)
    text, image = _towers(experiment)
    resources = experiment.config.resources
    assert isinstance(resources.group_size, int)  # resolved before
    rows = sum(len(dataset) for dataset in experiment.datasets.values())
    classes = max(len(target.classes) for target in experiment.targets)
    at_once = min(classes, experiment.config.training.classes_at_once or classes)
    folder = experiment.backbone.weights_folder
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    trained = sum(tensor.numel() for tensor in initial.values())
    kept = FLOATS_PER_TOKEN * TOKENS_PER_CLASS * at_once * text["width"] * text["layers"]
    training = resources.group_size * (COPIES * trained + (kept if initial else 0))
    tokens = 1 + (image["image_size"] // image["patch_size"]) ** 2
    heads = max(1, image["width"] // image.get("head_width", 64))
    encoding = ENCODE_BATCH * tokens * (LIVE_WIDTHS * image["width"] + heads * tokens)
    features = rows * experiment.backbone.embed_dim
    return CONTEXT_BYTES + weights + FLOAT_BYTES * float(features + max(training, encoding))


def language_floats(backbone: Language, batch_size: int) -> float:
    """What training keeps of one client's batch: the layers' states, and attention twice."""
    tokens, length = batch_size * backbone.max_length, backbone.max_length
    attention = 2 * batch_size * int(backbone.info["num_heads"]) * length**2
    return backbone.num_layers * float(FLOATS_PER_TOKEN * tokens * backbone.width + attention)


def nodes_of(config: ExperimentConfig) -> list[dict[str, float]]:
    """Resources of each node of the cluster that is named, or of this machine."""
    address = config.resources.address or os.environ.get("RAY_ADDRESS")
    if address and config.resources.executor == "ray":
        from cluster.connect import connect
        from cluster.reserve import cluster_nodes

        connect(address)
        return cluster_nodes()
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tells = getattr(os, "sched_getaffinity", None)  # of those that this process may use
    cpus = float(len(tells(0)) if tells else os.cpu_count() or 1)
    return [{"CPU": cpus, "GPU": float(torch.cuda.device_count()), "memory": 0.7 * memory}]


def _language_bytes(experiment: Experiment, backbone: Language, initial: Params) -> float:
    """The same for a language model: its activations are those of a group's batches.

    ResourceError with quantized weights, with the layers below the adapters left out, or where
    answers are written.
    """
    config = experiment.config
    if not backbone.groupable or len(config.learner.inputs) > 1:
        raise ResourceError(
            "resources.slice = auto cannot tell the memory of quantized weights, of the top layers "
            "alone, nor of written answers. Give the share of a GPU that one actor gets, such as "
            "resources.slice.gpus=0.25."
        )
    group = config.resources.group_size
    assert isinstance(group, int)  # resolved before
    weights = sum(path.stat().st_size for path in backbone.weights_folder.glob("*.safetensors"))
    trained = sum(tensor.numel() for tensor in initial.values())
    kept = language_floats(backbone, config.training.batch_size)
    ids = sum(len(dataset) for dataset in experiment.datasets.values()) * backbone.max_length
    return CONTEXT_BYTES + weights + FLOAT_BYTES * float(ids + group * (COPIES * trained + kept))


def _towers(experiment: Experiment) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The shapes of text and image tower, of which all that the formula reads is known."""
    config, info = experiment.config, experiment.backbone.info
    text, image = info["model_cfg"]["text_cfg"], info["model_cfg"]["vision_cfg"]
    wanted: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]]
    wanted = {"text": (text, ("width", "layers"))}
    wanted |= {"image": (image, ("width", "layers", "patch_size", "image_size"))}
    unknown = [
        f"{config.backbone.model} tells no {name} of its {tower} tower"
        for tower, (known, names) in wanted.items()
        for name in names
        if not isinstance(known.get(name), int)
    ]
    others = sorted(set(config.learner.inputs) - {"features"})
    if others:
        unknown.append(f"learner={config.learner.name} works on {', '.join(others)} of images")
    if unknown:
        raise ResourceError(
            f"resources.slice = auto cannot tell the memory of this: {'; '.join(unknown)}. Give "
            "the share of a GPU that one actor gets, such as resources.slice.gpus=0.25."
        )
    return text, image


def _gpu_memory() -> float:
    """Bytes of the smallest GPU: of the cluster that is named, or of this machine."""
    import ray

    if ray.is_initialized():  # nodes_of has connected to the cluster that is named
        from cluster.reserve import gpu_memory

        return gpu_memory()
    import torch

    count = torch.cuda.device_count()
    return min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
