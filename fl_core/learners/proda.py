"""ProDA (Lu et al., 2022, arXiv:2205.03340): a Gaussian over class weights, from many prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.backbones.prompt_plan import Position
from fl_core.checks import check_fields
from fl_core.draws import uniform
from fl_core.errors import ConfigError
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import Prompts, features_of_each, first_context, prepare_prompts
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class ProDAFrozen:
    """parts: how many prompts have the class name in one place, and their frozen half.

    bare: prompts without a class name, for the term that keeps prompts apart.
    """

    parts: tuple[tuple[int, Prompts], ...]
    bare: Prompts


@dataclass(frozen=True)
class ProDA:
    """An upper bound of E[cross entropy] for w ~ N(mu, Sigma).

    logit_k = s f.mu_k + s^2/2 (A_yy + A_kk - 2 A_yk), A_ij = f^2 . cov_ij per dimension, with mu
    and cov over the P prompts; plus spread * mean |cos| between the class-free prompts. Prediction
    is with mu.

    num_prompts: P; 1 is CoOp. prompt_batch: how many of them a step draws, anew each time, and
    estimates mu, cov and the overlap from; None is all. num_tokens: M. spread: lambda. The class
    name stands at the end in half of the prompts, in front and in the middle in a quarter each, of
    all and of those drawn.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 2048
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["proda"] = "proda"
    num_prompts: int = 32
    prompt_batch: int | None = 4
    num_tokens: int = 16
    spread: float = 0.1

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_prompts", "prompt_batch", "num_tokens"), ">= 1")
        check_fields(self, spread=">= 0", **counts)
        drawn, held = _places(self.prompt_batch or 1), _places(self.num_prompts)
        fits = all(min(held[place], 1) <= drawn[place] <= held[place] for place in held)
        if not fits and (self.prompt_batch or self.num_prompts) < self.num_prompts:
            raise ConfigError(
                f"prompt_batch = {self.prompt_batch} is not allowed with num_prompts = "
                f"{self.num_prompts}: it would draw {drawn['end']} prompts with the class name at "
                f"the end and {drawn['front']} in front, of {held['end']} and {held['front']}, and "
                "each must have its turn. Use a multiple of 4, or null for all."
            )

    def prepare(self, backbone: Clip, task: Task) -> ProDAFrozen:
        parts = tuple(
            (num, prepare_prompts(backbone, task, self.num_tokens, position=position))
            for position, num in _places(self.num_prompts).items()
            if num
        )
        return ProDAFrozen(parts, prepare_prompts(backbone, Task(("",)), self.num_tokens))

    def init(self, frozen: ProDAFrozen, generator: torch.Generator) -> Params:
        return {"context": first_context(frozen.bare, generator, self.num_prompts)}  # [P, M, d_t]

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def loss(self, params: Params, frozen: ProDAFrozen, batch: Batch) -> Tensor:
        contexts = self._drawn(params, frozen, batch.key)
        w = self._features(contexts, frozen)  # [P, C, D]
        f, scale = batch.inputs["features"], frozen.bare.scale
        mean = w.mean(dim=0)
        spread = w - mean
        a_kk = f**2 @ (spread**2).mean(dim=0).mT  # [B, C]
        a_yk = ((f**2 * spread[:, batch.labels]) @ spread.mT).mean(dim=0)  # [B, C]
        a_yy = a_kk.gather(-1, batch.labels.unsqueeze(-1))  # [B, 1]
        logits = scale * f @ mean.mT + scale**2 / 2 * (a_yy + a_kk - 2 * a_yk)
        return masked_cross_entropy(logits, batch) + self._overlap(contexts, frozen)

    def logits(self, params: Params, frozen: ProDAFrozen, inputs: Params) -> Tensor:
        mean = self._features(self._drawn(params, frozen, None), frozen).mean(dim=0)  # [C, D]
        return frozen.bare.scale * inputs["features"] @ mean.mT  # [B, C]

    def _drawn(self, params: Params, frozen: ProDAFrozen, key: Tensor | None) -> list[Tensor]:
        """The contexts [p, M, d_t] that a step with this key draws of each part; None: all."""
        parts = torch.split(params["context"], [num for num, _ in frozen.parts])
        if key is None or self.prompt_batch is None or self.prompt_batch >= self.num_prompts:
            return list(parts)
        counts = [num for num in _places(self.prompt_batch).values() if num]
        orders = [uniform(key, f"prompts {i}", len(part)).argsort() for i, part in enumerate(parts)]
        drawn = zip(parts, orders, counts, strict=True)
        return [part.index_select(0, order[:num]) for part, order, num in drawn]

    def _features(self, contexts: list[Tensor], frozen: ProDAFrozen) -> Tensor:
        parts = zip(frozen.parts, contexts, strict=True)
        return torch.cat([features_of_each(own, context) for (_, own), context in parts])

    def _overlap(self, contexts: list[Tensor], frozen: ProDAFrozen) -> Tensor | float:
        """spread * mean |cos| over pairs of different class-free prompts; 0 for one prompt."""
        num = sum(len(context) for context in contexts)
        if num == 1 or not self.spread:
            return 0.0
        bare = features_of_each(frozen.bare, torch.cat(contexts))[:, 0]  # [p, D]
        pairs = torch.triu_indices(num, num, 1, device=bare.device)
        cosines = (bare[pairs[0]] * bare[pairs[1]]).sum(dim=-1)
        return self.spread * cosines.abs().mean()


def _places(num: int) -> dict[Position, int]:
    """Where the class name stands in how many of ``num`` prompts."""
    return {"front": num // 4, "middle": num // 4, "end": num - 2 * (num // 4)}
