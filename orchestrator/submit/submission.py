"""From config files to a job for a cluster; what the job would not find there is refused here.

A job runs in a copy of the working folder, which the cluster deletes when the job has ended. So
results need a place that stays (an absolute path that all nodes see), and data either travel in the
working folder or lie on the cluster already.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from cluster.submit import JobRequest
from fl_core.backbones.clip_origin import LOCAL
from fl_core.backbones.union import modality
from fl_core.errors import ConfigError
from fl_core.remote import check_url
from orchestrator.config import AT_A_URL, ExperimentConfig
from orchestrator.loading import is_sweep, load_config
from orchestrator.mlflow_access import refuse_password
from orchestrator.reading import Reader
from orchestrator.schema import slots
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.design import Design
from orchestrator.sweep.loading import load_sweep
from orchestrator.yaml_text import read_yaml
from scenarios.data.catalogue import local_place
from scenarios.protocols import CrossDataset

EXCLUDES = (
    ".git/",
    ".venv/",
    "venv/",
    "__pycache__/",
    "*.egg-info/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    "/runs/",
    "/fedarena-store/",
    "/mlruns/",
    "/mlartifacts/",
    "mlflow.db*",
)
"""Never uploaded: what has been computed, installed or cached."""
SQLITE = "sqlite:///"
SWEEP = frozenset(slots(SweepConfig))
STATE_OVERRIDES = {
    "folder": "folder={}/runs",
    "store": "store={}/store",
    "tracking.uri": f"tracking.uri={SQLITE}{{}}/mlflow.db",
}
CACHE = "~/.cache/fedarena"
"""Where each node keeps what stands at a URL."""
STATE_URL_OVERRIDES = {
    "folder": f"folder={CACHE}/runs mirror={{}}/runs",
    "store": f"store={CACHE}/store shared_store={{}}/store",
}


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be handed in. on_cluster: paths that the cluster has to have."""

    request: JobRequest
    on_cluster: Sequence[str]


def prepare_submission(
    files: Sequence[Path], overrides: Sequence[str], working_dir: Path, state: str | None
) -> Submission:
    """The job that runs these files on a cluster.

    state: an absolute folder on the cluster for runs, feature store and MLflow's database, where
    the files themselves name no absolute ones; or a URL for runs and feature store, of which every
    node keeps what it needs. ConfigError with all that it would not find there.
    """
    folder = working_dir.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"working folder {working_dir} does not exist.")
    kind = _kind(files)
    configs = [config for file in files for config in _configs(file, overrides, kind)]
    raws = [_settings(file, overrides) for file in files]
    excludes = [*EXCLUDES, *(e for e in _own_folders(raws) if e not in EXCLUDES)]
    upload = _Upload(folder, tuple(excludes))
    faults = [f for file in files if (f := upload.fault(str(file), file.resolve()))]
    places = dict.fromkeys(place for config in configs for place in _places(config))
    for setting, text in places:
        path = PurePath(text)
        if not (path.is_absolute() or text.startswith("~")):
            fault = upload.fault(f"{setting} = {text}", folder / path)
            faults += [f"{fault} Or give its absolute path on the cluster."] if fault else []
    given, missing = _state_overrides(raws, state)
    faults += missing
    if faults:
        raise ConfigError(faults)
    names = [str(file.resolve().relative_to(folder)) for file in files]
    words = ["fedarena", kind, *names, *given, *overrides]
    threads = max(config.resources.threads for config in configs)
    request = JobRequest(shlex.join(words), folder, excludes, {"OMP_NUM_THREADS": str(threads)})
    return Submission(request, [text for _, text in places if PurePath(text).is_absolute()])


@dataclass(frozen=True)
class _Upload:
    """The folder that travels, and what of it stays behind."""

    folder: Path
    excludes: tuple[str, ...]

    def fault(self, what: str, path: Path) -> str | None:
        """Why a path would not be found in the uploaded copy."""
        if not path.is_relative_to(self.folder):
            return (
                f"{what} is not in the working folder {self.folder}, which is all that travels. "
                "Pass a --working-dir that holds it."
            )
        if not path.exists():
            return f"{what} does not exist in the working folder {self.folder}."
        inside = path.relative_to(self.folder)
        for pattern in self.excludes:
            if _matches(inside, pattern):
                return f"{what} would not be uploaded: {pattern} is left out of every upload."
        if _is_ignored(self.folder, inside):
            return f"{what} would not be uploaded: a .gitignore names it."
        return None


def _kind(files: Sequence[Path]) -> str:
    """The command that the files are for."""
    sweeps = [file for file in files if is_sweep(read_yaml(file))]
    if sweeps and len(files) > 1:
        raise ConfigError(f"{sweeps[0]} is a sweep: submit it alone, one job for each sweep.")
    return "sweep" if sweeps else "run"


