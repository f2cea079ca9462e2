"""A trial on Ray Tune: Tune's actor is the coordinator of one experiment after the other.

Its placement group holds the slices of its client actors (the coordinator itself needs no CPU of
its own, as in ``run``). Tune reuses the actor for the next trial of the same shape, so its client
actors stay warm. The truth about a trial is its run's folder; Tune's own snapshots are not used.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.reserve import Slices
from fl_core.errors import FedarenaError
from orchestrator.checkpoint import RoundRecord, RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.events import Committed, Event, Finished, Started
from orchestrator.executors import SliceLostError
from orchestrator.experiment import run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.mirror import bring

if TYPE_CHECKING:
    from ray.tune import Trainable

REPORT_S = 1.0
"""A trial reports at most that often, unless a scheduler wants every round."""


@dataclass(frozen=True)
class Order:
    """A trial as it is handed to its actor.

    every_round: report each round, past ones too, as a scheduler wants it. stop_after: rounds at
    which a scheduler ended it when the sweep ran before.
    """

    config: ExperimentConfig
    every_round: bool = False
    stop_after: int | None = None


class TrialHost:
    """A plain class: in Tune's actor on Ray, in this process for the inline executor."""

    def __init__(self, own_process: bool = False) -> None:
        self._host = CoordinatorHost(own_process)
        self._events: Iterator[Event] = iter(())
        self._state: dict[str, Any] = {}
        self._every_round = False

    def begin(self, order: Order, slices: Slices | None) -> None:
        """Take up another trial, from wherever its folder says it stands."""
        self.leave()
        self._every_round = order.every_round
        self._state = {"round": 0, "rounds": order.config.federation.rounds, "bytes": 0}
        self._state |= {"stage": "starting", "ended": False}
        self._events = self._all_events(order, slices)

    def advance(self) -> dict[str, Any]:
        """Go on for about a second, or for one round; where the trial stands then.

        round, rounds; bytes: sent so far, both ways; validation: the score of the round just
        committed only; facts: see ``Started``; ended; fault: why it failed, if it did;
        not_mirrored: see ``Finished``.
        """
        until = time.monotonic() + REPORT_S
        self._state.pop("validation", None)
        try:
            for event in self._events:
                if self._note(event) and (self._every_round or time.monotonic() >= until):
                    return dict(self._state)
        except SliceLostError:
            raise  # Tune starts the trial again, on a placement group that the cluster can hold
        except FedarenaError as error:
            self._state["fault"] = str(error)
        except Exception:  # noqa: BLE001  a trial that fails is data: the others go on
            self._state["fault"] = traceback.format_exc()
        return {**self._state, "ended": True}

    def leave(self) -> None:
        """Let go of the trial, and of the lock on its run; the client actors stay."""
        if hasattr(self._events, "close"):
            self._events.close()
        self._events = iter(())

    def close(self) -> None:
        self.leave()
        self._host.close()

    def _all_events(self, order: Order, slices: Slices | None) -> Iterator[Event]:
        """What the trial does; a scheduler is told what it did before, too."""
        store = RunStore(run_folder(order.config))
        if order.every_round:
            bring(store.folder, order.config.mirror)
            for record in store.records():
                yield Committed(store.folder.name, record)
                if order.stop_after is not None and record.round + 1 >= order.stop_after:
                    self._state["stopped"] = True
                    return
        yield from self._host.run(order.config, slices)

    def _note(self, event: Event) -> bool:
        """Keep what an event says; whether it is worth a report."""
        match event:
            case Started(rounds=rounds, facts=facts):
                self._state |= {
                    "rounds": rounds,
                    "facts": tuple(facts.items()),
                    "stage": "training",
                }
                return False
            case Committed(record=record):
                self._count(record)
                return True
            case Finished(not_mirrored=fault):
                self._state["not_mirrored"] = fault
                return False
        return False

    def _count(self, record: RoundRecord) -> None:
        sent = sum(int(record.metrics.get(f"comm/{way}_bytes", 0)) for way in ("up", "down"))
        self._state["round"] = record.round + 1
        self._state["bytes"] += sent
        if record.validation is not None:
            self._state["validation"] = record.validation


def trainable() -> type[Trainable]:
    """The class that Tune makes actors of. A function, since only sweeps on Ray import Tune."""
    from ray import tune
    from ray.util import get_current_placement_group

    class Experiment(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.host = TrialHost(own_process=True)
            group = get_current_placement_group()
            self.slices = Slices(config["num_slots"], config["bundle"], group)
            self.host.begin(config["order"], self.slices)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.host.begin(new_config["order"], self.slices)
            return True

        def step(self) -> dict[str, Any]:
            state = self.host.advance()
            return {**state, "done": state["ended"]}

        def cleanup(self) -> None:
            self.host.close()

    return Experiment
