"""Every way to run an experiment gives the same bits as running it in this process."""

import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch

from cluster.reserve import release, reserve
from fl_core.errors import ResourceError
from orchestrator.checkpoint import RunStore
from orchestrator.coordinator import Coordinator
from orchestrator.events import Committed
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import prepare_experiment, run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.large_message import PART_BYTES, LargeMessage
from orchestrator.memory import peak_bytes
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments
from orchestrator.session import Session

pytestmark = pytest.mark.ray

RULES = ("fedavg", "local_only")
"""One whose state is the server's, and one whose state is the clients'."""


def everything(config):
    """Final shared tensors, and all metrics but times, of a finished run."""
    result = Result.load(run_folder(config))
    rounds = [
        {n: v for n, v in record.metrics.items() if not n.startswith(MEASURED)}
        for record in result.records
    ]
    return result.parameters, rounds, [record.client_metrics for record in result.records]


def assert_same(ours, theirs):
    (params, rounds, clients), (other, other_rounds, other_clients) = ours, theirs
    assert params.keys() == other.keys()
    assert all(torch.equal(params[name], other[name]) for name in params)
    assert rounds == other_rounds
    assert clients == other_clients


@pytest.fixture
def reference(make_config):
    """What an uninterrupted run in this process gives, by federation."""

    def run(federation):
        config = make_config(f"federation={federation}", "name=reference")
        run_experiments([config])
        return everything(config)

    return run


SLACK_BYTES = 2**24
"""Linux counts a process's pages thread by thread, in batches: even a peak may read less later."""


def test_peak_memory_is_a_metric_and_no_part_of_equality(make_config):
    config = make_config()
    before = peak_bytes()
    result = run_experiments([config])[0]
    for process in ("actor", "coordinator"):
        peaks = [r.metrics.get(f"memory/{process}_peak_bytes", 0.0) for r in result.records]
        assert all(later >= earlier - SLACK_BYTES for earlier, later in pairwise(peaks))
        assert before - SLACK_BYTES <= peaks[-1] <= peak_bytes() + SLACK_BYTES
        assert result.summary[f"memory/{process}_peak_bytes"] == peaks[-1]


@pytest.fixture(scope="module")
def host(local_ray):
    """Coordinators in this process, on warm actors: ``host(n)`` has n slices of half a CPU."""
    hosts = {}

    def on(num):
        if num not in hosts:
            hosts[num] = CoordinatorHost(), reserve(num, {"CPU": 0.5})
        return hosts[num]

    yield on
    for one, slices in hosts.values():
        one.close()
        release(slices)


def test_one_two_and_four_actors_give_the_bits_of_the_inline_run(make_config, reference, host):
    for num_actors in (1, 2, 4):
        one, slices = host(num_actors)
        for federation in RULES:
            config = make_config(f"federation={federation}", f"name=on-{num_actors}")
            list(one.run(config, slices))
            assert one.executor.num_slots == num_actors
            assert_same(everything(config), reference(federation))


def test_clients_get_their_next_work_before_the_last_round_is_on_disk(make_config, reference):
    happened = []

    class Noting(InlineExecutor):
        def run(self, calls, shared=b""):
            happened.append("sent")
            return super().run(calls, shared)

    class NotingStore(RunStore):
        def commit(self, record, server, states, confusion=None):
            happened.append(f"committed {record.round}")
            return super().commit(record, server, states, confusion)

    expected = reference("ditto")
    config = make_config("federation=ditto", "name=noted", "evaluation.every=0")
    store = NotingStore(run_folder(config))
    for event in Coordinator(prepare_experiment(config), Noting(), store).run():
        if isinstance(event, Committed):  # whoever is told of a round finds it
            assert store.records()[-1].round == event.record.round
    start = happened.index("committed -1")
    assert happened[start : start + 5] == ["committed -1", "sent", "sent", "committed 0", "sent"]
    ended = store.server_state(store.records()[-1]).tensors
    assert all(torch.equal(ended[name], tensor) for name, tensor in expected[0].items())


def test_one_actor_per_client_is_the_group_of_one(make_config, host):
    one, slices = host(4)
    few = ("scenario.num_clients=4", "resources.group_size=1")
    spread, inline = make_config(*few, "name=spread"), make_config(*few, "name=inline")
    list(one.run(spread, slices))
    run_experiments([inline])
    assert_same(everything(spread), everything(inline))


@pytest.mark.parametrize("federation", RULES)
def test_a_killed_client_actor_loses_nothing(make_config, reference, host, federation):
    one, slices = host(2)
    config = make_config(f"federation={federation}", "name=killed")
    for event in one.run(config, slices):
        if isinstance(event, Committed) and event.record.round == 1:
            os.kill(one.executor.pids()[1], signal.SIGKILL)
    assert_same(everything(config), reference(federation))


def test_a_second_experiment_finds_the_actors_warm(make_config, host):
    one, slices = host(2)
    first, second = make_config("seed=1", "name=first"), make_config("seed=2", "name=second")
    list(one.run(first, slices))
    pids = one.executor.pids()
    list(one.run(second, slices))
    assert one.executor.pids() == pids
    assert not torch.equal(everything(first)[0]["context"], everything(second)[0]["context"])


def test_a_killed_coordinator_is_replaced_and_goes_on(make_config, reference, local_ray):
    on_ray = ("resources.executor=ray", "resources.slice.cpus=0.5", "resources.clients_per_actor=4")
    configs = [make_config(f"federation={rule}", *on_ray, "name=crash") for rule in RULES]
    session = Session(configs)
    killed = []
    for config in configs:
        for event in session.run(config):
            if isinstance(event, Committed) and event.record.round == 1 and not killed:
                killed.append(session.coordinator_pid())
                os.kill(killed[0], signal.SIGKILL)
    assert session.coordinator_pid() not in killed
    session.close()
    for config, rule in zip(configs, RULES, strict=True):
        assert_same(everything(config), reference(rule))


def test_more_actors_than_the_cluster_holds_are_refused_with_what_there_is(make_config, local_ray):
    per_client = ("resources.clients_per_actor=1", "resources.group_size=1")
    config = make_config("resources.executor=ray", *per_client, "resources.slice.cpus=2")
    with pytest.raises(ResourceError, match=r"asked for 8 client actors .*room for 4"):
        run_experiments([config])
    assert not (run_folder(config) / "rounds").exists()


def test_ray_lays_the_parts_of_a_large_message_out_in_a_row_so_that_none_is_copied(local_ray):
    sizes = (PART_BYTES - 1, PART_BYTES, PART_BYTES + 72, 3 * PART_BYTES)
    draws = np.random.default_rng(0)
    messages = [draws.integers(0, 256, size, np.uint8).tobytes() for size in sizes]
    back = local_ray.get(local_ray.put([LargeMessage(message) for message in messages]))
    assert back == messages
    assert [isinstance(view.obj, np.ndarray) for view in back] == [True] * len(sizes)  # no join
