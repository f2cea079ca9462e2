"""Local-only training, a reference row: every client learns alone and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fl_core.federation.averaging import Averaging
from fl_core.types import Params, Scope, ServerState, TensorSpec


@dataclass(frozen=True, kw_only=True)
class LocalOnly(Averaging):
    """Every tensor is personal; the example passes are those of FedAvg's clients."""

    communicates: ClassVar[bool] = False
    name: Literal["local_only"] = "local_only"

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return dict.fromkeys(specs, "personal")

    def shared_model(self, server: ServerState) -> Params | None:
        return None
