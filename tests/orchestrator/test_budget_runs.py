"""Runs under a budget, and codecs in whole runs: where they stop, what a resume must not lose."""

import os
import re
import signal

import pytest
import torch

from cluster.reserve import release, reserve
from fl_core.errors import ConfigError, FedarenaError
from orchestrator.client import ClientActor
from orchestrator.events import Committed
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.plan import make_plan
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments


def run(config):
    return run_experiments([config])[0]


def interrupted(config, after_round):
    """Run until a round is committed, then drop everything that only memory held."""
    for event in CoordinatorHost().run(config):
        if isinstance(event, Committed) and event.record.round == after_round:
            return


def untimed(record):
    return {
        name: value
        for name, value in record.metrics.items()
        if name == "time/link_s" or not name.startswith(MEASURED)
    }


def assert_equal_runs(ours, theirs):
    assert len(ours.records) == len(theirs.records)
    for mine, their in zip(ours.records, theirs.records, strict=True):
        assert untimed(mine) == untimed(their)
        assert mine.loads == their.loads
        assert mine.client_metrics == their.client_metrics
    assert all(torch.equal(ours.parameters[n], t) for n, t in theirs.parameters.items())


def sent_in(result):
    """Bytes of all clients in a run, summed over the clients of every record."""
    return sum(sum(load) for record in result.records for load in record.loads.values())


def bytes_of_a_round(config):
    plan = make_plan(config)
    return plan.round_up_bytes + plan.round_down_bytes


def test_a_budget_ends_the_run_and_the_schedule_and_the_end_is_scored(make_config):
    round_bytes = bytes_of_a_round(make_config())
    limited = make_config(
        "name=limited", "federation.rounds=30", "evaluation.every=0",
        f"communication.budget.megabytes={round_bytes * 3.9 / 1e6}",
    )  # fmt: skip
    plan, result = make_plan(limited), run(limited)
    assert (plan.rounds, plan.asked_rounds, plan.one_run_answers) == (3, 30, False)
    assert [record.round for record in result.records] == [-1, 0, 1, 2]
    assert sent_in(result) == plan.total_bytes == 3 * round_bytes
    total = sum(r.metrics["comm/up_bytes"] + r.metrics["comm/down_bytes"] for r in result.records)
    assert total == sent_in(result)
    left = [record.metrics["comm/budget_left_bytes"] for record in result.records]
    whole = round(round_bytes * 3.9)
    assert left == [whole - n * round_bytes for n in range(4)]
    assert 0 <= left[-1] < round_bytes
    assert result.summary["comm/budget_left_bytes"] == left[-1]
    assert "eval/global/accuracy" in result.records[-1].metrics
    three = run(make_config("name=three", "federation.rounds=3", "evaluation.every=0"))
    assert torch.equal(result.parameters["context"], three.parameters["context"])


def test_with_a_constant_rate_a_smaller_budget_is_the_beginning_of_a_larger_one(make_config):
    constant = ("federation.rounds=6", "training.schedule=constant")
    round_bytes = bytes_of_a_round(make_config())
    small = make_config(
        "name=small", *constant, f"communication.budget.megabytes={round_bytes * 2 / 1e6}"
    )
    assert make_plan(small).one_run_answers
    small, large = run(small), run(make_config("name=large", *constant))
    assert len(small.records) == 3
    for mine, their in zip(small.records, large.records, strict=False):
        ours = {n: v for n, v in untimed(mine).items() if n != "comm/budget_left_bytes"}
        assert ours == untimed(their)


def test_a_budget_for_no_round_is_refused_before_anything_is_computed(make_config, tmp_path):
    config = make_config("communication.budget.megabytes=0.0001", f"store={tmp_path / 'store'}")
    with pytest.raises(ConfigError, match=r"100 bytes.*admits no round: the first needs [\d,]+"):
        run(config)
    with pytest.raises(ConfigError, match="admits no round"):
        make_plan(config)
    assert not (run_folder(config) / "rounds").exists()
    assert not list((tmp_path / "store").rglob("*.arrow"))


@pytest.mark.parametrize("after_round", [-1, 1, 3])
def test_a_resume_stops_where_the_undisturbed_run_stops(make_config, after_round):
    settings = (
        "federation.clients_per_round=3", "federation.rounds=20", "training.schedule=constant",
        "communication.budget={megabytes: 0.006, per: client, seconds: 1.1}",
        "communication.links=[{fraction: 0.5}, {fraction: 0.5, up_mbps: 1, latency_s: 0.1}]",
    )  # fmt: skip
    cut, whole = make_config("name=cut", *settings), make_config("name=whole", *settings)
    interrupted(cut, after_round)
    cut, whole = run(cut), run(whole)
    assert 4 < len(whole.records) < 21
    assert_equal_runs(cut, whole)
    used = {}
    for record in whole.records:
        for client, load in record.loads.items():
            used[client] = used.get(client, 0) + sum(load)
    assert max(used.values()) <= 6000
    seconds = sum(record.metrics["time/link_s"] for record in whole.records)
    assert seconds <= 1.1
    assert whole.summary["time/link_s"] == pytest.approx(seconds)
    assert whole.summary["time/budget_left_s"] == pytest.approx(1.1 - seconds)


