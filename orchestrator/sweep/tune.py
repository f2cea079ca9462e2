"""The Ray side of a sweep: Tune starts trials, reuses their actors, and replaces those that die."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.reserve import cluster_nodes
from orchestrator.sweep.config import Asha
from orchestrator.sweep.design import Trial
from orchestrator.sweep.trial import trainable
from orchestrator.sweep.waiting import Patience, why_none_runs

if TYPE_CHECKING:
    from orchestrator.sweep.run import SweepRunner

MAX_RESTARTS = 3
"""How often the actor of a trial that died is replaced before the trial counts as failed."""

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders hold more than Tune's own logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt reaches us at once; rounds are durable
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # nobody restores Tune's snapshot
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Shape:
    """A trial's placement group: ``num_slots`` slices of one bundle."""

    num_slots: int
    bundle: tuple[tuple[str, float], ...]


def run_on_tune(runner: SweepRunner, shapes: Callable[[Trial], Shape]) -> None:
    """Run all trials of a sweep on the connected cluster, as many at once as it has room for."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from ray import tune

    def factory(config: dict[str, Any]) -> Any:
        bundles = [dict(config["bundle"])] * config["num_slots"]
        return tune.PlacementGroupFactory([{}, *bundles], strategy="PACK")

    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    scratch, searcher = runner.store.folder / "tune", _searcher(runner, shapes)
    tuner = tune.Tuner(
        tune.with_resources(trainable(), factory),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(runner),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_watch(lambda: searcher.last)],
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _searcher(runner: SweepRunner, shapes: Callable[[Trial], Shape]) -> Any:
    """The runner as Tune's searcher: Tune asks it for the next trial, and tells it of results."""
    from ray.tune.search import Searcher

    class Agenda(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.trials: dict[str, Trial] = {}
            self.last: Shape | None = None

        def suggest(self, trial_id: str) -> Any:
            trial = runner.next(like=lambda t: self.last is None or shapes(t) == self.last)
            if trial is None:
                return Searcher.FINISHED if runner.is_finished else None
            self.trials[trial_id], self.last = trial, shapes(trial)
            return {
                "order": runner.order(trial),
                "key": trial.key,
                "group": trial.group if runner.is_scheduled(trial) else "",
                "num_slots": self.last.num_slots,
                "bundle": dict(self.last.bundle),
            }

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            runner.note(self.trials[trial_id], result)

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            runner.end(self.trials.pop(trial_id), None if error else result)

        def __reduce__(self) -> tuple[type[str], tuple[()]]:
            return str, ()  # for Tune's snapshot, which nobody reads

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """Nothing is kept here: run folders are the truth."""

        def save(self, checkpoint_path: str) -> None:
            """As above."""

        def restore(self, checkpoint_path: str) -> None:
            """As above."""

    return Agenda()


def _watch(shape: Callable[[], Shape]) -> Any:
    """Tells of trials that wait for long; shape: of the last one that was handed out."""
    from ray import tune

    def why() -> str:
        return why_none_runs(cluster_nodes(), shape().num_slots, dict(shape().bundle))

    patience = Patience(why)

    class Watch(tune.Callback):  # type: ignore[misc]
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            patience.look(trial.status for trial in reversed(trials))

    return Watch()


def _scheduler(runner: SweepRunner) -> Any:
    """One scheduler per group, so that none ever chooses between methods; tests always go on."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

    asha = runner.scheduler

    class PerGroup(FIFOScheduler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.own: dict[str, Any] = {}

        def __reduce__(self) -> tuple[type[str], tuple[()]]:
            return str, ()  # for Tune's snapshot, which nobody reads

        def of(self, trial: Any) -> Any:
            group = trial.config["group"]
            if not group or asha is None:
                return None
            if group not in self.own:
                longest = asha.longest or trial.config["order"].config.federation.rounds
                self.own[group] = ASHAScheduler(**_asha_settings(asha, longest))
            return self.own[group]

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            if (own := self.of(trial)) is not None:
                own.on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            own = self.of(trial)
            if own is None:
                return str(TrialScheduler.CONTINUE)
            decision = str(own.on_trial_result(tune_controller, trial, result))
            if decision == TrialScheduler.STOP:
                runner.stop(trial.config["key"], result["round"])
            return decision

        def on_trial_complete(
            self, tune_controller: Any, trial: Any, result: dict[str, Any]
        ) -> None:
            if (own := self.of(trial)) is not None:
                own.on_trial_complete(tune_controller, trial, result)

    return PerGroup()


def _asha_settings(asha: Asha, longest: float) -> dict[str, Any]:
    return {
        "time_attr": asha.time,
        "metric": "validation",
        "mode": "max",
        "max_t": longest,
        "grace_period": asha.grace,
        "reduction_factor": asha.reduction,
        "stop_last_trials": False,
    }
