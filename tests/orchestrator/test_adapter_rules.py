"""Rules for low-rank adapters in whole runs: plans, catch-up and resuming."""

import pytest
import torch

from fl_core.federation import FEDERATIONS
from orchestrator.events import Committed
from orchestrator.experiment import run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.plan import make_plan
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments

ADAPTERS = "learner={name: lora_clip, towers: text, layers: 1, rank: 2}"
RULES = [kind.name for kind in FEDERATIONS if "lora" in kind.name or "feddpa" in kind.name]


@pytest.fixture
def setting(make_config):
    def make(rule, *overrides):
        return make_config(ADAPTERS, f"federation={rule}", "federation.rounds=4", *overrides)

    return make


def cohorts(config):
    return [tuple(record.accepted) for record in Result.load(run_folder(config)).records[1:]]


@pytest.mark.parametrize("rule", RULES)
def test_a_plan_says_what_cohorts_with_absent_clients_then_send(setting, rule):
    """Catch-up of those who missed a round included."""
    config = setting(rule, "federation.clients_per_round=3", "name=planned")
    plan, (result,) = make_plan(config), run_experiments([config])
    assert len(set(cohorts(config))) > 1
    sent = sum(sum(load) for record in result.records[1:] for load in record.loads.values())
    assert plan.total_bytes == sent


@pytest.mark.parametrize("rule", ["fedex_lora", "flora", "rolora", "fedsa_lora"])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(setting, rule):
    few = ("federation.clients_per_round=3", "federation.rounds=3")
    cut, whole = setting(rule, *few, "name=cut"), setting(rule, *few, "name=whole")
    for event in CoordinatorHost().run(cut):
        if isinstance(event, Committed) and event.record.round == 1:
            break
    ours, theirs = (run_experiments([config])[0] for config in (cut, whole))
    assert all(torch.equal(ours.parameters[n], t) for n, t in theirs.parameters.items())
    for mine, their in zip(ours.records, theirs.records, strict=True):
        kept = {n: v for n, v in their.metrics.items() if not n.startswith(MEASURED)}
        assert kept.items() <= mine.metrics.items()
        assert (mine.loads, mine.client_metrics) == (their.loads, their.client_metrics)
