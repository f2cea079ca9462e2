"""MLflow: one writer per run, fed from committed rounds, which never costs or delays a run.

Everything that is sent stands in the run's folder first, with its timestamp. ``tracking.json``
there remembers how far MLflow is; what was missed in an outage is read from the folder and sent
again. A point that is sent twice is the same row to MLflow (its key includes value and timestamp).
"""

from __future__ import annotations

import json
import logging
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from fl_core.errors import StateError
from orchestrator.checkpoint import RoundRecord, RunStore
from orchestrator.mlflow_access import (
    THREAD_PREFIX,
    connect,
    preflight,
    reason,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "HASH_TAG",
    "MARK_FILE",
    "RUN_TAG",
    "Point",
    "RunInfo",
    "Status",
    "Tracker",
    "TrackingThread",
    "connect",
    "points",
    "preflight",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Status = Literal["FINISHED", "FAILED", "KILLED"]

RUN_TAG, HASH_TAG = "fedarena.run", "fedarena.config_hash"
MARK_FILE = "tracking.json"
MAX_METRICS_PER_BATCH, MAX_PARAMS_PER_BATCH = 1000, 100
"""MLflow's own limits on one request."""


@dataclass(frozen=True)
class RunInfo:
    """What MLflow is told of a run once.

    run_id: fedarena's, the name of the run's folder; name: as shown; params: flat settings; tags:
    among them ``HASH_TAG``, by which a run is found again when ``tracking.json`` is lost.
    """

    run_id: str
    name: str
    params: Mapping[str, str | int | float | bool]
    tags: Mapping[str, str]


class Point(NamedTuple):
    """One value of a metric, as MLflow keeps it."""

    name: str
    value: float
    time_ms: int
    step: int


def points(records: Sequence[RoundRecord], bytes_before: int = 0) -> tuple[list[Point], int]:
    """The metrics of consecutive rounds, and the bytes sent (up and down) until after them.

    By round the step is the number of rounds done, 0 being the state before training. Scores
    (``eval/...``) come a second time as ``<name>_by_kb``, with the kilobytes of 1000 bytes spent
    until then, rounded up, as step; rounds that cost nothing have no such point.
    """
    found: list[Point] = []
    total = bytes_before
    for record in records:
        cost = sum(int(record.metrics.get(f"comm/{way}_bytes", 0)) for way in ("up", "down"))
        total += cost
        for name, value in record.metrics.items():
            found.append(Point(name, value, record.time_ms, record.round + 1))
            if name.startswith("eval/") and (cost or record.round < 0):
                found.append(Point(f"{name}_by_kb", value, record.time_ms, -(-total // 1000)))
    return found, total


@dataclass(frozen=True)
class Mark:
    """How far MLflow is: ``tracking.json``. last_round: the last one sent, -2 where none is."""

    uri: str
    experiment: str
    mlflow_run: str
    last_round: int = -2
    total_bytes: int = 0


class Tracker:
    """Writes one run to MLflow. Raises what MLflow raises; every call may be repeated after that.

    store: the run's folder, where rounds are read from and ``tracking.json`` is kept.
    """

    def __init__(self, uri: str, experiment: str, store: RunStore) -> None:
        self.uri, self.experiment, self.store = uri, experiment, store
        self._client: MlflowClient | None = None
        self._mark: Mark | None = None

    def open(self, info: RunInfo, *, resumed: bool) -> str:
        """Begin the run, or go on with it; returns MLflow's id of it.

        The MLflow run that ``tracking.json`` names is used where it still exists. Where that file
        is lost, a ``resumed`` run is looked for by its tags; otherwise a new one is made.
        """
        from mlflow.entities import Param, RunTag

        client, experiment_id = connect(self.uri, self.experiment)
        mark = self._known_mark(client)
        if mark is None:
            run = _find_run(client, experiment_id, info) if resumed else None
            if run is None:
                marks = {RUN_TAG: info.run_id, **info.tags}
                run = client.create_run(experiment_id, run_name=info.name, tags=marks).info.run_id
            mark = Mark(without_password(self.uri), self.experiment, run)
        self._client = client
        self._save(mark)
        data = client.get_run(mark.mlflow_run).data
        new = [Param(k, _text(v)) for k, v in info.params.items() if k not in data.params]
        for params in _chunks(new, MAX_PARAMS_PER_BATCH):
            client.log_batch(mark.mlflow_run, params=params, synchronous=True)
        changed = [RunTag(k, v) for k, v in info.tags.items() if data.tags.get(k) != v]
        for tags in _chunks(changed, MAX_PARAMS_PER_BATCH):
            client.log_batch(mark.mlflow_run, tags=tags, synchronous=True)
        client.update_run(mark.mlflow_run, status="RUNNING")
        return mark.mlflow_run

    def log(self, records: Sequence[RoundRecord]) -> None:
        """Send the committed rounds that are new; a gap before them is read from the folder."""
        from mlflow.entities import Metric

        client, mark = self._opened()
        if records and records[0].round > mark.last_round + 1:
            records = self.store.records()
        new = [record for record in records if record.round > mark.last_round]
        if not new:
            return
        found, total = points(new, mark.total_bytes)
        metrics = [Metric(p.name, p.value, p.time_ms, p.step) for p in found]
        for chunk in _chunks(metrics, MAX_METRICS_PER_BATCH):
            client.log_batch(mark.mlflow_run, metrics=chunk, synchronous=True)
        self._save(replace(mark, last_round=new[-1].round, total_bytes=total))

    def replay(self) -> None:
        """Send all committed rounds in the run's folder that MLflow does not have."""
        self.log(self.store.records())

    def artifacts(self, paths: Mapping[str, Path]) -> None:
        """Store local files, or folders as a whole, under the given paths."""
        client, mark = self._opened()
        for name, path in paths.items():
            target = PurePosixPath(name)
            folder = None if target.parent == PurePosixPath() else str(target.parent)
            if path.is_dir():
                client.log_artifacts(mark.mlflow_run, str(path), name)
            elif path.name == target.name:
                client.log_artifact(mark.mlflow_run, str(path), folder)
            else:  # MLflow always keeps the local name
                with tempfile.TemporaryDirectory() as temporary:
                    renamed = shutil.copyfile(path, Path(temporary) / target.name)
                    client.log_artifact(mark.mlflow_run, str(renamed), folder)

    def finish(self, status: Status) -> None:
        """Say how the run ended."""
        client, mark = self._opened()
        client.set_terminated(mark.mlflow_run, status)

    def _opened(self) -> tuple[MlflowClient, Mark]:
        if self._client is None or self._mark is None:
            raise StateError("Tracker.open has to come first.")
        return self._client, self._mark

    def _known_mark(self, client: MlflowClient) -> Mark | None:
        """What ``tracking.json`` says, if it is about this place and a run that is still there."""
        from mlflow.exceptions import MlflowException

        text = self.store.read_text(MARK_FILE)
        try:
            mark = Mark(**json.loads(text)) if text else None
        except (ValueError, TypeError):
            logger.warning("%s is damaged; looking for the run in MLflow", MARK_FILE)
            return None
        if mark is None:
            return None
        if (mark.uri, mark.experiment) != (without_password(self.uri), self.experiment):
            return None
        try:
            stage = client.get_run(mark.mlflow_run).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return mark if stage == "active" else None

    def _save(self, mark: Mark) -> None:
        if mark != self._mark:
            self.store.write_text(MARK_FILE, json.dumps(asdict(mark), indent=2))
        self._mark = mark


# -- in the background ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Close:
    status: Status
    artifacts: Mapping[str, Path] = field(default_factory=dict)


class TrackingThread:
    """A tracker that works beside the run: nobody waits for it, and its failures are warnings.

    After a failure it tries again with the first round that comes ``retry_s`` seconds later, and
    at the end. The thread is a daemon: a tracking server that hangs does not keep a process alive.
    """

    def __init__(
        self, tracker: Tracker, info: RunInfo, *, resumed: bool, retry_s: float = 30.0
    ) -> None:
        self._tracker, self._info, self._resumed = tracker, info, resumed
        self._retry_s, self._quiet_until = retry_s, 0.0
        self._is_open = self._has_warned = self._all_sent = False
        self._queue: queue.SimpleQueue[RoundRecord | _Close] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name=f"{THREAD_PREFIX}tracking", daemon=True
        )
        self._thread.start()

    def put(self, record: RoundRecord) -> None:
        """Hand over a committed round; returns at once."""
        self._queue.put(record)

    def close(
        self, status: Status, artifacts: Mapping[str, Path] | None = None, timeout_s: float = 30.0
    ) -> bool:
        """Send what is missing and how the run ended; whether MLflow has it all.

        Waits ``timeout_s`` seconds at most; then the run's folder still holds everything.
        """
        self._queue.put(_Close(status, artifacts or {}))
        self._thread.join(timeout_s)
        if not self._all_sent:
            logger.warning(
                "MLflow at %s does not have all of run %s. Its folder has: `fedarena resume %s` "
                "sends the rest.",
                *(without_password(self._tracker.uri), self._info.run_id, self._info.run_id),
            )
        return self._all_sent

    def _work(self) -> None:
        self._attempt(self._ready)
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            for item in batch:
                if isinstance(item, _Close):
                    self._all_sent = self._attempt(partial(self._end, item))
                    return
            records = [item for item in batch if isinstance(item, RoundRecord)]
            if time.monotonic() >= self._quiet_until:
                self._attempt(partial(self._send, records))

    def _ready(self) -> None:
        if not self._is_open:
            self._tracker.open(self._info, resumed=self._resumed)
            self._tracker.replay()
            self._is_open = True

    def _send(self, records: Sequence[RoundRecord]) -> None:
        self._ready()
        self._tracker.log(records)

    def _end(self, close: _Close) -> None:
        self._ready()
        self._tracker.replay()
        self._tracker.artifacts(close.artifacts)
        self._tracker.finish(close.status)

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001  nothing that tracking does may cost the run
            self._quiet_until = time.monotonic() + self._retry_s
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "MLflow at %s failed: %s. The run goes on; what is missing is sent later.",
                    *(without_password(self._tracker.uri), reason(error)),
                )
            return False
        return True


# -- details -------------------------------------------------------------------------------------


def _find_run(client: MlflowClient, experiment_id: str, info: RunInfo) -> str | None:
    wanted = {RUN_TAG: info.run_id}
    if HASH_TAG in info.tags:
        wanted[HASH_TAG] = info.tags[HASH_TAG]
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
    order = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment_id], condition, max_results=1, order_by=order)
    return runs[0].info.run_id if runs else None


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
