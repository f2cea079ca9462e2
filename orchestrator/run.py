"""From configs to results: preflight, one session for all, each run tracked while it goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fl_core.errors import ConfigError, StateError, did_you_mean
from orchestrator.checkpoint import LOCK_FILE, RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.events import Committed, Event, Finished, Started
from orchestrator.experiment import run_folder
from orchestrator.export import export_run
from orchestrator.labels import METHOD_TAG, SCENARIO_TAG, method_label, scenario_label
from orchestrator.loading import config_hash, difference, flat, load_config, resolve
from orchestrator.mirror import bring, check_places, forget
from orchestrator.mlflow_access import preflight
from orchestrator.results import Result
from orchestrator.session import Session
from orchestrator.sweep.state import known_sweeps, sweep_names
from orchestrator.tracking import HASH_TAG, RunInfo, Tracker, status_after
from orchestrator.tracking_thread import TrackingThread

logger = logging.getLogger(__name__)

Listener = Callable[[ExperimentConfig, Event], None]

NOT_MIRRORED = "%s has all of the run, its mirror has not: %s `fedarena resume %s` sends the rest."


def run_experiments(
    configs: Sequence[ExperimentConfig], *, fresh: bool = False, listen: Listener | None = None
) -> list[Result]:
    """Run resolved experiments to their ends, one after the other, on shared warm actors.

    listen: called with each event of each run. fresh: forget what their folders hold.
    """
    for config in configs if fresh else ():
        _forget(config)
    with _session(configs) as session:
        return [_run_one(session, config, listen) for config in configs]


def load_run(name: str, folder: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The config of an earlier run, by its name under ``folder`` or by its path.

    StateError where there is none, or where ``overrides`` would change what it computes.
    """
    path = find_run(name, folder, or_sweep=True).absolute()
    old = load_config(path / "config.yaml")
    new = load_config(path / "config.yaml", overrides)
    if not any(override.partition("=")[0].strip() == "folder" for override in overrides):
        new = replace(new, folder=path.parent)  # it may have been moved since it began
    new = resolve(new)
    if changed := difference(old, new):
        lines = "\n".join(f"  {line}" for line in changed)
        raise StateError(
            f"{path.name} was computed with other settings, so it cannot go on with these:\n{lines}"
            "\nLeave them out to go on with it, or start a new run with `fedarena run`."
        )
    if run_folder(new).name != path.name:
        raise StateError(
            f"{path} cannot go on: by its config its name would be {run_folder(new).name}. It was "
            "renamed, or another version began it (environment.json says which). Give it that name "
            "back, or go on with that version, or start a new run with `fedarena run`."
        )
    return new


def find_run(name: str, folder: Path, *, or_sweep: bool = False) -> Path:
    """The folder of an earlier run, by its name under ``folder`` or by its path.

    StateError where there is none; ``or_sweep``: where a sweep could have been named as well.
    """
    path = Path(name) if (Path(name) / "config.yaml").exists() else folder / name
    if not (path / "config.yaml").exists():
        runs = sorted(p.parent.name for p in folder.glob("*/config.yaml"))
        sweeps = sweep_names(folder) if or_sweep else []
        near = did_you_mean(path.name, [*runs, *sweeps]).partition(" Known:")[0]
        raise StateError(
            f"{path} holds no run{' and no sweep' if or_sweep else ''}.{near} Runs in {folder}: "
            f"{', '.join(runs) or 'none'}.{f' {known_sweeps(folder)}' if or_sweep else ''} Name "
            "one of them, or pass --folder."
        )
    return path


def _forget(config: ExperimentConfig) -> None:
    """Remove what a run has left, here and at its mirror. StateError while another works on it."""
    folder = run_folder(config)
    with RunStore(folder).lock():
        forget(folder, config.mirror)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:  # whoever waits for it waits for this very file
                path.unlink()


@contextmanager
def _session(configs: Sequence[ExperimentConfig]) -> Iterator[Session]:
    """A session, once every tracking server and URL answers; all start at the same time."""
    targets = {(c.tracking.uri or "", c.tracking.experiment) for c in configs if c.tracking.enabled}
    with ThreadPoolExecutor(1) as pool:
        checks = [pool.submit(check_places, configs)]
        checks += [pool.submit(preflight, *target) for target in sorted(targets)]
        session = Session(configs)
        try:
            for check in checks:
                check.result()
            yield session
        finally:
            session.close()


def _run_one(session: Session, config: ExperimentConfig, listen: Listener | None) -> Result:
    store = RunStore(run_folder(config))
    bring(store.folder, config.mirror)
    tracking: TrackingThread | None = None
    try:
        for event in session.run(config):
            if isinstance(event, Started | Finished) and tracking is None:
                tracking = _track(config, store, event)
            if isinstance(event, Committed) and tracking is not None:
                tracking.put(event.record)
            if listen is not None:
                listen(config, event)
            if isinstance(event, Finished) and event.not_mirrored:
                logger.warning(NOT_MIRRORED, store.folder, event.not_mirrored, store.folder.name)
        bring(store.folder, config.mirror)  # its coordinator may have had a folder elsewhere
        result = Result.load(store.folder)
        files = {} if tracking is None else export_run(result)
    except BaseException as error:
        if tracking is not None:
            tracking.close(status_after(error))
        raise
    if tracking is not None:
        tracking.close("FINISHED", files)
    return result


def _track(
    config: ExperimentConfig, store: RunStore, event: Started | Finished
) -> TrackingThread | None:
    """Begin to tell MLflow of a run, or go on with it; None where tracking is off."""
    if not config.tracking.enabled:
        return None
    if config.tracking.uri is None or config.name is None:
        raise ConfigError("run_experiments takes configs that loading.resolve has completed.")
    facts = event.facts if isinstance(event, Started) else {}
    tags = {HASH_TAG: config_hash(config)} | {f"fedarena.{k}": str(v) for k, v in facts.items()}
    tags |= {METHOD_TAG: method_label(config), SCENARIO_TAG: scenario_label(config)}
    info = RunInfo(store.folder.name, config.name, flat(config), tags)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment, store)
    return TrackingThread(tracker, info, resumed=store.has_records())
