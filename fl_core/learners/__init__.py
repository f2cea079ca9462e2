"""The learners: what is trained on a client, and on which loss. One file each."""

from fl_core.learners.base import Learner
from fl_core.learners.coop import CoOp
from fl_core.learners.zero_shot import ZeroShot

AnyLearner = ZeroShot | CoOp
"""At once the config schema, the list in error messages, and the list for the contract tests."""

LEARNERS: tuple[type[AnyLearner], ...] = (ZeroShot, CoOp)

__all__ = ["LEARNERS", "AnyLearner", "CoOp", "Learner", "ZeroShot"]
