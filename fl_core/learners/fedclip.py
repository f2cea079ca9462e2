"""FedCLIP (Lu et al., 2023, arXiv:2302.13485): an attention gate on the image feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones.clip import Clip
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import template_features, uniform_linear
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class FedCLIPFrozen:
    """class_features: [C, D], the normalised features of the data set's template."""

    class_features: Tensor
    scale: float


@dataclass(frozen=True)
class FedCLIP:
    """f' = norm(softmax(W2 tanh(W1 f + b1) + b2) * f).

    objective: ``contrastive`` matches the images of a batch with the texts of their labels, both
    ways, as in the paper; ``cross_entropy`` goes over the classes. The paper averages uniformly:
    use it with ``federation.weights=uniform``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["fedclip"] = "fedclip"
    objective: Literal["contrastive", "cross_entropy"] = "contrastive"

    def prepare(self, backbone: Clip, task: Task) -> FedCLIPFrozen:
        features = template_features(backbone, task.classes, task.templates[:1])
        return FedCLIPFrozen(features, backbone.scale)

    def init(self, frozen: FedCLIPFrozen, generator: torch.Generator) -> Params:
        width = frozen.class_features.shape[1]
        weight_1, bias_1 = uniform_linear(generator, width, width)
        weight_2, bias_2 = uniform_linear(generator, width, width)
        gate = {"weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}
        return {name: tensor.to(frozen.class_features) for name, tensor in gate.items()}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return dict.fromkeys(("weight_1", "bias_1", "weight_2", "bias_2"), TensorSpec("shared"))

    def loss(self, params: Params, frozen: FedCLIPFrozen, batch: Batch) -> Tensor:
        if self.objective == "cross_entropy":
            return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)
        images = gated(params, batch.inputs["features"])  # [B, D]
        texts = frozen.class_features[batch.labels]  # [B, D]
        pairs = frozen.scale * images @ texts.mT  # [B, B]
        filler = torch.where(batch.mask > 0, 0.0, float("-inf")).to(pairs)  # [B]
        matches = torch.arange(len(batch.labels), device=pairs.device)
        own = batch._replace(labels=matches, candidates=None)
        by_image = masked_cross_entropy(_reachable(pairs, filler), own)
        return 0.5 * (by_image + masked_cross_entropy(_reachable(pairs.mT, filler), own))

    def logits(self, params: Params, frozen: FedCLIPFrozen, inputs: Params) -> Tensor:
        return frozen.scale * gated(params, inputs["features"]) @ frozen.class_features.mT  # [B, C]


def gated(params: Params, f: Tensor) -> Tensor:
    """The gated and normalised image features, [B, D]."""
    hidden = torch.tanh(F.linear(f, params["weight_1"], params["bias_1"]))
    gate = torch.softmax(F.linear(hidden, params["weight_2"], params["bias_2"]), dim=-1)
    return F.normalize(gate * f, dim=-1)


def _reachable(pairs: Tensor, filler: Tensor) -> Tensor:
    """Scores [B, B] in which rows that only fill up the batch are nobody's match but their own."""
    own = torch.eye(len(filler), dtype=torch.bool, device=pairs.device)
    return torch.where(own, pairs, pairs + filler)
