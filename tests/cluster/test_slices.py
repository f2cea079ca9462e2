"""Slices on a cluster of several nodes whose GPUs are only pretended, and their arithmetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.slices import check_placement, count_slices, equal_shares, slice_bundle
from fl_core.errors import ConfigError, ResourceError
from orchestrator.config import Slice
from orchestrator.experiment import prepare_experiment
from orchestrator.host import idle_gpus
from orchestrator.loading import load_config, resolve, to_yaml
from orchestrator.plan import outline

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found():
    """What ``pretended_gpus.py`` saw: a head without GPUs, a node with two, one with one."""
    command = [sys.executable, str(HERE / "pretended_gpus.py")]
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-these-tests-" + "0" * 32}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=HERE.parents[1], env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.slow
def test_quarters_of_a_gpu_are_placed_four_to_a_gpu_and_never_across_nodes(found):
    assert found["room"] == 12
    held = {}
    for node, gpus in found["quarters"]:
        assert len(gpus) == 1
        held[node, gpus[0]] = held.get((node, gpus[0]), 0) + 1
    assert sum(held.values()) == 8
    assert max(held.values()) <= 4


@pytest.mark.ray
@pytest.mark.slow
def test_more_slices_than_there_are_is_refused_with_both_numbers(found):
    told = found["too many"]
    for word in ("asked for 99", "GPU 0.25", "room for 12", "GPU 2", "GPU 1"):
        assert word in told


@pytest.mark.ray
@pytest.mark.slow
def test_two_jobs_on_one_cluster_do_not_meet(found):
    second = found["second"]
    first = {(node, tuple(gpus)) for node, gpus in found["wide"]}
    assert len(first) == 2
    assert "asked for" not in second["refused"], "the cluster would have three"
    assert "were not free within 1 s" in second["refused"]
    assert {(node, tuple(gpus)) for node, gpus in second["own"]}.isdisjoint(first)
    assert second["names"] == []


@pytest.mark.ray
@pytest.mark.slow
def test_slices_that_other_work_holds_are_waited_for(found):
    assert len(found["waited"]) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_the_memory_of_a_gpu_that_nobody_can_ask_is_not_guessed(found):
    assert "nvidia-smi does not tell on node" in found["gpu memory"]
    assert "resources.slice.gpus=0.25" in found["gpu memory"]


# -- arithmetic ----------------------------------------------------------------------------------


def test_a_slice_takes_the_scarcest_resource_of_each_node():
    nodes = [{"CPU": 16, "GPU": 2, "memory": 8 * 2**30}, {"CPU": 3, "GPU": 4}, {"CPU": 64}]
    assert count_slices(nodes, slice_bundle(1, 0.25, 0)) == 8 + 3 + 0
    assert count_slices(nodes, slice_bundle(1, 0.25, 2)) == 4
    assert count_slices(nodes, slice_bundle(0, 0.3, 0)) == 6 + 13
    with pytest.raises(ResourceError, match=r"asked for 12 .*room for 11"):
        check_placement(12, nodes, slice_bundle(1, 0.25, 0))


def test_gpus_that_no_slice_asks_for_are_counted():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert idle_gpus(nodes, slice_bundle(cpus=1.0, gpus=0.0, memory_gb=0.0)) == 3
    assert idle_gpus(nodes, slice_bundle(cpus=1.0, gpus=0.25, memory_gb=0.0)) == 0
    assert idle_gpus(nodes[1:2], slice_bundle(cpus=1.0, gpus=0.0, memory_gb=0.0)) == 0


def test_equal_shares_are_never_more_than_a_gpu():
    assert equal_shares(20e9, 80e9, most=16) == 0.25
    assert equal_shares(20e9, 79e9, most=16) == 0.3333
    assert equal_shares(1e9, 80e9, most=6) == 0.1666
    for num in range(1, 60):
        assert equal_shares(1.0, num, most=100) * num <= 1
    with pytest.raises(ResourceError, match=r"needs about 18\.6 GiB .* has 9\.3 GiB"):
        equal_shares(20e9, 10e9, most=16)


# -- auto ----------------------------------------------------------------------------------------


def test_an_auto_slice_is_one_cpu_where_there_is_no_gpu(make_config, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = make_config("resources.slice=auto", "resources.executor=ray")
    assert config.resources.slice == Slice(cpus=1)
    assert "slice:\n    cpus: 1.0" in to_yaml(config)
    assert resolve(load_config({"resources": {"slice": {"gpus": 0.5}}})).resources.slice.gpus == 0.5
    with pytest.raises(ConfigError, match=r"resources\.slice = 'atuo' is not known"):
        load_config({"resources": {"slice": "atuo"}})


def test_the_memory_of_an_actor_follows_the_stated_formula(make_config):
    from orchestrator.sizing import CONTEXT_BYTES, gpu_bytes

    experiment = prepare_experiment(make_config())
    initial = outline(experiment).initial
    weights = sum(p.stat().st_size for p in experiment.backbone.folder.glob("*.safetensors"))
    features = 168 * 32  # 120 training and 48 test images
    training = 2 * (4 * 4 * 32 + 20 * 4 * 3 * 32 * 2)  # groups of 2; 4 tokens; 3 classes; 2 layers
    encoding = 64 * 5 * (10 * 32 + 2 * 5)  # 64 images of 4 patches and a class token, 2 heads
    assert encoding > training
    wanted = CONTEXT_BYTES + weights + 4 * (features + encoding)
    assert gpu_bytes(experiment, initial) == pytest.approx(wanted, rel=1e-12)
    large = prepare_experiment(make_config("resources.group_size=16"))
    training = 16 * (4 * 4 * 32 + 20 * 4 * 3 * 32 * 2)
    assert training > encoding
    wanted = CONTEXT_BYTES + weights + 4 * (features + training)
    assert gpu_bytes(large, initial) == pytest.approx(wanted, rel=1e-12)


def test_an_auto_slice_is_a_share_of_nine_tenths_of_the_smallest_gpu(make_config, monkeypatch):
    from orchestrator import sizing

    experiment = prepare_experiment(make_config())
    need = sizing.gpu_bytes(experiment, outline(experiment).initial)
    monkeypatch.setattr(sizing, "nodes_of", lambda _: [{"CPU": 8.0, "GPU": 1.0}])
    for memory, share in ((2.3, 0.5), (2.1, 1.0)):
        monkeypatch.setattr(sizing, "_gpu_memory", lambda memory=memory: memory * need)
        config = resolve(make_config("resources.slice=auto", "resources.executor=ray"))
        assert config.resources.slice == Slice(cpus=1, gpus=share)


def test_what_the_formula_does_not_cover_is_refused_by_name(make_config):
    from orchestrator.sizing import gpu_bytes

    experiment = prepare_experiment(make_config("learner=maple"))
    with pytest.raises(ResourceError, match=r"learner=maple works on tokens .*slice\.gpus"):
        gpu_bytes(experiment, {})
