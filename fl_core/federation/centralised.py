"""Centralised training, a reference row: one client holds all training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl_core.federation.base import Averaging


@dataclass(frozen=True, kw_only=True)
class Centralised(Averaging):
    """FedAvg with a single client; a round passes over the data as often as FedAvg's clients do."""

    pooled: ClassVar[bool] = True
    communicates: ClassVar[bool] = False
    name: Literal["centralised"] = "centralised"
