"""Connections to Ray from processes of the kinds that users have."""

import os
import subprocess
import sys

import pytest

LIKE_A_NOTEBOOK = """
import ray
from cluster.connect import connect
assert connect(None) is ray
print("counted", ray.get(ray.remote(num_cpus=0)(lambda: 3).remote()))
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_cluster_starts_where_ray_was_imported_before():
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LIKE_A_NOTEBOOK],
        env={**env, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "counted 3" in done.stdout
