"""The federation rules: how rounds go, what is shared, what stays personal. One file each."""

from typing import get_args

from fl_core.federation.base import Federation, LocalResult, Train, Trained
from fl_core.federation.centralised import Centralised
from fl_core.federation.ditto import Ditto
from fl_core.federation.fedavg import FedAvg
from fl_core.federation.feddyn import FedDyn
from fl_core.federation.fedoa import FedOA
from fl_core.federation.fedopt import FedOpt
from fl_core.federation.fedprox import FedProx
from fl_core.federation.finetune import Finetune
from fl_core.federation.local_only import LocalOnly
from fl_core.federation.moon import Moon
from fl_core.federation.pfedme import PFedMe
from fl_core.federation.robust import Robust
from fl_core.federation.scaffold import Scaffold

AnyFederation = (
    FedAvg
    | FedProx
    | Scaffold
    | FedOpt
    | FedDyn
    | Moon
    | Robust
    | Ditto
    | Finetune
    | FedOA
    | PFedMe
    | LocalOnly
    | Centralised
)
"""At once the config schema, the list in error messages, and the list for the contract tests."""

FEDERATIONS: tuple[type[AnyFederation], ...] = get_args(AnyFederation)

__all__ = [
    "FEDERATIONS",
    "AnyFederation",
    "Centralised",
    "Ditto",
    "FedAvg",
    "FedDyn",
    "FedOA",
    "FedOpt",
    "FedProx",
    "Federation",
    "Finetune",
    "LocalOnly",
    "LocalResult",
    "Moon",
    "PFedMe",
    "Robust",
    "Scaffold",
    "Train",
    "Trained",
]
