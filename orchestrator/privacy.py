"""What a run tells of its clients' examples, where its learner adds noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fl_core.learners.base import Private
from fl_core.privacy import Mechanism, spent
from orchestrator.compare.effort import trainings_per_round
from orchestrator.config import ExperimentConfig

EPSILON = "privacy/epsilon"
"""Spent so far, over all rounds, of the client that has spent most."""

NEIGHBOURS = "one example that counts for nothing"


def mechanism_of(config: ExperimentConfig) -> Mechanism | None:
    """None where the learner promises nothing."""
    return config.learner.mechanism if isinstance(config.learner, Private) else None


def privacy_metrics(
    config: ExperimentConfig, num_examples: Sequence[int], rounds: Mapping[int, int]
) -> dict[str, float]:
    """``privacy/epsilon``, or nothing where none can be told.

    num_examples: by client; rounds: by client, in how many of them it has trained.
    """
    mechanism = mechanism_of(config)
    if mechanism is None or mechanism.fault:
        return {}
    times = trainings_per_round(config.federation)
    turns = [(num_examples[client], times * done) for client, done in rounds.items()]
    return {EPSILON: spent(mechanism, config.training, turns)}


def expected_privacy(
    config: ExperimentConfig, num_examples: Sequence[int], num_rounds: int
) -> str | None:
    """What a run of so many rounds will spend at most, in words; None where nothing is promised."""
    mechanism = mechanism_of(config)
    if mechanism is None:
        return None
    if mechanism.fault:
        return f"n/a: {mechanism.fault}"
    every = dict.fromkeys(range(len(num_examples)), num_rounds)
    found = privacy_metrics(config, num_examples, every)[EPSILON]
    return f"at most {found:.3g} at delta {mechanism.delta:g}"
