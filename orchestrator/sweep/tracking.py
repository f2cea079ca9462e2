"""MLflow for a sweep: a parent run, a child run per trial, and one thread that writes them all.

The thread reads committed rounds from the runs' folders, a batch per run and not a write per
metric. As for a single run, nothing waits for it, its failures are warnings, and what was missed
is sent when the sweep is resumed.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fl_core.errors import StateError
from orchestrator.checkpoint import RunStore
from orchestrator.export import export_run
from orchestrator.labels import METHOD_TAG, SCENARIO_TAG, scenario_label
from orchestrator.loading import flat, tracking_uri
from orchestrator.mlflow_access import THREAD_PREFIX, Attempts, connect, without_password
from orchestrator.results import Result
from orchestrator.sweep.config import label
from orchestrator.sweep.design import Design, Trial
from orchestrator.sweep.state import find_sweep, known_sweeps, read_sweep
from orchestrator.tracking import HASH_TAG, RunInfo, Status, Tracker
from scenarios.scored import own_metric

logger = logging.getLogger(__name__)

PARENT_TAG, SWEEP_TAG, STAGE_TAG = "mlflow.parentRunId", "fedarena.sweep", "fedarena.stage"
SENT_FILE = "tracked.txt"
PAUSE_S = 5.0
"""A run is sent at most that often while it goes on."""


@dataclass
class _Child:
    """A trial whose run is to be sent. ended: with this status, all of it and its artifacts."""

    trial: Trial
    run: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    ended: Status | None = None
    sent_at: float = 0.0
    tracker: Tracker | None = None


class SweepTracker:
    """Tells MLflow of a sweep; every method but ``close`` returns at once."""

    def __init__(self, uri: str, experiment: str, store: RunStore, design: Design) -> None:
        self._uri, self._experiment, self._store, self._design = uri, experiment, store, design
        self._children: dict[Path, _Child] = {}
        self._pictures: dict[Any, Path] = {}
        self._parent: Tracker | None = None
        self._parent_id = ""
        self._all_sent = False
        self._attempt = Attempts(uri, "sweep", logger)
        self._closing: Status | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(
            target=self._work, name=f"{THREAD_PREFIX}sweep", daemon=True
        )
        self._thread.start()

    def note(self, trial: Trial, run: Path, facts: Sequence[tuple[str, Any]]) -> None:
        """A trial has rounds that MLflow may lack."""
        with self._wake:
            child = self._children.setdefault(run, _Child(trial, run))
            child.facts = dict(facts)

    def end(self, trial: Trial, run: Path, status: Status) -> None:
        """A trial has ended."""
        with self._wake:
            child = self._children.setdefault(run, _Child(trial, run))
            child.ended = status
            self._wake.notify()

    def close(self, status: Status, timeout_s: float = 60.0) -> bool:
        """Send what is missing; whether MLflow has it all. Waits ``timeout_s`` after the last."""
        with self._wake:
            self._closing = status
            self._wake.notify()
        left = -1
        while self._thread.is_alive() and left != len(self._children):
            left = len(self._children)  # as long as it gets on, it is waited for
            self._thread.join(timeout_s)
        if not self._all_sent:
            logger.warning(
                "MLflow at %s does not have all of sweep %s. The folders have: `fedarena resume "
                "%s` sends the rest.",
                *(without_password(self._uri), self._store.folder.name, self._store.folder.name),
            )
        return self._all_sent

    # -- in the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        self._attempt(self._open_parent)
        while True:
            with self._wake:
                due = self._due()
                if not due and self._closing is None:
                    self._wake.wait(PAUSE_S)
                    continue
            if self._closing is not None and not due:
                break
            sent = [self._attempt(partial(self._send, child)) for child in due]
            if not all(sent):
                if self._closing is not None:
                    return
                time.sleep(PAUSE_S)
        self._all_sent = self._attempt(self._close_parent)

    def _due(self) -> list[_Child]:
        """Ended trials first; running ones now and then, and at the end."""
        now = time.monotonic()
        ended = [c for c in self._children.values() if c.ended is not None]
        running = [c for c in self._children.values() if c.ended is None]
        if self._closing is not None:
            for child in running:
                child.ended = "KILLED"
            return ended + running
        return ended or [c for c in running if now - c.sent_at >= PAUSE_S]

    def _open_parent(self) -> None:
        if self._parent is not None:
            return
        sweep, name = self._design.sweep, self._store.folder.name
        params = {f"axis.{n}": ", ".join(map(label, a.extremes)) for n, a in sweep.axes.items()}
        params |= {"seeds": ", ".join(map(str, sweep.seed_list)), "sweep": sweep.name}
        parent = Tracker(self._uri, self._experiment, self._store)
        tags = {SWEEP_TAG: name, "fedarena.kind": "sweep"}
        self._parent_id = parent.open(RunInfo(name, sweep.name, params, tags), resumed=True)
        self._parent = parent

    def _send(self, child: _Child) -> None:
        self._open_parent()
        tracker = child.tracker
        if tracker is None:
            store = RunStore(child.run)
            if not store.has_records():  # it failed before its first round
                self._drop(child)
                return
            if child.ended == "FINISHED" and store.read_text(SENT_FILE) == self._sent_mark:
                self._drop(child)
                return
            tracker = Tracker(self._uri, self._experiment, store)
            tracker.open(self._info(child), resumed=True)
            child.tracker = tracker
        ended = child.ended
        tracker.replay()
        child.sent_at = time.monotonic()
        if ended is None:
            return
        if ended == "FINISHED":
            tracker.artifacts(self._export(child))
        tracker.finish(ended)
        if ended == "FINISHED":
            tracker.store.write_text(SENT_FILE, self._sent_mark)
        self._drop(child)

    @property
    def _sent_mark(self) -> str:
        """Says that MLflow has all of a run, as a child of this sweep."""
        place = without_password(self._uri)
        return f"{place}\n{self._experiment}\n{self._parent_id}\n{self._own_tag}\n"

    @property
    def _own_tag(self) -> str:
        """What says of a run that this sweep has it: a later one that has it too is its parent."""
        return f"{SWEEP_TAG}.{self._store.folder.name}"

    def _drop(self, child: _Child) -> None:
        with self._wake:
            del self._children[child.run]

    def _info(self, child: _Child) -> RunInfo:
        """Names and values by which MLflow's table, its charts and its filter tell trials apart."""
        trial, config = child.trial, child.trial.config
        name = child.run.name.rpartition("-")[0]
        own = {"method": trial.method, "stage": trial.stage}
        values = {**trial.cell, **{axis: label(value) for axis, value in trial.tuned.items()}}
        own |= {self._design.short(axis): value for axis, value in values.items()}
        tags = {
            HASH_TAG: trial.hash,
            PARENT_TAG: self._parent_id,
            SWEEP_TAG: self._store.folder.name,
            METHOD_TAG: trial.method,
            SCENARIO_TAG: scenario_label(config),
            STAGE_TAG: trial.stage,
            self._own_tag: trial.stage,
        }
        tags |= {f"fedarena.{key}": str(value) for key, value in child.facts.items()}
        return RunInfo(child.run.name, name, {**flat(config), **own}, tags)

    def _export(self, child: _Child) -> dict[str, Path]:
        """The run's files for others; a picture of the same population is drawn once."""
        key = child.facts.get("population_hash")
        picture = child.run / "population.png"
        if key in self._pictures and not picture.exists():
            shutil.copyfile(self._pictures[key], picture)
        found = export_run(Result.load(child.run))
        if key is not None:
            self._pictures.setdefault(key, picture)
        return found

    def _close_parent(self) -> None:
        self._open_parent()
        assert self._parent is not None  # just opened
        assert self._closing is not None  # why this is called
        folder = self._store.folder
        files = ("sweep.yaml", "choices.json", "trials.csv", "summary.csv")
        self._parent.artifacts({n: folder / n for n in files if (folder / n).exists()})
        self._parent.finish(self._closing)


def charts_page(sweep: str, folder: Path) -> tuple[str, str]:
    """A sweep's tracking URI, and the page of MLflow that charts its test trials.

    MLflow shows children under their parent while runs are sorted by time, and hides them there;
    sorted by a metric they stand side by side. StateError where there is no such sweep, or where
    it was not tracked.
    """
    found = find_sweep(sweep, folder)
    if found is None:
        raise StateError(f"there is no sweep {sweep}. {known_sweeps(folder)} Or pass --folder.")
    config = Design(read_sweep(found)).check()[0].config
    if not config.tracking.enabled:
        raise StateError(f"{sweep} was not tracked: tracking.enabled is false.")
    uri = tracking_uri(config.tracking.uri)
    _, experiment = connect(uri, config.tracking.experiment)
    wanted = {
        "searchFilter": f"tags.`{SWEEP_TAG}.{found.name}` = 'test'",
        "orderByKey": f"metrics.`{own_metric(config.headline)}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
    }
    return uri, f"/#/experiments/{experiment}/runs?{urlencode(wanted, quote_via=quote)}"
