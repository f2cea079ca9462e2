"""A sweep and its runs at the mirror: brought here when needed, sent when they are not there.

Trials may run on other nodes, whose run folders are their own; what the driver knows of them it
reads from their copies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_core.errors import FedarenaError, StateError
from fl_core.remote import RemoteFolder
from orchestrator.checkpoint import LOCK_WAIT_S
from orchestrator.mirror import Mirror, bring, send_finished
from orchestrator.remote_run import RemoteRun
from orchestrator.sweep.state import (
    CHOICES_FILE,
    STOPS_FILE,
    SWEEP_FILE,
    SWEEPS,
    SweepStore,
)

logger = logging.getLogger(__name__)

SIDE_FILES = (SWEEP_FILE, STOPS_FILE, CHOICES_FILE, "trials.csv", "summary.csv")


class RunsAway:
    """Runs below ``mirror``, as they stood when the sweep began. None: there is no mirror.

    faults: why a copy lacks something, by the run's name.
    """

    def __init__(self, mirror: str | None) -> None:
        self.mirror = mirror
        self.names = frozenset([] if mirror is None else RemoteFolder(mirror).folders())
        self.faults: dict[str, str] = {}
        self._looked_at: set[str] = set()

    def bring_known(self, run: Path) -> None:
        """Bring a run's folder up to a copy that was there before; looked at once."""
        if run.name in self.names and run.name not in self._looked_at:
            bring(run, self.mirror)
        self._looked_at.add(run.name)

    def take_in(self, run: Path, unsent: str, *, is_whole: bool) -> None:
        """A trial has ended, perhaps on another node. unsent: why its copy lacks something.

        One that was cut short may still be held by its actor, if that is on this node.
        """
        if unsent:
            self.note(run, unsent)
            return
        try:
            bring(run, self.mirror, wait_s=LOCK_WAIT_S if is_whole else 0.5)
        except StateError as error:
            if is_whole:
                self.note(run, str(error))
        except FedarenaError as error:
            self.note(run, str(error))

    def send(self, run: Path) -> None:
        """A trial was found finished here: it is to be at the mirror, too."""
        try:
            fault = send_finished(run, self.mirror)
        except FedarenaError as error:
            fault = str(error)
        if fault:
            self.note(run, fault)

    def note(self, run: Path, fault: str) -> None:
        logger.warning("%s is not, or not all, at the mirror: %s", run.name, fault)
        self.faults[run.name] = fault


def sweep_copy(folder: Path, mirror: str) -> RemoteRun:
    """A sweep's folder, and its copy below the mirror of its runs."""
    remote = RemoteFolder(mirror).child(SWEEPS).child(folder.name)
    return RemoteRun(folder, remote, SIDE_FILES)


def bring_sweep(copy: RemoteRun) -> None:
    """Fetch what the folder lacks. Of the scheduler's decisions, those that are not here either."""
    missing = [name for name in SIDE_FILES if not (copy.folder / name).exists()]
    copy.fetch_side_files(missing)
    theirs = None if STOPS_FILE in missing else copy.remote.read(STOPS_FILE)
    if theirs is not None:
        store = SweepStore(copy.folder)
        store.write_stops({**json.loads(theirs), **store.stops()})


@contextmanager
def sweep_at_work(store: SweepStore, mirror: str | None) -> Iterator[None]:
    """Hold a sweep's folder, and keep its copy, where there is one, up to it."""
    with store.lock():
        if mirror is None:
            yield
            return
        copy = sweep_copy(store.folder, mirror)
        bring_sweep(copy)
        store.mirror = Mirror(copy)
        try:
            yield
        finally:
            store.mirror.close()
