"""What the server trains itself, as a work item of one slot: there the backbone is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from safetensors.torch import load, save

from fl_core.distillation import Refine, Refined
from fl_core.errors import ConfigError
from fl_core.federation import Federation
from fl_core.federation.states import as_kept
from fl_core.types import Params, ServerState
from orchestrator.executors import Call, Executor
from orchestrator.jobs import RefineJob, RefineReply

Rows = npt.NDArray[np.int64]


def check_public(rule: Federation, public: Rows) -> None:
    """ConfigError where a rule trains on the server and there is nothing to train on."""
    if rule.server_training() is not None and not len(public):
        raise ConfigError(
            f"federation={rule.name} with federation.distillation trains on public examples, and "
            "there are none: set scenario.public_fraction, such as 0.1, or leave distillation out."
        )


def refine_on(executor: Executor, public: Rows) -> Refine:
    """public: rows of the experiment's data. A slot that dies is replaced, and does it again."""

    def refine(server: ServerState, update: Params) -> Refined:
        held = as_kept(server.tensors, "server") | as_kept(update, "update")
        job = RefineJob(server.round, public)
        message = save({name: tensor.contiguous() for name, tensor in held.items()})
        calls = [Call(0, lambda cold: job)]
        ((_, (reply,)),) = executor.run(calls, message)
        assert isinstance(reply, RefineReply)  # a RefineJob is answered by nothing else
        return Refined(load(reply.tensors), reply.metrics)

    return refine
