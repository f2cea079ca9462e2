"""Kill -9 of every part of a run at random rounds; the results must be those of no disturbance.

    OMP_NUM_THREADS=1 python benchmarks/chaos.py --trials 3 --out chaos.json

On a cluster of several raylets on this machine, `fedarena run` and `fedarena sweep` are processes
of their own, hit from outside. Compared are all rounds (metrics but times and memory, tensors and
private states by checksum) and all points in MLflow. Seconds lost: between the first and the last
committed round, more than the median of undisturbed runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chaos_cluster as hits
import yaml
from chaos_equal import Outcome, outcome
from overhead_ours import make_backbone
from sweep_overhead import colours

from fl_core.seeds import derive

UNDISTURBED, DRIVER, LOST = "undisturbed", "driver", "node, no other comes"
Strike = Callable[[hits.Raylets, int], str]

RUNS: dict[str, Strike] = {
    "client between rounds": hits.kill_idle_client,
    "client in a busy group": hits.kill_busy_client,
    "coordinator": hits.kill_coordinator,
    "node": hits.kill_node,
    "coordinator's node": hits.kill_coordinators_node,
    LOST: hits.lose_node,
}
SWEEPS: dict[str, Strike] = {
    "trial's actor": hits.kill_trial,
    "client in a busy group": hits.kill_busy_client,
    "node": hits.kill_node,
}
FEDARENA = (sys.executable, "-c", "from orchestrator.cli import main; main()")
AXES = {"method": {"topk": {}, "ditto": {"federation": "ditto", "communication.codec": "fp32"}}}
LIMIT_S = 900.0
"""How long one run or sweep may take after it was hit."""


class Range:
    """Where everything happens: a cluster, a folder, and the settings of a small experiment."""

    def __init__(self, folder: Path, raylets: hits.Raylets, args: argparse.Namespace) -> None:
        self.folder, self.raylets, self.rounds = folder, raylets, args.rounds
        self.seed, self.timeout_s = args.seed, args.timeout_s
        colours(folder / "colours")
        make_backbone(folder / "model")
        self.database = folder / "mlflow.db"

    def settings(self, name: str) -> dict[str, Any]:
        """Top-k with feedback and cohorts: there is private state, of several rounds."""
        return {
            "name": name,
            "backbone": {"model": f"local-dir:{self.folder / 'model' / 'clip'}"},
            "scenario": {
                "dataset": str(self.folder / "colours"),
                "num_clients": 6,
                "partition": {"name": "iid"},
            },
            "learner": {"num_tokens": 1},
            "federation": {"rounds": self.rounds, "clients_per_round": 4},
            "training": {"local_steps": 20, "batch_size": 2, "optimizer": {"lr": 0.1}},
            "communication": {"codec": {"name": "top_k", "fraction": 0.3}},
            "resources": {
                "group_size": 1,
                "address": self.raylets.address,
                "timeout_s": self.timeout_s,
            },
            "tracking": {"uri": f"sqlite:///{self.database}", "experiment": name},
            "folder": str(self.folder / name),
            "store": str(self.folder / "store"),
        }

    def write(self, name: str, sweep: bool) -> Path:
        """The config file of a trial."""
        values = self.settings(name)
        if sweep:
            del values["name"]
            values["federation"]["rounds"] = self.rounds // 2
            values = {"name": "chaos", "base": values, "axes": AXES, "seeds": 2}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    @contextmanager
    def fedarena(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A fedarena command at work; ended by force where this block is left early."""
        with (self.folder / "log.txt").open("a+") as log:
            log.write(f"$ fedarena {' '.join(words)}\n")
            log.flush()
            process = subprocess.Popen(
                [*FEDARENA, *words], stdout=log, stderr=log, text=True, cwd=self.folder
            )
            try:
                yield process
                process.wait(LIMIT_S)
            finally:
                process.kill()
                process.wait()

    def committed(self, name: str) -> int:
        """How many rounds are committed under a trial's folder."""
        return sum(1 for _ in (self.folder / name).glob("*/rounds/*.json"))

    def is_done(self, name: str) -> bool:
        return any((self.folder / name).glob("*/DONE"))


def attempt(range_: Range, trials: dict[str, str], sweep: bool) -> dict[str, str]:
    """Run trials (name -> kind), each hit once; what was hit, by trial.

    Runs go through one command on warm actors, so that later ones find what a hit leaves behind.
    Sweeps, and runs whose driver dies, are commands of their own.
    """
    hit = dict.fromkeys(trials, "")
    together = [name for name, kind in trials.items() if not sweep and kind != DRIVER]
    alone = [[name] for name in trials if name not in together]
    for names in [together, *alone] if together else alone:
        paths = [str(range_.write(name, sweep)) for name in names]
        with range_.fedarena("sweep" if sweep else "run", *paths) as process:
            for name in names:
                hit[name] = strike(range_, name, trials[name], sweep, process)
                if trials[name] == LOST:  # the next trial's nodes must not help this one
                    wait_for(lambda name=name: range_.is_done(name), process)
        if hit[names[-1]] == DRIVER:
            (name,) = names
            run = "chaos" if sweep else next((range_.folder / name).glob("*/rounds")).parent.name
            with range_.fedarena("resume", run, "--folder", str(range_.folder / name)):
                pass
    return hit


