"""Optimisers as pure functions over explicit state, and the learning rate over a run.

The arithmetic is that of ``torch.optim.SGD`` and ``torch.optim.AdamW``; state lives in ``Params``
so that it can be stacked over clients, masked, stored and resumed like any other tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.types import Params

FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum (no dampening) and L2 weight decay."""

    __pydantic_config__: ClassVar = FORBID
    name: Literal["sgd"] = "sgd"
    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_fields(self, lr="> 0", momentum="from 0 to below 1", weight_decay=">= 0")

    def init(self, params: Params) -> Params:
        if not self.momentum:
            return {}
        return {f"momentum.{name}": torch.zeros_like(p) for name, p in params.items()}

    def step(
        self, params: Params, grads: Params, state: Params, lr: Tensor
    ) -> tuple[Params, Params]:
        """One step at learning rate ``lr`` (a scalar tensor): (new parameters, new state)."""
        new_params, new_state = {}, {}
        for name, p in params.items():
            direction = grads[name] + self.weight_decay * p if self.weight_decay else grads[name]
            if self.momentum:
                direction = self.momentum * state[f"momentum.{name}"] + direction
                new_state[f"momentum.{name}"] = direction
            new_params[name] = torch.addcmul(p, lr.to(p.dtype), direction, value=-1)
        return new_params, new_state


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    __pydantic_config__: ClassVar = FORBID
    name: Literal["adamw"] = "adamw"
    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            lr="> 0",
            beta1="from 0 to below 1",
            beta2="from 0 to below 1",
            eps="> 0",
            weight_decay=">= 0",
        )

    def init(self, params: Params) -> Params:
        state = {f"mean.{name}": torch.zeros_like(p) for name, p in params.items()}
        state |= {f"square.{name}": torch.zeros_like(p) for name, p in params.items()}
        some = next(iter(params.values()))
        return state | {"num_steps": torch.zeros((), dtype=some.dtype, device=some.device)}

    def step(
        self, params: Params, grads: Params, state: Params, lr: Tensor
    ) -> tuple[Params, Params]:
        """One step at learning rate ``lr`` (a scalar tensor): (new parameters, new state)."""
        num_steps = state["num_steps"] + 1
        bias1, bias2 = 1 - self.beta1**num_steps, 1 - self.beta2**num_steps
        new_params: Params = {}
        new_state: Params = {"num_steps": num_steps}
        for name, p in params.items():
            mean = self.beta1 * state[f"mean.{name}"] + (1 - self.beta1) * grads[name]
            square = self.beta2 * state[f"square.{name}"] + (1 - self.beta2) * grads[name] ** 2
            denominator = (square / bias2).sqrt() + self.eps
            decayed = p * (1 - lr * self.weight_decay) if self.weight_decay else p
            new_params[name] = decayed - lr * (mean / bias1) / denominator
            new_state |= {f"mean.{name}": mean, f"square.{name}": square}
        return new_params, new_state


Optimizer = SGD | AdamW
OPTIMIZERS: tuple[type[Optimizer], ...] = (SGD, AdamW)

Schedule = Literal["cosine", "linear", "constant"]


def decay(schedule: Schedule, progress: float) -> float:
    """The factor on the learning rate at ``progress`` in [0, 1]: 1 at the start, 0 at the end."""
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def clip_by_norm(grads: Params, max_norm: float) -> Params:
    """Scale all gradients together so that their joint L2 norm is at most ``max_norm``."""
    square = torch.stack([(g**2).sum() for g in grads.values()]).sum()
    factor = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
    return {name: g * factor for name, g in grads.items()}
