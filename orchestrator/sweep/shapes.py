"""The placement group of each trial of a sweep."""

from __future__ import annotations

from cluster.reserve import cluster_nodes
from cluster.slices import check_placement, count_slices, slice_bundle
from orchestrator.host import wanted_slots
from orchestrator.sweep.design import Trial
from orchestrator.sweep.tune import Shape


class Shapes:
    """The placement group that each trial gets, on the connected cluster.

    Trials come first: a trial has more than one client actor only where the cluster has slices to
    spare for all trials that can run at once, or where the config asks for it.
    """

    def __init__(self, num_trials: int) -> None:
        self._nodes, self._num_trials = cluster_nodes(), max(1, num_trials)

    def __call__(self, trial: Trial) -> Shape:
        """ResourceError where the cluster cannot hold it."""
        resources = trial.config.resources
        bundle = slice_bundle(**vars(resources.slice))
        available = count_slices(self._nodes, bundle)
        share = max(1, available // min(self._num_trials, max(1, available)))
        num = wanted_slots(trial.config, share)
        check_placement(num, self._nodes, bundle)
        return Shape(num, tuple(sorted(bundle.items())))
