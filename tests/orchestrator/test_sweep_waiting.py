"""What a sweep says while none of its trials can run."""

import logging

import pytest

from orchestrator.sweep import waiting
from orchestrator.sweep.waiting import Patience, why_none_runs


@pytest.fixture
def told(caplog):
    """Look at trials at times that a test chooses; how often anything was said."""
    caplog.set_level(logging.WARNING, logger=waiting.__name__)
    now = [0.0]
    patience = Patience(lambda: "Because.", lambda: now[0])

    def look(at, *statuses):
        now[0] = at
        patience.look(statuses)
        return len(caplog.records)

    return look


def test_a_long_wait_is_told_once_and_the_next_one_again(told, caplog):
    assert told(0, "PENDING", "TERMINATED") == 0
    assert told(59, "PENDING") == 0
    assert told(60, "PENDING") == 1
    assert told(600, "PENDING") == 1
    assert told(610, "RUNNING", "PENDING") == 1
    assert told(620, "PENDING") == 1
    assert told(680, "PENDING") == 2
    assert caplog.messages == ["no trial has run for 60 s. Because."] * 2


def test_trials_that_run_or_have_all_ended_do_not_wait(told):
    for at in (0, 100, 200):
        assert told(at, "RUNNING", "PENDING") == 0
    for at in (300, 400, 500):
        assert told(at, "TERMINATED", "ERROR") == 0


def test_a_node_that_has_gone_is_told_apart_from_other_work():
    left = [{"CPU": 1.0}]
    assert why_none_runs(left, 1, {"CPU": 1.0}).startswith("Other work holds the slices")
    lost = why_none_runs(left, 2, {"CPU": 1.0})
    assert "asked for 2 client actors" in lost
    assert "`fedarena resume`" in lost
