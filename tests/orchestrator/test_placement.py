"""What a slot is believed to hold."""

import torch

from orchestrator.jobs import ScoreSharedJob, TrainJob
from orchestrator.placement import Placement

STATES = {0: {"w": torch.zeros(2)}, 1: {"w": torch.ones(2)}}


def held_by_slot_0(placement):
    """Clients whose states the next call to slot 0 would not send."""
    call = placement.group(0, 0, {0: 5, 1: 5}, lambda wanted: {c: STATES[c] for c in wanted})
    return {0, 1} - call.states.keys()


def test_states_are_sent_again_to_an_actor_that_was_replaced_in_any_job():
    for job in (ScoreSharedJob("home", ()), TrainJob(6, ())):
        placement = Placement(2)
        placement.note(0, (0, 1), 5)
        call, _ = placement.calls(2, lambda slot, parts, job=job: job)
        assert call.make(False) is job
        assert held_by_slot_0(placement) == {0, 1}
        assert call.make(True) is job
        assert held_by_slot_0(placement) == set()


def test_a_replaced_actor_costs_the_other_slots_nothing():
    placement = Placement(2)
    placement.note(0, (0, 1), 5)
    _, other = placement.calls(2, lambda slot, parts: ScoreSharedJob("home", ()))
    other.make(True)
    assert held_by_slot_0(placement) == {0, 1}
