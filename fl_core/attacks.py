"""Clients that work against the others: what they send, or what they train on, is poisoned.

Label and sign flips as in Blanchard et al., 2017, arXiv:1703.02757, and Karimireddy et al., 2021,
arXiv:2012.10333; Gaussian noise in place of an update as in the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.seeds import generator
from fl_core.types import Params


class _AsAsked:
    """Does what it was asked to; an attack overrides what it poisons."""

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """What an attacker trains on in the place of its labels [N]."""
        return labels

    def update(self, update: Params, draws: torch.Generator) -> Params:
        """What an attacker sends in the place of its update."""
        return update


@dataclass(frozen=True)
class NoAttack(_AsAsked):
    """Every client is honest."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    name: Literal["none"] = "none"

    def faults(self, num_clients: int) -> list[str]:
        return []

    def attackers(self, seed: int, clients: Sequence[int]) -> frozenset[int]:
        return frozenset()


@dataclass(frozen=True)
class _Attack(_AsAsked):
    """fraction: the share of all clients that attack; who they are does not depend on a method."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    fraction: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, fraction="above 0 to 1")

    def faults(self, num_clients: int) -> list[str]:
        """What cannot be with so many clients."""
        if round(self.fraction * num_clients):
            return []
        return [
            f"attack.fraction = {self.fraction:g} of {num_clients} clients is nobody: set it to "
            f"{1 / num_clients:.2g} or more, or leave attack out."
        ]

    def attackers(self, seed: int, clients: Sequence[int]) -> frozenset[int]:
        """round(fraction * N) of N clients, drawn by name."""
        order = torch.randperm(len(clients), generator=generator(seed, "attackers")).tolist()
        return frozenset(clients[i] for i in order[: round(self.fraction * len(clients))])


@dataclass(frozen=True)
class LabelFlip(_Attack):
    """Trains as asked, with class C - 1 - c in the place of c, and sends what comes of it."""

    name: Literal["label_flip"] = "label_flip"

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        return num_classes - 1 - labels


@dataclass(frozen=True)
class SignFlip(_Attack):
    """Sends -scale times its update."""

    name: Literal["sign_flip"] = "sign_flip"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, scale="> 0")

    def update(self, update: Params, draws: torch.Generator) -> Params:
        return {name: -self.scale * tensor for name, tensor in update.items()}


@dataclass(frozen=True)
class GaussianNoise(_Attack):
    """Sends N(0, std^2) in the place of every value of its update."""

    name: Literal["gaussian"] = "gaussian"
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, std="> 0")

    def update(self, update: Params, draws: torch.Generator) -> Params:
        return {
            name: (self.std * torch.randn(t.shape, generator=draws, dtype=torch.float64)).to(t)
            for name, t in sorted(update.items())
        }


AnyAttack = NoAttack | LabelFlip | SignFlip | GaussianNoise
"""At once the config schema and the list in error messages."""
