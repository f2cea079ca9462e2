"""Attackers and clients that do not answer, in whole experiments."""

import numpy as np
import pytest
import torch

from fl_core.errors import ConfigError
from orchestrator.client import ClientActor
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import compute_features, prepare_experiment
from orchestrator.loading import resolve
from orchestrator.plan import outline
from orchestrator.run import run_experiments


def test_a_flipped_sign_turns_the_step_of_the_attackers_around(make_config):
    all_of_them = ("attack.name=sign_flip", "attack.fraction=1.0", "federation.rounds=1")
    honest, flipped = (
        run_experiments([make_config(f"name={name}", "federation.rounds=1", *words)])[0]
        for name, words in (("honest", ()), ("flipped", all_of_them))
    )
    nothing = run_experiments(
        [make_config("name=still", *all_of_them, "training.optimizer.lr=1e-30")]
    )[0]
    start = nothing.parameters["context"]
    step, back = (r.parameters["context"] - start for r in (honest, flipped))
    assert step.abs().max() > 0
    torch.testing.assert_close(back, -step, rtol=1e-3, atol=1e-7)


def test_labels_are_flipped_in_the_training_rows_of_the_attackers_and_nowhere_else(make_config):
    experiment = prepare_experiment(resolve(make_config("attack.name=label_flip")))
    list(compute_features(experiment, InlineExecutor()))
    setup = experiment.setup()
    actor = ClientActor()
    actor.configure(setup)
    clean, poisoned = torch.from_numpy(np.maximum(setup.home.labels, 0)), actor.problem.labels
    clients = range(len(setup.offsets) - 1)
    held = {c: setup.rows[setup.offsets[c] : setup.offsets[c + 1]] for c in clients}
    assert len(actor.attackers) == round(0.3 * len(held))
    theirs = np.concatenate([held[c] for c in actor.attackers])
    num_classes = len(setup.home.task.classes)
    assert torch.equal(poisoned[theirs], num_classes - 1 - clean[theirs])
    others = np.setdiff1d(np.arange(len(clean)), theirs)
    assert torch.equal(poisoned[others], clean[others])


def test_who_does_not_answer_stands_in_the_record_with_the_reason(make_config):
    config = make_config("participation.dropout=0.4", "federation.rounds=3")
    result = run_experiments([config])[0]
    reasons = [r for record in result.records for r in record.failures.values()]
    assert reasons
    assert set(reasons) == {"dropped out"}
    for record in result.records[1:]:
        assert not {str(c) for c in record.accepted} & set(record.failures)
        assert {len(record.accepted) + len(record.failures)} == {config.scenario.num_clients}


def test_a_run_goes_on_through_rounds_for_which_nobody_is_there(make_config):
    config = make_config("participation.trace=[[], [0, 1]]", "federation.rounds=4")
    result = run_experiments([config])[0]
    assert [len(record.accepted) for record in result.records[1:]] == [0, 2, 0, 2]


def test_what_has_no_clients_is_refused_with_attack_or_participation(make_config):
    for setting in ("attack.name=gaussian", "participation.dropout=0.1"):
        with pytest.raises(ConfigError, match="leave attack and participation out"):
            resolve(make_config("federation=centralised", setting))


def test_clients_that_are_not_there_are_refused_before_anything_is_computed(make_config):
    beyond = "participation.trace=[[0, 12]]"
    with pytest.raises(ConfigError) as caught:
        make_config(beyond, "attack.name=sign_flip", "attack.fraction=0.01")
    trace, nobody = caught.value.faults
    assert trace.startswith("participation.trace names client 12, and there are")
    assert nobody.startswith("attack.fraction = 0.01 of")
    assert "is nobody: set it to" in nobody


def test_how_many_clients_there_are_may_only_be_known_from_the_data(make_config, tmp_path):
    manifest = tmp_path / "population.parquet"
    prepare_experiment(resolve(make_config())).population.save(manifest)
    told = (f"scenario.manifest={manifest}", "scenario.num_clients=null")
    config = make_config(*told, "participation.trace=[[0, 12]]")
    with pytest.raises(ConfigError, match=r"participation\.trace names client 12"):
        outline(prepare_experiment(resolve(config)))
