"""The cost of a round with trivial local work: fedarena, Flower's simulation engine, bare Ray.

    OMP_NUM_THREADS=1 python benchmarks/round_overhead.py --out round_overhead.json

Clients on two actors of one CPU each, evaluation off. Every measurement is a process of its own
with a Ray cluster of its own; contestants alternate, so that a busy machine slows all. Flower pins
another Ray, so it gets a virtual environment (--flower-venv keeps it from run to run).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch

HERE = Path(__file__).resolve().parent
SLOTS = 2
SETTINGS = (
    {"clients": 100, "cohort": 10, "floats": 2_048},
    {"clients": 100, "cohort": 10, "floats": 524_288},
    {"clients": 100, "cohort": 100, "floats": 2_048},
    {"clients": 10_000, "cohort": 100, "floats": 2_048},
)
FLOWER = "Flower simulation"
OURS = (
    "fedarena",
    "fedarena, records off",
    "bare Ray, call per client",
    "bare Ray, call per slice",
)
ATTEMPTS = 3
"""Two Ray clusters that start at once on one machine can pick the same port: then another try."""

WARM_UP = 5
"""Rounds at the start of each process that do not count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=205, help="at least 200 to measure memory")
    parser.add_argument("--flower-rounds", type=int, default=20)
    parser.add_argument("--flower-venv", type=Path, help="made where missing; default: temporary")
    parser.add_argument("--no-flower", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        venv = args.flower_venv or Path(temporary) / "flower"
        python = None if args.no_flower else flower_python(venv)
        about = machine(python)
        for rows in measure(args, python):
            if args.out:
                args.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    show(about, rows)


def measure(args: argparse.Namespace, flower: Path | None) -> Iterator[list[dict[str, Any]]]:
    """One row per setting and contestant, over all repeats; yields the rows so far."""
    contestants = (*OURS, FLOWER) if flower else OURS
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
        for _ in range(args.repeats):
            for name, done in runs.items():
                print(f"{setting} {name}", file=sys.stderr)
                rounds = args.flower_rounds if name == FLOWER else args.rounds
                wanted = json.dumps({**setting, "rounds": rounds, "slots": SLOTS})
                if name == FLOWER:
                    done.append(call([flower, HERE / "overhead_flower.py", wanted]))
                else:
                    done.append(call([sys.executable, HERE / "overhead_ours.py", name, wanted]))
        rows += [{**setting, "name": name, **summary(done)} for name, done in runs.items()]
        yield rows


def call(command: list[Any]) -> dict[str, Any]:
    """Run one measurement; the last line that it prints is its result."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0", **quiet}
    paths = [str(HERE.parent)] if command[0] == sys.executable else []
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    words = [str(word) for word in command]
    for _ in range(ATTEMPTS):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if not done.returncode:
            result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return result
        print(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}", file=sys.stderr)
    raise SystemExit(f"{words[1]} failed {ATTEMPTS} times")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds per round over all runs, the quietest run's median, and memory in MiB.

    The fastest twentieth says what a round costs while nothing else wants the cores, which may
    belong to a host that others use too.

    Memory comes as pairs: of a process alone, and what it shares (Ray's object store, files).
    """
    kept = [[1e3 * s for s in run["seconds"][WARM_UP:]] for run in runs]
    pooled = sorted(ms for run in kept for ms in run)
    row: dict[str, Any] = {
        "rounds": len(pooled),
        "p5_ms": pooled[int(0.05 * (len(pooled) - 1))],
        "p50_ms": statistics.median(pooled),
        "p95_ms": pooled[int(0.95 * (len(pooled) - 1))],
        "best_p50_ms": min(statistics.median(run) for run in kept),
    }
    for process, sizes in runs[0].get("memory", {}).items():
        own, shared = (
            [round(size / 2**20, 1) for size in kind] for kind in zip(*sizes, strict=True)
        )
        row |= {f"{process}_own_mib": own, f"{process}_shared_mib": shared}
    return row


def flower_python(folder: Path) -> Path:
    """The interpreter of an environment with Flower's simulation engine."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "flwr[simulation]", "numpy"]
        subprocess.run(install, check=True)
    return python


def machine(flower: Path | None) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if "model name" in line), model)
    about = {"cpu": model, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    about |= {"python": platform.python_version(), "torch": torch.__version__}
    about |= {"ray": ray.__version__, "slots": SLOTS}
    if flower:
        code = "from importlib.metadata import version as v; print(v('flwr'), v('ray'))"
        found = subprocess.run([flower, "-c", code], capture_output=True, text=True, check=True)
        about["flower"], about["flower_ray"] = found.stdout.split()
    return about


def show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(about)
    print(
        f"\n{'floats':>8} {'cohort':>6}  {'contestant':<26} {'p5 ms':>8} {'p50 ms':>8} "
        f"{'p95 ms':>8} {'best p50':>8} {'ms/client':>9}  memory at rounds 10 and 200, MiB"
    )
    for row in rows:
        held = {k.removesuffix("_mib"): v for k, v in row.items() if k.endswith("_mib")}
        print(
            f"{row['floats']:>8} {row['cohort']:>6}  {row['name']:<26} {row['p5_ms']:>8.2f} "
            f"{row['p50_ms']:>8.2f} {row['p95_ms']:>8.2f} {row['best_p50_ms']:>8.2f} "
            f"{row['p50_ms'] / row['cohort']:>9.3f}  {held or ''}"
        )


if __name__ == "__main__":
    main()
