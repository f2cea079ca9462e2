"""The federation rules: how rounds go, what is shared, what stays personal. One file each."""

from fl_core.federation.base import Federation, LocalResult, Train, Trained
from fl_core.federation.centralised import Centralised
from fl_core.federation.fedavg import FedAvg
from fl_core.federation.fedprox import FedProx
from fl_core.federation.local_only import LocalOnly

AnyFederation = FedAvg | FedProx | LocalOnly | Centralised
"""At once the config schema, the list in error messages, and the list for the contract tests."""

FEDERATIONS: tuple[type[AnyFederation], ...] = (FedAvg, FedProx, LocalOnly, Centralised)

__all__ = [
    "FEDERATIONS",
    "AnyFederation",
    "Centralised",
    "FedAvg",
    "FedProx",
    "Federation",
    "LocalOnly",
    "LocalResult",
    "Train",
    "Trained",
]
