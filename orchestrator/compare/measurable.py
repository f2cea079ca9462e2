"""Which metrics the runs of a comparison can have, told before any of them has run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from fl_core.errors import ConfigError, did_you_mean
from orchestrator.compare.lineup import LOWER_IS_BETTER, Row
from orchestrator.config import ExperimentConfig
from scenarios.data.catalogue import load_dataset
from scenarios.evaluate import Exam, compare_with_zero_shot, measure, measure_reference
from scenarios.scenario import build_population, build_targets
from scenarios.scored import AnyScored, Headline, nothing_scored, own_metric, scored
from scenarios.targets import Target


def refuse_unmeasurable(rows: Sequence[Row], metric: str) -> None:
    """ConfigError where no run of these can measure ``metric``.

    Loads the data, unless it is what the runs are judged by anyway.
    """
    configs = [config for row in rows for config in row.configs.values()]
    if metric in {own_metric(config.headline) for config in configs}:
        return
    distinct = {(config.scenario, config.headline): config for config in configs}
    known = {name for config in distinct.values() for name in metric_names(config)}
    if metric not in known:
        ranked = {name for name in known if not name.endswith(LOWER_IS_BETTER)}
        raise ConfigError(
            f"metric = {metric!r} is measured in none of these runs, so none was begun."
            f"{did_you_mean(metric, ranked)}"
        )


def metric_names(config: ExperimentConfig) -> set[str]:
    """What is measured of a run whose clients have models of their own beside a shared one."""
    scenario, headline = config.scenario, config.headline
    load = cache(lambda spec: load_dataset(spec, config.store / "hashes"))
    dataset = load(scenario.dataset)
    population = build_population(scenario, dataset)
    targets = build_targets(scenario, dataset, population, load)
    num_clients = population.num_clients
    exams = [_blank_exam(target, num_clients, headline) for target in targets]
    flat = measure(population, exams, [0.0] * num_clients, headline).flat
    zero_shot = measure_reference(population, "zero_shot", exams, headline).flat
    return {*flat, *compare_with_zero_shot(flat, zero_shot, headline)}


def _blank_exam(target: Target, num_clients: int, headline: Headline) -> Exam:
    """Every model was given nothing but zeros."""
    shared = _blank(target.rows, headline)
    if target.by_client is None:
        return Exam(target, shared, [shared] * num_clients)
    return Exam(target, shared, [shared.of(target.by_client[c]) for c in range(num_clients)])


def _blank(rows: npt.NDArray[np.int64], headline: Headline) -> AnyScored:
    empty = nothing_scored(rows[:0], headline)
    zeros = {n: np.zeros(len(rows), c.dtype) for n, c in vars(empty).items() if n != "rows"}
    return scored(rows, zeros)
