"""A whole node dies in the middle of a run, another one joins, and the bits are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_run_that_loses_a_node_ends_as_one_that_does_not(tmp_path):
    out = tmp_path / "chaos.json"
    command = [sys.executable, str(CHAOS), "--kinds", "run:node", "--trials", "1", "--rounds", "6"]
    done = subprocess.run(
        [*command, "--sweep-trials", "0", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    control, lost = json.loads(out.read_text())["rows"]
    assert (control["kind"], control["equal"]) == ("undisturbed", 1)
    assert (lost["kind"], lost["equal"]) == ("node", 1)
    assert lost["hit"][0].startswith("node")
