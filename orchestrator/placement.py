"""Which slot gets which groups, and which slot holds whose private state already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from safetensors.torch import save

from fl_core.types import Params
from orchestrator.executors import Call
from orchestrator.jobs import GroupCall, Job

Fetch = Callable[[Mapping[int, int]], Mapping[int, Params]]
"""Private states by client, for client -> round at which its state stands."""


MakeJob = Callable[[int, list[int]], Job]
"""The job for (slot, numbers of its parts)."""


class Placement:
    """Deals work out to slots. A state is sent only to a slot that does not hold it."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._holders: dict[int, tuple[int, int]] = {}

    def calls(self, num_parts: int, make: MakeJob) -> list[Call]:
        """One call per slot: parts 0..n-1 are dealt out in turn.

        A job that is made again is for a new actor: what the old one held is forgotten.
        """

        def call(slot: int) -> Call:
            parts = list(range(slot, num_parts, self.num_slots))

            def job(cold: bool) -> Job:
                if cold:
                    self.forget(slot)
                return make(slot, parts)

            return Call(slot, job)

        return [call(slot) for slot in range(min(self.num_slots, num_parts))]

    def note(self, slot: int, clients: Sequence[int], round: int) -> None:
        """The slot now holds these clients' states of that round."""
        self._holders |= dict.fromkeys(clients, (slot, round))

    def forget(self, slot: int) -> None:
        """The slot's actor is new and holds nothing."""
        self._holders = {c: held for c, held in self._holders.items() if held[0] != slot}

    def group(self, index: int, slot: int, versions: Mapping[int, int], fetch: Fetch) -> GroupCall:
        """The call for a group (client -> round of its state), with the states the slot lacks."""
        missing = {
            client: version
            for client, version in versions.items()
            if version >= 0 and self._holders.get(client) != (slot, version)
        }
        states = (
            {client: save(state) for client, state in fetch(missing).items()} if missing else {}
        )
        for client, version in missing.items():
            self._holders[client] = (slot, version)
        return GroupCall(index, tuple(versions), tuple(versions.values()), states)

    def lend(
        self, index: int, group: Sequence[int], state: Params, borrowers: Collection[int]
    ) -> GroupCall:
        """The call for a group in which ``borrowers``, who have no state, use that of another."""
        lent = save(state)
        states = {client: lent for client in group if client in borrowers}
        return GroupCall(index, tuple(group), (-1,) * len(group), states)
