"""Centralised training, a reference row: one client holds all training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fl_core.federation.averaging import Averaging
from fl_core.types import Scope, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Centralised(Averaging):
    """FedAvg with a single client; a round passes over the data as often as FedAvg's clients do."""

    pooled: ClassVar[bool] = True
    communicates: ClassVar[bool] = False
    name: Literal["centralised"] = "centralised"

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        """One model for all: what a method would keep with each client is part of it."""
        return {
            name: "frozen" if spec.scope == "frozen" else "shared" for name, spec in specs.items()
        }
