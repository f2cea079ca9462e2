"""What a sweep says while none of its trials can run: Tune itself waits without a word."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from cluster.slices import Bundle, check_placement
from fl_core.errors import ResourceError

logger = logging.getLogger(__name__)

TOLD_AFTER_S = 60.0


class Patience:
    """Looks at trials as they wait, and says once for each wait that is long why they do."""

    def __init__(self, why: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._why, self._clock = why, clock
        self._since: float | None = None

    def look(self, statuses: Iterable[str]) -> None:
        """statuses: of all trials so far, in Tune's words; those that may run first, since this is
        called at each of Tune's steps and reads no further.
        """
        is_waiting = False
        for status in statuses:
            if status == "RUNNING":
                is_waiting = False
                break
            is_waiting = is_waiting or status in ("PENDING", "PAUSED")
        if not is_waiting:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= TOLD_AFTER_S:
            self._since = float("inf")
            logger.warning("no trial has run for %g s. %s", TOLD_AFTER_S, self._why())


def why_none_runs(nodes: Sequence[Mapping[str, float]], num_slots: int, bundle: Bundle) -> str:
    """What keeps trials of ``num_slots`` slices from a cluster of these nodes."""
    try:
        check_placement(num_slots, nodes, bundle)
    except ResourceError as error:
        return (
            f"A node has gone since the sweep began: {error} Or interrupt it, and go on with "
            "`fedarena resume`: its trials then take what is left."
        )
    return "Other work holds the slices that a trial needs: the sweep goes on once they are free."
