"""The federation rules: how rounds go, what is shared, what stays personal. One file each."""

from typing import get_args

from fl_core.federation.base import Federation, LocalResult, Train, Trained
from fl_core.federation.centralised import Centralised
from fl_core.federation.ditto import Ditto
from fl_core.federation.exchange import Exchange
from fl_core.federation.fedavg import FedAvg
from fl_core.federation.feddpa_f import FedDPAF
from fl_core.federation.feddpa_t import FedDPAT
from fl_core.federation.feddyn import FedDyn
from fl_core.federation.fedex_lora import FedExLoRA
from fl_core.federation.fedgma import FedGMA
from fl_core.federation.fediir import FedIIR
from fl_core.federation.fedoa import FedOA
from fl_core.federation.fedopt import FedOpt
from fl_core.federation.fedprox import FedProx
from fl_core.federation.fedsa_lora import FedSALoRA
from fl_core.federation.ffa_lora import FFALoRA
from fl_core.federation.finetune import Finetune
from fl_core.federation.flexlora import FlexLoRA
from fl_core.federation.flora import FLoRA
from fl_core.federation.hetlora import HetLoRA
from fl_core.federation.local_only import LocalOnly
from fl_core.federation.moon import Moon
from fl_core.federation.perada import PerAda
from fl_core.federation.pfedme import PFedMe
from fl_core.federation.robust import Robust
from fl_core.federation.rolora import RoLoRA
from fl_core.federation.round_average import RoundAverage
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
    | PerAda
    | FFALoRA
    | FedSALoRA
    | RoLoRA
    | FedExLoRA
    | FLoRA
    | FlexLoRA
    | HetLoRA
    | FedDPAF
    | FedDPAT
    | FedGMA
    | FedIIR
    | RoundAverage
    | Exchange
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
    "Exchange",
    "FFALoRA",
    "FLoRA",
    "FedAvg",
    "FedDPAF",
    "FedDPAT",
    "FedDyn",
    "FedExLoRA",
    "FedGMA",
    "FedIIR",
    "FedOA",
    "FedOpt",
    "FedProx",
    "FedSALoRA",
    "Federation",
    "Finetune",
    "FlexLoRA",
    "HetLoRA",
    "LocalOnly",
    "LocalResult",
    "Moon",
    "PFedMe",
    "PerAda",
    "RoLoRA",
    "Robust",
    "RoundAverage",
    "Scaffold",
    "Train",
    "Trained",
]
