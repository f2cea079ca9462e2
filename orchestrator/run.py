"""From configs to results: preflight, one session for all, each run tracked while it goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fl_core.errors import ConfigError, StateError
from orchestrator.checkpoint import RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.events import Committed, Event, Finished, Started
from orchestrator.experiment import run_folder
from orchestrator.export import export_run
from orchestrator.labels import METHOD_TAG, SCENARIO_TAG, method_label, scenario_label
from orchestrator.loading import config_hash, difference, flat, load_config, resolve
from orchestrator.mirror import bring, check_places, forget
from orchestrator.results import Result
from orchestrator.session import Session
from orchestrator.tracking import HASH_TAG, RunInfo, Tracker, TrackingThread, preflight

logger = logging.getLogger(__name__)

Listener = Callable[[ExperimentConfig, Event], None]

NOT_MIRRORED = "%s has all of the run, its mirror has not: %s `fedarena resume %s` sends the rest."


def run_experiments(
    configs: Sequence[ExperimentConfig], *, fresh: bool = False, listen: Listener | None = None
) -> list[Result]:
    """Run resolved experiments to their ends, one after the other, on shared warm actors.

    listen: called with each event of each run. fresh: forget what their folders hold.
    """
    for config in configs:
        if fresh:
            forget(run_folder(config), config.mirror)
            shutil.rmtree(run_folder(config), ignore_errors=True)
    with _session(configs) as session:
        return [_run_one(session, config, listen) for config in configs]


def load_run(name: str, folder: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The config of an earlier run, by its name under ``folder`` or by its path.

    StateError where there is none, or where ``overrides`` would change what it computes.
    """
    path = find_run(name, folder)
    old = load_config(path / "config.yaml")
    new = resolve(load_config(path / "config.yaml", overrides))
    if changed := difference(old, new):
        lines = "\n".join(f"  {line}" for line in changed)
        raise StateError(
            f"{path.name} was computed with other settings, so it cannot go on with these:\n{lines}"
            "\nLeave them out to go on with it, or start a new run with `fedarena run`."
        )
    return new


def find_run(name: str, folder: Path) -> Path:
    """The folder of an earlier run, by its name under ``folder`` or by its path.

    StateError where there is none.
    """
    path = Path(name) if (Path(name) / "config.yaml").exists() else folder / name
    if not (path / "config.yaml").exists():
        known = sorted(p.parent.name for p in folder.glob("*/config.yaml"))
        raise StateError(
            f"{path} holds no run. Known in {folder}: {', '.join(known) or 'none'}. Name one of "
            "them, or pass --folder."
        )
    return path


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
    except (KeyboardInterrupt, SystemExit):  # the latter is what SIGTERM becomes under Ray
        _close(tracking, "KILLED")
        raise
    except Exception:
        _close(tracking, "FAILED")
        raise
    result = Result.load(store.folder)
    if tracking is not None:
        tracking.close("FINISHED", export_run(result))
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


def _close(tracking: TrackingThread | None, status: str) -> None:
    if tracking is not None:
        tracking.close("KILLED" if status == "KILLED" else "FAILED")
