"""Keeps the copies of runs and sweeps at ``mirror`` up to their folders, beside the work.

A folder is brought up to its copy before anything reads it, so that a run can go on, and be
read, on any node. ``remote_run`` says how either way goes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_core.errors import ConfigError
from fl_core.remote import RemoteFolder
from orchestrator.checkpoint import LOCK_WAIT_S, RunStore, file_stem
from orchestrator.config import ExperimentConfig
from orchestrator.remote_run import DONE, Kept, RemoteRun

logger = logging.getLogger(__name__)

END_WAIT_S = 600.0
"""How long the end of a run waits for what has not been sent."""
EXIT_WAIT_S = 10.0
"""The same where a run breaks off; the copy is a whole state even so, a few rounds old."""
PAUSES_S = (0.0, 1.0, 4.0)
"""Before each of the attempts at the end."""


class Mirror:
    """Sends one folder's news from a thread of its own: nobody waits for it before the end.

    What waits is on disk: if rounds come faster than they can be sent, some tensors never are,
    since the last state is all that counts. A failure is a warning; it tries again with the first
    round that comes ``retry_s`` seconds later, and at the end. The thread also removes the tensors
    that no round needs from the folder, which have to stay while they may be sent.
    """

    def __init__(self, copy: RemoteRun, retry_s: float = 30.0) -> None:
        self.copy = copy
        self._retry_s, self._quiet_until = retry_s, 0.0
        self._kept, self._fault = Kept(), ""
        self._is_closing = self._is_left = self._has_warned = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedarena-mirror", daemon=True)
        self._thread.start()

    def put(self, last: int, needed: Collection[int]) -> None:
        """A round has been committed; tensors of all but ``needed`` may go. Returns at once."""
        self._kept = Kept(last, frozenset(needed))
        self._news.set()

    def put_all(self) -> None:
        """Everything that the folder holds is to be sent."""
        self._kept = self.copy.kept_here()
        self._news.set()

    def note(self) -> None:
        """A file beside the rounds has changed."""
        self._news.set()

    def close(self, wait_s: float = END_WAIT_S) -> str:
        """Send what is missing. Returns why the copy lacks something, empty where it does not."""
        self._is_closing = True
        self._news.set()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._is_left = True
            return f"{self.copy.remote.url}: not all was sent within {wait_s:g} s."
        return self._fault

    def _work(self) -> None:
        while not self._is_closing:
            self._news.wait()
            self._news.clear()
            if not self._is_closing and time.monotonic() >= self._quiet_until:
                self._attempt()
            self._prune()
        for pause_s in PAUSES_S:
            time.sleep(pause_s)
            if self._is_left or self._attempt():
                break
        self._prune()

    def _attempt(self) -> bool:
        try:
            self.copy.send(self._kept)
        except Exception as error:  # noqa: BLE001  nothing that a copy does may cost the run
            self._fault = str(error) or type(error).__name__
            self._quiet_until = time.monotonic() + self._retry_s
            if not self._has_warned:
                self._has_warned = True
                logger.warning("%s The run goes on; what is missing is sent later.", self._fault)
            return False
        self._fault = ""
        return True

    def _prune(self) -> None:
        kept = self._kept
        if self._is_left:  # the folder may be another process's by now
            return
        here = self.copy.kept_here().needed
        for round in (r for r in here - kept.needed if r <= kept.last):
            path = self.copy.rounds_here / f"{file_stem(round)}.safetensors"
            path.unlink(missing_ok=True)


# -- for whoever runs or reads -------------------------------------------------------------------


def copy_of(folder: Path, root: str) -> RemoteRun:
    """A run's folder and its copy below ``root``, which stands for the folder of all runs."""
    return RemoteRun(folder, RemoteFolder(root).child(folder.name))


@contextmanager
def mirrored(folder: Path, root: str | None) -> Iterator[Mirror | None]:
    """Bring a run's folder up to its copy, then keep the copy up to the folder.

    The caller holds the run's lock. None where nothing is mirrored.
    """
    if root is None:
        yield None
        return
    copy = copy_of(folder, root)
    copy.restore()
    mirror = Mirror(copy)
    try:
        yield mirror
    finally:
        mirror.close(EXIT_WAIT_S)


def bring(folder: Path, root: str | None, wait_s: float = LOCK_WAIT_S) -> None:
    """Bring a run's folder on this node up to its copy, where there is one that holds more."""
    if root is not None and not (folder / DONE).exists():
        with RunStore(folder).lock(wait_s):
            copy_of(folder, root).restore()


def send_finished(folder: Path, root: str | None) -> str:
    """Send a finished run unless its copy is finished too; why something is missing, or ''."""
    if root is None or RemoteFolder(root).child(folder.name).size(DONE) is not None:
        return ""
    with RunStore(folder).lock():
        mirror = Mirror(copy_of(folder, root))
        mirror.put_all()
        return mirror.close()


def end(mirror: Mirror | None) -> str:
    """Wait until a copy has everything; why it has not, empty where it has."""
    return "" if mirror is None else mirror.close()


def forget(folder: Path, root: str | None) -> None:
    """Remove a run's copy."""
    if root is not None:
        copy_of(folder, root).remove()


def check_places(configs: Iterable[ExperimentConfig]) -> None:
    """Make sure that the URLs of all configs can be used; ConfigError with all that cannot."""
    names = ("mirror", "shared_store")
    found = {(name, vars(config)[name]) for config in configs for name in names}
    faults = []
    for name, url in sorted((name, url) for name, url in found if url is not None):
        try:
            RemoteFolder(url).probe(name)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
