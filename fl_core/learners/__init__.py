"""The learners: what is trained on a client, and on which loss. One file each."""

from typing import get_args

from fl_core.learners.base import HasClassFeatures, HasExampleFeatures, Learner
from fl_core.learners.bpl import BPL
from fl_core.learners.clip_adapter import ClipAdapter
from fl_core.learners.cocoop import CoCoOp
from fl_core.learners.coop import CoOp
from fl_core.learners.dpfpl import DPFPL
from fl_core.learners.fedclip import FedCLIP
from fl_core.learners.fedotp import FedOTP
from fl_core.learners.fedpgp import FedPGP
from fl_core.learners.fedtpg import FedTPG
from fl_core.learners.ia3 import IA3
from fl_core.learners.kgcoop import KgCoOp
from fl_core.learners.lora import LoRA
from fl_core.learners.lora_clip import LoraClip
from fl_core.learners.maple import MaPLe
from fl_core.learners.pfedmoap import PFedMoAP
from fl_core.learners.plot import Plot
from fl_core.learners.prefix import Prefix
from fl_core.learners.proda import ProDA
from fl_core.learners.prograd import ProGrad
from fl_core.learners.prompt_tuning import PromptTuning
from fl_core.learners.promptfolio import PromptFolio
from fl_core.learners.promptsrc import PromptSRC
from fl_core.learners.vpt import VPT
from fl_core.learners.zero_shot import ZeroShot

AnyLearner = (
    ZeroShot
    | CoOp
    | CoCoOp
    | KgCoOp
    | ProGrad
    | ProDA
    | MaPLe
    | VPT
    | PromptSRC
    | FedTPG
    | Plot
    | FedPGP
    | FedOTP
    | PromptFolio
    | PFedMoAP
    | DPFPL
    | BPL
    | LoraClip
    | ClipAdapter
    | FedCLIP
    | LoRA
    | IA3
    | PromptTuning
    | Prefix
)
"""At once the config schema, the list in error messages, and the list for the contract tests."""

LEARNERS: tuple[type[AnyLearner], ...] = get_args(AnyLearner)

__all__ = [
    "BPL",
    "DPFPL",
    "IA3",
    "LEARNERS",
    "VPT",
    "AnyLearner",
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "FedCLIP",
    "FedOTP",
    "FedPGP",
    "FedTPG",
    "HasClassFeatures",
    "HasExampleFeatures",
    "KgCoOp",
    "Learner",
    "LoRA",
    "LoraClip",
    "MaPLe",
    "PFedMoAP",
    "Plot",
    "Prefix",
    "ProDA",
    "ProGrad",
    "PromptFolio",
    "PromptSRC",
    "PromptTuning",
    "ZeroShot",
]
