"""Time from a command to its first line, its first round and its end; and of the imports within.

    python benchmarks/startup.py

Runs ``fedarena --help``, the imports of a client actor and of the coordinator, and one round of
examples/promptfl.yaml on a local cluster: with an empty feature store, then with a filled one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("fedarena")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {
        "fedarena --help": repeated(args.repeats, [str(PROGRAM), "--help"]),
        "python, nothing imported": repeated(args.repeats, [sys.executable, "-c", "pass"]),
        "import torch": repeated(args.repeats, [sys.executable, "-c", "import torch"]),
        "imports of a client actor": repeated(
            args.repeats, [sys.executable, "-c", "import orchestrator.client"]
        ),
        "imports of the coordinator": repeated(
            args.repeats, [sys.executable, "-c", "import orchestrator.host"]
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty store", "filled store"):
            first, end = one_round(Path(folder), name.split()[0])
            found[f"one round, {name}: first round committed"] = first
            found[f"one round, {name}: end"] = end
    for name, seconds in found.items():
        print(f"{seconds:7.2f} s  {name}")
    if args.out:
        about = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "seconds": found}
        args.out.write_text(json.dumps(about, indent=1) + "\n")


def repeated(times: int, command: list[str]) -> float:
    """Median seconds of a command."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def one_round(folder: Path, name: str) -> tuple[float, float]:
    """Seconds until the first round is told, and until the program has ended."""
    command = [str(PROGRAM), "run", str(ROOT / "examples" / "promptfl.yaml"), "federation.rounds=1"]
    command += [f"folder={folder / name}", f"store={folder / 'store'}"]
    command += [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    began, first = time.perf_counter(), float("nan")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    assert process.stdout is not None  # a pipe was asked for
    for line in process.stdout:
        if "round 1" in line and first != first:  # NaN until then
            first = time.perf_counter() - began
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return first, time.perf_counter() - began


if __name__ == "__main__":
    main()