def _configs(file: Path, overrides: Sequence[str], kind: str) -> list[ExperimentConfig]:
    """The experiments of a file, checked as they will be on the cluster."""
    if kind == "run":
        config = load_config(file, overrides)
        refuse_password(config.tracking.uri)
        return [config]
    return [trial.config for trial in Design(load_sweep(file, overrides)).check()]


def _settings(file: Path, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The settings of a file as they were written, of a sweep those of its base."""
    raw = read_yaml(file) or {}
    if is_sweep(raw):
        base = raw.get("base") or {}
        overrides = [o for o in overrides if o.partition(".")[0].partition("=")[0] not in SWEEP]
        if isinstance(base, str):
            beside = file.parent / base
            base = read_yaml(beside if beside.exists() else Path(base)) or {}
        raw = base
    reader = Reader()
    for override in overrides:
        raw = reader.override(raw, override)
    settings: Mapping[str, Any] = raw
    return settings


def _places(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Settings that name files of the user, with the path."""
    specs = [("scenario.dataset", config.scenario.dataset)]
    protocol = config.scenario.protocol
    if isinstance(protocol, CrossDataset):
        specs += [("scenario.protocol.datasets", text) for text in protocol.datasets]
    for setting, text in specs:
        place = local_place(text)
        if place is not None:
            yield setting, place
    if config.scenario.manifest is not None:
        yield "scenario.manifest", str(config.scenario.manifest)
    model, weights = config.backbone.model, config.backbone.pretrained
    if model.startswith(LOCAL):
        yield "backbone.model", model.removeprefix(LOCAL)
    elif modality(config.backbone) == "text" and Path(model).is_dir():
        yield "backbone.model", model
    if weights is not None and (Path(weights).is_file() or "/" in weights):
        yield "backbone.pretrained", weights


def _state_places(raw: Mapping[str, Any]) -> dict[str, str | None]:
    """Where a file keeps what must outlast the job: setting -> path, None for an address."""
    tracking = raw.get("tracking") or {}
    uri = str(tracking.get("uri") or f"{SQLITE}mlflow.db")
    places: dict[str, str | None] = {
        "folder": str(raw.get("folder") or ExperimentConfig.folder),
        "store": str(raw.get("store") or ExperimentConfig.store),
    }
    if tracking.get("enabled", True):
        places["tracking.uri"] = uri.removeprefix(SQLITE) if uri.startswith(SQLITE) else None
    return places


def _state_overrides(
    raws: Sequence[Mapping[str, Any]], state: str | None
) -> tuple[list[str], list[str]]:
    """Overrides that put relative places under ``state``; or what is wrong."""
    if state is not None and (faults := check_url("--state", state)):
        return [], faults
    relative = {
        name: place
        for raw in raws
        for name, place in _state_places(raw).items()
        if place is not None and not PurePath(place).is_absolute() and not place.startswith("~")
        if not raw.get(AT_A_URL.get(name, ""))
    }
    if state is not None and "://" in state:
        return _at_a_url(relative, state.rstrip("/"))
    if state is not None:
        return [STATE_OVERRIDES[name].format(state.rstrip("/")) for name in relative], []
    return [], [
        f"{name} = {place} is relative, and the job's working folder is deleted when it has ended. "
        "Pass --state FOLDER, an absolute path that every node sees, or a URL (s3://...), or "
        "set it to one."
        for name, place in relative.items()
    ]


def _at_a_url(relative: Mapping[str, str | None], state: str) -> tuple[list[str], list[str]]:
    """Overrides that put relative places at a URL; a database cannot lie there."""
    words = [STATE_URL_OVERRIDES[n].format(state) for n in relative if n in STATE_URL_OVERRIDES]
    faults = [
        f"{name} = {place} is relative, and no database can lie at {state}. Name a server, "
        f"{name}=http://..., or go without: tracking.enabled=false."
        for name, place in relative.items()
        if name not in STATE_URL_OVERRIDES
    ]
    return [word for pair in words for word in pair.split()], faults


def _own_folders(raws: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Patterns of the runs and stores that the files themselves keep in the working folder."""
    for raw in raws:
        for name in ("folder", "store"):
            place = PurePath(str(raw.get(name) or ""))
            if not place.is_absolute() and ".." not in place.parts and place.parts:
                yield f"/{place.as_posix()}/"


def _matches(path: PurePath, pattern: str) -> bool:
    """Whether one of our patterns leaves a path out: names anywhere, or a path from the top."""
    name = pattern.strip("/")
    if pattern.startswith("/"):
        return path.is_relative_to(name)
    return any(fnmatch(part, name) for part in path.parts)


def _is_ignored(folder: Path, inside: PurePath) -> bool:
    """Whether git's ignore files name a path; Ray leaves out what they name."""
    command = ["git", "-C", str(folder), "check-ignore", "--quiet", "--no-index", "--", str(inside)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