TOP_K = (
    "communication.codec={name: top_k, fraction: 0.2, values: int8}",
    "federation.clients_per_round=3", "federation.rounds=6",
)  # fmt: skip


@pytest.mark.parametrize("rule", ["fedavg", "fedprox"])
@pytest.mark.parametrize("after_round", [0, 3])
def test_residuals_survive_a_resume_bit_for_bit(make_config, rule, after_round):
    cut = make_config("name=cut", f"federation={rule}", *TOP_K)
    whole = make_config("name=whole", f"federation={rule}", *TOP_K)
    interrupted(cut, after_round)
    assert_equal_runs(run(cut), run(whole))


def test_a_residual_is_kept_while_its_client_is_absent_and_is_what_was_not_sent(make_config):
    config = make_config(*TOP_K, "name=states")
    host, held = CoordinatorHost(), {}
    for event in host.run(config):
        if not isinstance(event, Committed):
            continue
        states = host.executor.actor.states
        for client in set(held) - set(event.record.accepted):
            for name, tensor in held[client].items():
                assert torch.equal(states[client][1][name], tensor)
        for client in event.record.accepted:
            assert states[client][0] == event.record.round
            held[client] = {n: t.clone() for n, t in states[client][1].items()}
            (residual,) = held[client].values()
            assert torch.count_nonzero(residual) > 0.7 * residual.numel()
    assert len(held) > 3


class ThreeSlots(InlineExecutor):
    """Three actors in this process, called in turn and answering in the opposite order."""

    def __init__(self):
        self.num_slots, self.actors = 3, [ClientActor() for _ in range(3)]

    def configure(self, setup):
        for actor in self.actors:
            actor.configure(setup)

    def run(self, calls, shared=b""):
        answers = [(c.slot, self.actors[c.slot].do(c.make(False), shared)) for c in calls]
        yield from reversed(answers)


@pytest.mark.parametrize("codec", ["int8", "{name: top_k, fraction: 0.2, values: int8}"])
def test_the_number_of_actors_changes_no_bit_of_what_is_rounded_or_left_out(
    make_config, monkeypatch, codec
):
    settings = (f"communication.codec={codec}", "resources.group_size=1", "federation.rounds=3")
    one = run(make_config("name=one", *settings))
    monkeypatch.setattr("orchestrator.host.InlineExecutor", ThreeSlots)
    assert_equal_runs(run(make_config("name=three", *settings)), one)


def test_a_client_above_the_norm_is_dropped_each_round_and_its_residual_stays(make_config):
    settings = ("communication.codec={name: top_k, fraction: 0.2}", "federation.rounds=3")
    bound = "communication.max_update_norm"
    with pytest.raises(FedarenaError, match="every client of the cohort failed") as caught:
        run(make_config("name=none", *settings, f"{bound}=1e-9"))
    norms = sorted(map(float, re.findall(r"L2 norm is ([\d.e-]+),", str(caught.value))))
    assert len(norms) == 5
    result = run(make_config("name=some", *settings, f"{bound}={norms[2]}"))
    assert 2 <= len(result.records[1].failures) < 8
    for record in result.records[1:]:
        assert set(record.stateful) == set(record.accepted)
        assert record.metrics["clients/failed"] == len(record.failures) == 8 - len(record.accepted)
        for client, reason in record.failures.items():
            assert f"round {record.round}, client {client}: the update's L2 norm" in reason
            assert int(client) not in record.accepted
            assert record.loads[client][0] > 0  # it was sent, so it counts


def test_a_plan_says_what_the_run_then_sends_in_each_direction(make_config):
    config = make_config("communication.up=int8", "communication.down=bf16", "name=planned")
    plan, result = make_plan(config), run(config)
    for record in result.records[1:]:
        assert record.metrics["comm/up_bytes"] == plan.round_up_bytes
        assert record.metrics["comm/down_bytes"] == plan.round_down_bytes
    assert plan.total_bytes == sent_in(result)
    assert plan.link_s is None
    assert "comm/budget_left_bytes" not in result.records[-1].metrics
    assert "time/link_s" not in result.records[-1].metrics


@pytest.mark.ray
def test_on_ray_a_killed_actor_loses_no_residual_and_costs_no_bytes(make_config, local_ray):
    settings = (*TOP_K, "communication.budget={megabytes: 0.02}", "federation.rounds=20")
    inline = run(make_config("name=inline", *settings))
    assert 5 < len(inline.records) < 21
    host, slices = CoordinatorHost(), reserve(2, {"CPU": 0.5})
    config = make_config("name=on-ray", *settings)
    for event in host.run(config, slices):
        if isinstance(event, Committed) and event.record.round == 2:
            os.kill(host.executor.pids()[1], signal.SIGKILL)
    host.close()
    release(slices)
    assert_equal_runs(Result.load(run_folder(config)), inline)
