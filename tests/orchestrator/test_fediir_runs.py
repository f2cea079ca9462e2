"""FedIIR in whole runs: plans, resuming, and what is taken for the model."""

import torch

from orchestrator.events import Committed
from orchestrator.host import CoordinatorHost
from orchestrator.plan import make_plan
from orchestrator.run import run_experiments


def test_a_whole_run_sends_what_its_plan_says_and_the_gradients_are_in_no_model(make_config):
    """Cut off after two rounds, it ends as one that was not: the average is part of the state."""
    terms = ("federation=fediir", "federation.strength=0.1", "federation.rounds=3")
    cut, whole = make_config(*terms, "name=cut"), make_config(*terms, "name=whole")
    for event in CoordinatorHost().run(cut):
        if isinstance(event, Committed) and event.record.round == 1:
            break
    ours, theirs = (run_experiments([config])[0] for config in (cut, whole))
    assert set(ours.parameters) == set(theirs.parameters) == {"context"}
    assert torch.equal(ours.parameters["context"], theirs.parameters["context"])
    sent = sum(sum(load) for record in theirs.records[1:] for load in record.loads.values())
    assert make_plan(whole).total_bytes == sent
    plain = run_experiments([make_config("federation.rounds=3", "name=plain")])[0]
    assert not torch.equal(plain.parameters["context"], theirs.parameters["context"])