def strike(range_: Range, name: str, kind: str, sweep: bool, process: subprocess.Popen[str]) -> str:
    """Hit a trial at a random round; what was hit, empty where the command ended before."""
    draw = derive(range_.seed, "chaos", kind, name)
    range_.raylets.complete()
    if kind == UNDISTURBED or not wait_for_round(range_, name, draw, process, sweep):
        return ""
    if kind == DRIVER:
        process.kill()
        return DRIVER
    return (SWEEPS if sweep else RUNS)[kind](range_.raylets, draw >> 20)


def wait_for_round(
    range_: Range, name: str, draw: int, process: subprocess.Popen[str], sweep: bool
) -> bool:
    """Wait until a random round, and somewhere into it; False where the command ended before."""
    total = 4 * (range_.rounds // 2 + 1) if sweep else range_.rounds + 1
    wanted = 2 + draw % (total - 5)  # neither the first nor the last ones
    if not wait_for(lambda: range_.committed(name) >= wanted, process):
        return False
    time.sleep((draw >> 10) % 300 / 1000)
    return True


def wait_for(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Whether it came to be so before the command ended."""
    until = time.monotonic() + LIMIT_S
    while not is_so():
        if process.poll() is not None or time.monotonic() > until:
            return is_so()
        time.sleep(0.01)
    return True


def measure(
    range_: Range, num_trials: dict[str, int], kinds: list[str] | None
) -> Iterator[dict[str, Any]]:
    """One row per kind, runs first, then sweeps."""
    for what, table in (("run", RUNS), ("sweep", SWEEPS)):
        wanted = [k for k in (*table, DRIVER) if not kinds or f"{what}:{k}" in kinds]
        if not wanted or not num_trials[what]:
            continue
        controls = {f"{what}-{UNDISTURBED}-{i}": UNDISTURBED for i in range(1 + num_trials[what])}
        hits_by = {
            f"{what}-{re.sub('[^a-z]+', '-', kind)}-{i}": kind
            for kind in wanted
            for i in range(num_trials[what])
        }
        trials = {**controls, **hits_by}
        hit = attempt(range_, trials, what == "sweep")
        found = {name: outcome(range_.folder / name, range_.database) for name in trials}
        reference, *others = (found[name] for name in controls)
        for kind in (UNDISTURBED, *wanted):
            names = [n for n, k in trials.items() if k == kind and found[n] is not reference]
            row = compare([found[name] for name in names], reference, others)
            yield row | {"what": what, "kind": kind, "hit": [hit[name] for name in names]}


def compare(found: list[Outcome], reference: Outcome, usual: list[Outcome]) -> dict[str, Any]:
    """usual: undisturbed ones other than the reference, which was there first and started cold."""
    seconds = statistics.median(one.seconds for one in usual)
    faults = [one.difference(reference) for one in found]
    return {
        "trials": len(found),
        "equal": sum(not fault for fault in faults),
        "faults": [fault for fault in faults if fault],
        "usual_s": round(seconds, 1),
        "lost_s": [round(one.seconds - seconds, 1) for one in found],
    }


def show(row: dict[str, Any]) -> None:
    lost = ", ".join(f"{seconds:g}" for seconds in row["lost_s"])
    print(f"{row['what']:<6}{row['kind']:<26}{row['trials']:>6}{row['equal']:>6}   {lost}")
    for line in (*row["faults"], *(f"hit: {hit}" for hit in row["hit"] if hit)):
        print(f"      {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--sweep-trials", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=120.0, help="resources.timeout_s")
    parser.add_argument("--nodes", type=int, default=2, help="raylets besides the head")
    parser.add_argument("--kinds", nargs="+", help="such as 'run:node' 'sweep:driver'; default all")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    num_trials = {"run": args.trials, "sweep": args.sweep_trials}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="fc") as temporary:
        os.environ["RAY_TMPDIR"] = temporary  # sockets need short paths; and no one else finds it
        raylets = hits.Raylets(args.nodes)
        rows = []
        about = {"cpus": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
        try:
            range_ = Range(Path(temporary), raylets, args)
            print(f"{'':<6}{'kind':<26}{'trials':>6}{'equal':>6}   seconds lost", flush=True)
            for row in measure(range_, num_trials, args.kinds):
                show(row)
                rows.append(row)
        finally:
            raylets.close()
        failed = any(row["equal"] < row["trials"] for row in rows)
        if failed:
            print((Path(temporary) / "log.txt").read_text()[-20_000:], file=sys.stderr)
    about["load_at_end"] = os.getloadavg()[0]
    if args.out:
        args.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
