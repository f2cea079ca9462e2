"""PerAda with distillation in whole runs: public rows, both executors, and refusals."""

import numpy as np
import pytest
import torch

from cluster.reserve import release, reserve
from fl_core.errors import ConfigError
from orchestrator.config import ExperimentConfig
from orchestrator.events import Committed
from orchestrator.experiment import prepare_experiment, run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.loading import load_config
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments
from scenarios.population import Population

TAUGHT = (
    "federation=perada",
    "federation.rounds=3",
    "federation.distillation={steps: 5, batch_size: 8, optimizer: {name: sgd, lr: 0.1}}",
    "scenario.public_fraction=0.2",
)


def told(result):
    return [
        {n: v for n, v in record.metrics.items() if not n.startswith(MEASURED)}
        for record in result.records
    ]


def test_a_run_distils_on_rows_that_nobody_else_has(make_config):
    config = make_config(*TAUGHT, "name=taught")
    (result,) = run_experiments([config])
    losses = [metrics.get("train/distillation_loss") for metrics in told(result)]
    assert losses[0] is None
    assert all(loss > 0 for loss in losses[1:])
    population = Population.load(result.folder / "population.parquet")
    public = population.public
    held = [population.part(name).rows for name in ("train", "validation", "test")]
    held += [population.global_validation, population.global_test]
    assert not np.isin(public, np.concatenate(held)).any()
    assert (population.labels[public] == -1).all()
    everything = len(public) + sum(len(np.unique(rows)) for rows in held[:2])
    assert len(public) == pytest.approx(0.2 * everything, rel=0.1)
    plain = make_config(*TAUGHT[:2], TAUGHT[3], "name=plain")
    (other,) = run_experiments([plain])
    assert any(not torch.equal(result.parameters[n], t) for n, t in other.parameters.items())
    assert result.summary["comm/up_bytes"] == other.summary["comm/up_bytes"]
    assert result.summary["comm/down_bytes"] == other.summary["comm/down_bytes"]


@pytest.mark.ray
def test_a_slice_distils_as_this_process_does(make_config, local_ray):
    (here,) = run_experiments([make_config(*TAUGHT, "name=here")])
    there, host = make_config(*TAUGHT, "name=there"), CoordinatorHost()
    slices = reserve(2, {"CPU": 0.5})
    try:
        for _ in host.run(there, slices):
            pass
    finally:
        host.close()
        release(slices)
    found = Result.load(run_folder(there))
    assert all(torch.equal(found.parameters[n], t) for n, t in here.parameters.items())
    assert told(found) == told(here)


def test_public_rows_do_not_depend_on_the_partition_and_are_kept_in_the_manifest(make_config):
    first = prepare_experiment(make_config(TAUGHT[3])).population
    other = prepare_experiment(make_config(TAUGHT[3], "scenario.num_clients=3")).population
    assert np.array_equal(first.public, other.public)
    none = prepare_experiment(make_config()).population
    assert len(none.public) == 0
    assert len({first.hash, none.hash}) == 2


def test_distillation_without_public_rows_is_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"scenario\.public_fraction, such as 0\.1"):
        make_config(*TAUGHT[:3])
    population = prepare_experiment(make_config()).population
    population.save(tmp_path / "none.parquet")
    config = make_config(*TAUGHT[:3], f"scenario.manifest={tmp_path / 'none.parquet'}")
    with pytest.raises(ConfigError, match="there are none"):
        list(CoordinatorHost().run(config))


def test_distillation_is_read_from_a_config():
    config = load_config(
        {"federation": {"name": "perada", "distillation": {"steps": 7}}}, TAUGHT[3:]
    )
    assert isinstance(config, ExperimentConfig)
    assert config.federation.distillation.steps == 7
    assert config.federation.distillation.optimizer.name == "adamw"
    none = load_config({"federation": {"name": "perada", "distillation": None}})
    assert none.federation.distillation is None


def test_a_run_that_was_cut_off_distils_as_one_that_was_not(make_config):
    cut, whole = make_config(*TAUGHT, "name=cut"), make_config(*TAUGHT, "name=whole")
    for event in CoordinatorHost().run(cut):
        if isinstance(event, Committed) and event.record.round == 0:
            break
    ours, theirs = (run_experiments([config])[0] for config in (cut, whole))
    assert all(torch.equal(ours.parameters[n], t) for n, t in theirs.parameters.items())
    assert told(ours) == told(theirs)
