"""What a run is computed with: versions, machine, and the commit where fedarena is a checkout."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.checkpoint import RunStore

logger = logging.getLogger(__name__)

ENVIRONMENT_FILE = "environment.json"
PACKAGES = (
    "fedarena",
    "torch",
    "open_clip_torch",
    "transformers",
    "peft",
    "ray",
    "mlflow",
    "numpy",
)
ROOT = Path(__file__).resolve().parents[1]
GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Environment:
    """What the rounds after the first ``rounds_done`` were computed with; values by name."""

    rounds_done: int
    values: Mapping[str, str]


def note_environment(store: RunStore, threads: int) -> None:
    """Write down what this process computes with, unless the run says so already.

    On a cluster this is the coordinator's node. threads: of torch, in each actor.
    """
    values = {**current(), "torch threads": str(threads)}
    known = read_environments(store)
    if known and known[-1].values == values:
        return
    num_records = sum(1 for _ in store.rounds_folder.glob("*.json"))
    known.append(Environment(max(0, num_records - 1), values))
    store.write_text(ENVIRONMENT_FILE, json.dumps([asdict(e) for e in known], indent=2))


def read_environments(store: RunStore) -> list[Environment]:
    """In the order in which a run used them; empty for a run that was made before they were kept.

    More than one where a run went on elsewhere, or with other versions.
    """
    text = store.read_text(ENVIRONMENT_FILE)
    try:
        return [Environment(**entry) for entry in json.loads(text)] if text else []
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged: %s", store.folder / ENVIRONMENT_FILE, error)
        return []


@cache
def current() -> Mapping[str, str]:
    """Versions and machine of this process; nothing that names its owner or its place."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _commit(ROOT)
    if commit is not None:
        found["commit"] = commit
    found["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    found["CPU"] = _cpu()
    found["CPUs"] = str(os.cpu_count())
    gpus = _gpus()
    return found | ({"GPU": gpus} if gpus else {})


def _commit(root: Path) -> str | None:
    """The commit of a checkout, marked where tracked files differ from it; None elsewhere."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        is_changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("the commit of %s is not known: %s", root, error)
        return None
    return f"{commit[:12]}{' with changes' if is_changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    command = ("git", "--no-optional-locks", "-C", str(root), *arguments)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
    )
    return done.stdout.strip()


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> str:
    """Names of the node's NVIDIA GPUs, as its driver lists them: without starting CUDA here."""
    names = [
        line.partition(":")[2].strip()
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines()
        if line.startswith("Model:")
    ]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
