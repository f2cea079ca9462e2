"""What survives: a driver that is killed, files that are damaged, clients that fail."""

import subprocess

import numpy as np
import pytest
import torch
from drivers import FEDARENA, kill_when

from fl_core.errors import FedarenaError, ResourceError, StateError
from fl_core.types import ServerState
from orchestrator.checkpoint import RoundRecord, RunStore
from orchestrator.events import Committed
from orchestrator.experiment import run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.ledger import Ledger
from orchestrator.loading import to_yaml
from orchestrator.results import MEASURED, Result
from orchestrator.run import load_run, run_experiments

RULES = ("fedavg", "local_only")


def interrupted(config, after_round):
    """Run until a round is committed, then drop everything that only memory held."""
    for event in CoordinatorHost().run(config):
        if isinstance(event, Committed) and event.record.round == after_round:
            return


def assert_equal_runs(config, other):
    ours, theirs = (Result.load(run_folder(c)) for c in (config, other))
    assert len(ours.records) == len(theirs.records)
    for name in theirs.parameters:
        assert torch.equal(ours.parameters[name], theirs.parameters[name])
    for mine, their in zip(ours.records, theirs.records, strict=True):
        drop = {n for n in their.metrics if n.startswith(MEASURED)}
        assert {n: v for n, v in mine.metrics.items() if n not in drop} == {
            n: v for n, v in their.metrics.items() if n not in drop
        }
        assert mine.client_metrics == their.client_metrics


@pytest.mark.parametrize("federation", RULES)
@pytest.mark.parametrize("after_round", [-1, 0, 2])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(make_config, federation, after_round):
    cut = make_config(f"federation={federation}", "name=cut")
    whole = make_config(f"federation={federation}", "name=whole")
    interrupted(cut, after_round)
    run_experiments([cut])
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_partial_cohorts_resume_with_every_clients_own_state(make_config):
    few = ("federation=local_only", "federation.clients_per_round=3", "federation.rounds=7")
    cut, whole = make_config(*few, "name=cut"), make_config(*few, "name=whole")
    for after_round in (1, 4):
        interrupted(cut, after_round)
    run_experiments([cut])
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_a_damaged_newest_round_is_computed_again(make_config):
    cut, whole = make_config("name=cut"), make_config("name=whole")
    interrupted(cut, 2)
    newest = run_folder(cut) / "rounds" / "000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    run_experiments([cut])
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_a_half_written_record_does_not_count(make_config):
    cut, whole = make_config("name=cut"), make_config("name=whole")
    interrupted(cut, 2)
    record = run_folder(cut) / "rounds" / "000003.json"
    record.write_text(record.read_text()[:40])
    run_experiments([cut])
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_a_finished_run_is_not_run_again(make_config):
    config = make_config()
    first = run_experiments([config])[0]
    stamps = [record.time_ms for record in first.records]
    again = run_experiments([config])[0]
    assert [record.time_ms for record in again.records] == stamps


def test_fresh_forgets_what_was_there(make_config):
    config = make_config()
    first = run_experiments([config])[0]
    again = run_experiments([config], fresh=True)[0]
    assert again.records[0].time_ms > first.records[-1].time_ms
    assert torch.equal(again.parameters["context"], first.parameters["context"])


def test_a_fresh_start_does_not_touch_a_run_that_another_process_works_on(make_config, monkeypatch):
    monkeypatch.setattr(RunStore.lock.__wrapped__, "__defaults__", (0.2,))  # seconds of waiting
    config = make_config()
    interrupted(config, 1)
    store = RunStore(run_folder(config))
    before = store.records()
    with store.lock(), pytest.raises(StateError, match="another process"):
        run_experiments([config], fresh=True)
    assert store.records() == before
    assert store.tensors(before[-1]) is not None


def test_what_a_killed_process_was_writing_is_removed(make_config):
    config = make_config()
    interrupted(config, 1)
    left = run_folder(config) / "rounds" / ".000009.safetensors.4242.tmp"
    left.write_bytes(b"half")
    run_experiments([config])
    assert not left.exists()


def test_a_disk_that_cannot_be_written_is_told_and_the_run_goes_on_later(make_config):
    cut, whole = make_config("name=cut"), make_config("name=whole")
    rounds = run_folder(cut) / "rounds"
    away = rounds.with_name("away")

    def fill_up(config, event):
        if isinstance(event, Committed) and event.record.round == 1:
            rounds.rename(away)
            rounds.write_text("no folder, no round")

    with pytest.raises(ResourceError, match=r"cannot be written.*`fedarena resume`"):
        run_experiments([cut], listen=fill_up)
    rounds.unlink()
    away.rename(rounds)
    run_experiments([cut])
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_a_run_that_was_moved_goes_on_where_it_lies(make_config, tmp_path):
    cut, whole = make_config("name=cut"), make_config("name=whole")
    interrupted(cut, 1)
    before = RunStore(run_folder(cut)).records()
    moved = tmp_path / "elsewhere"
    cut.folder.rename(moved)
    found = load_run(run_folder(cut).name, moved)
    assert found.folder == moved
    run_experiments([found])
    assert not cut.folder.exists()
    after = RunStore(run_folder(found)).records()
    assert [r.time_ms for r in after[:3]] == [r.time_ms for r in before]
    run_experiments([whole])
    assert_equal_runs(found, whole)
    named = load_run(run_folder(cut).name, moved, [f"folder={tmp_path / 'third'}"])
    assert named.folder == tmp_path / "third"


