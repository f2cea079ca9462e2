"""A cluster of raylets on this machine with GPUs that are only pretended, looked at by two jobs.

A program of its own, since a process can be in one cluster only. Prints what it found as JSON.
"""

import json
import subprocess
import sys
import threading

import ray
from ray.cluster_utils import Cluster

from cluster.reserve import cluster_nodes, gpu_memory, release, reserve
from cluster.slices import count_slices, slice_bundle
from fl_core.errors import ResourceError

QUARTER = slice_bundle(cpus=0.25, gpus=0.25, memory_gb=0)
WHOLE = slice_bundle(cpus=0.25, gpus=1, memory_gb=0)


class Probe:
    """Tells where it runs, and which GPUs it may see."""

    def where(self):
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"]


def refusal(call):
    try:
        call()
    except ResourceError as error:
        return str(error)
    return ""


def placed(slices):
    """Node and GPU of an actor on each slice."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def start(i):
        where = PlacementGroupSchedulingStrategy(slices.group, placement_group_bundle_index=i)
        options = {"num_cpus": 0.25, "num_gpus": slices.bundle["GPU"], "scheduling_strategy": where}
        return ray.remote(Probe).options(**options).remote()

    actors = [start(i) for i in range(slices.num)]
    found = ray.get([actor.where.remote() for actor in actors], timeout=120)
    return [[node, gpus] for node, gpus in found]


def first_job(nodes):
    found = {"nodes": cluster_nodes(), "room": count_slices(cluster_nodes(), QUARTER)}
    found["too many"] = refusal(lambda: reserve(99, QUARTER))
    found["gpu memory"] = refusal(gpu_memory)
    wide = reserve(2, WHOLE)
    found["wide"] = placed(wide)
    found["second"] = second_job(nodes)
    freed = threading.Timer(3, release, [wide])
    freed.start()
    waited = reserve(2, WHOLE)
    found["waited"] = not freed.is_alive() and placed(waited)
    release(waited)
    found["quarters"] = placed(reserve(8, QUARTER))
    return found


def second_job(address):
    """Another driver on the same cluster, while the first holds the slices."""
    command = [sys.executable, __file__, address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def other_job():
    found = {"refused": refusal(lambda: reserve(3, WHOLE, wait_s=1))}
    slices = reserve(1, WHOLE)
    found["own"] = placed(slices)
    found["names"] = ray.util.list_named_actors()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
        sys.stdout.write(json.dumps(other_job()))
        sys.exit()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    for gpus in (2, 1):
        cluster.add_node(num_cpus=2, num_gpus=gpus)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    try:
        sys.stdout.write(json.dumps(first_job(cluster.address)))
    finally:
        ray.shutdown()
        cluster.shutdown()