def test_a_run_that_was_renamed_is_no_run_to_begin_anew(make_config):
    config = make_config()
    interrupted(config, 1)
    run_folder(config).rename(config.folder / "renamed")
    with pytest.raises(StateError, match=f"its name would be {run_folder(config).name}"):
        load_run("renamed", config.folder)


def test_files_that_no_round_needs_are_removed(make_config):
    config = make_config("federation.rounds=9", "evaluation.every=0")
    run_experiments([config])
    rounds = run_folder(config) / "rounds"
    assert len(list(rounds.glob("*.json"))) == 10
    assert {path.name for path in rounds.glob("*.safetensors")} <= {
        f"{i:06d}.safetensors" for i in (7, 8, 9)
    }


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_driver_resumes_to_the_same_bits(make_config, tmp_path):
    settings = ("federation.rounds=6", "resources.executor=ray", "resources.clients_per_actor=4")
    cut = make_config(*settings, "name=cut", "resources.slice.cpus=0.5")
    whole = make_config("federation.rounds=6", "name=whole")
    (tmp_path / "cut.yaml").write_text(to_yaml(cut))
    kill_when(["run", str(tmp_path / "cut.yaml")], lambda line: "round 2" in line, tmp_path)
    assert not (run_folder(cut) / "DONE").exists()
    assert len(RunStore(run_folder(cut)).records()) >= 3
    subprocess.run([*FEDARENA, "resume", str(run_folder(cut))], check=True, cwd=tmp_path)
    run_experiments([whole])
    assert_equal_runs(cut, whole)


def test_two_processes_do_not_write_one_run(make_config):
    config = make_config()
    store = RunStore(run_folder(config))
    with store.lock(), pytest.raises(StateError, match="another process"), store.lock(wait_s=0.2):
        pass


def test_a_resume_with_a_changed_config_shows_the_difference(make_config):
    config = make_config()
    run_experiments([config])
    with pytest.raises(StateError, match=r"training\.optimizer\.lr: 0\.1 -> 0\.5"):
        load_run(run_folder(config).name, config.folder, ["training.optimizer.lr=0.5"])
    with pytest.raises(StateError, match="holds no run"):
        load_run("nothing", config.folder)


def test_a_client_whose_data_are_spoilt_is_dropped_and_recorded(make_config):
    config = make_config("resources.retries=1")
    actor = CoordinatorHost()
    events = actor.run(config)
    event = next(e for e in events if isinstance(e, Committed))  # configured; round 0 comes next
    assert event.record.round == -1
    worker = actor.executor.actor
    spoilt = worker.setup.rows[worker.setup.offsets[3]]
    features = worker.problem.inputs["features"].clone()
    features[spoilt] = float("nan")
    worker.problem.inputs["features"] = features
    records = [e.record for e in events if isinstance(e, Committed)]
    for record in records:
        assert 3 not in record.accepted
        assert set(record.accepted) == set(range(8)) - {3}
        assert "not finite" in record.failures["3"]
        assert record.metrics["clients/failed"] == 1


def test_a_client_that_raises_is_dropped_and_the_others_keep_their_bits(make_config):
    config, healthy = make_config("name=raises"), make_config("name=healthy")
    actor = CoordinatorHost()
    events = actor.run(config)
    next(e for e in events if isinstance(e, Committed))
    setup = actor.executor.actor.setup
    rows = setup.rows.copy()
    rows[setup.offsets[5]] = 10**9  # a row that no data set has
    object.__setattr__(setup, "rows", rows)
    first = next(e for e in events if isinstance(e, Committed)).record
    assert set(first.accepted) == set(range(8)) - {5}
    assert first.failures["5"].startswith("IndexError")
    run_experiments([healthy])
    clean = Result.load(run_folder(healthy)).records[1]
    assert set(clean.accepted) == set(range(8))


def test_a_round_without_any_usable_client_stops_the_run_and_says_why(make_config):
    config = make_config()
    actor = CoordinatorHost()
    events = actor.run(config)
    next(e for e in events if isinstance(e, Committed))
    worker = actor.executor.actor
    worker.problem.inputs["features"] = torch.full_like(
        worker.problem.inputs["features"], float("nan")
    )
    with pytest.raises(FedarenaError, match=r"round 0: every client of the cohort failed"):
        list(events)


def test_a_ledger_whose_newest_files_are_all_gone_refuses_to_start_over(tmp_path):
    store = RunStore(tmp_path)
    ledger = Ledger(store)
    for round in range(-1, 2):
        server = ServerState({"w": torch.full((2,), float(round))}, round + 1)
        ledger.commit(RoundRecord(round=round, time_ms=0), server)
    for path in (tmp_path / "rounds").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(StateError, match="cannot be read"):
        Ledger(store).recover()


def test_client_states_come_back_from_the_rounds_they_were_committed_in(tmp_path):
    store, ledger = RunStore(tmp_path), Ledger(RunStore(tmp_path))
    for round, clients in enumerate([(0, 1), (1, 2), (0,)]):
        states = {c: {"personal.b": torch.tensor([10.0 * round + c])} for c in clients}
        ledger.stage(round - 1, states)
        record = RoundRecord(round=round - 1, time_ms=0, accepted=clients)
        ledger.commit(record, ServerState({}, round))
    recovered = Ledger(store)
    recovered.recover()
    versions = recovered.versions_of([0, 1, 2, 3])
    assert versions == {0: 1, 1: 0, 2: 0, 3: -1}
    wanted = {client: version for client, version in versions.items() if version >= 0}
    values = {c: float(s["personal.b"]) for c, s in recovered.client_states(wanted).items()}
    assert values == {0: 20.0, 1: 11.0, 2: 12.0}
    assert np.isfinite(list(values.values())).all()
