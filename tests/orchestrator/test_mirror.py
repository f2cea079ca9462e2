"""Runs and sweeps whose disk is lost: what stands at a URL is enough to go on, at every moment."""

import json
import logging
import shutil
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from drivers import FEDARENA, kill_when
from language_toys import BERT, small_language
from remote_toys import mounted

from fl_core.backbones.union import load_backbone
from fl_core.errors import ConfigError, ResourceError, StateError
from fl_core.remote import RemoteFolder
from orchestrator import mirror as mirror_module
from orchestrator.checkpoint import RunStore
from orchestrator.cli import main
from orchestrator.events import Committed, Finished, Progress
from orchestrator.experiment import prepare_experiment, run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.ledger import Ledger
from orchestrator.loading import config_hash, flat, load_config, to_yaml
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments
from orchestrator.shared_backbone import bring_backbone, share_backbone
from orchestrator.sweep.agenda import Agenda
from orchestrator.sweep.design import Design
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.run import SweepRunner, run_sweep
from orchestrator.sweep.state import SweepStore, sweep_folder

URL = "s3://bucket/runs"
STATEFUL = ("federation=local_only", "federation.clients_per_round=3", "federation.rounds=7")


@pytest.fixture
def bucket():
    with mounted("s3") as kind:
        yield kind


@pytest.fixture(params=["s3", "far", "file", "memory"])
def url(request, tmp_path):
    if request.param in ("s3", "far"):
        with mounted(request.param):
            yield f"{request.param}://bucket/runs"
    else:
        yield f"{request.param}://{tmp_path}/copies"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mirror_module, "PAUSES_S", (0.0, 0.0))


def abandon(config, after_round):
    """Run until a round is committed, then leave; the records so far."""
    with closing(CoordinatorHost().run(config)) as events:
        for event in events:
            if isinstance(event, Committed) and event.record.round == after_round:
                break
    return RunStore(run_folder(config)).records()


def results_of(config):
    """Everything that a run has computed, without what clocks say."""
    result = Result.load(run_folder(config))
    kept = [
        ({n: v for n, v in r.metrics.items() if not n.startswith(MEASURED)}, r.client_metrics)
        for r in result.records
    ]
    return kept, [record.sha256 for record in result.records], result.parameters


def assert_equal_results(config, other):
    ours, theirs = results_of(config), results_of(other)
    assert ours[:2] == theirs[:2]
    assert ours[2].keys() == theirs[2].keys()
    assert all(torch.equal(ours[2][name], tensor) for name, tensor in theirs[2].items())


def whole_state(folder):
    """The last round that can be gone on from, with every private state; None where there is none.

    Fails where the records promise more than is there.
    """
    store, ledger = RunStore(folder), Ledger(RunStore(folder))
    records = store.records()
    if not records:
        return None
    assert ledger.recover().round == records[-1].round + 1
    held = {c: v for c, v in ledger.versions_of(range(8)).items() if v >= 0}
    assert store.client_states(held).keys() == held.keys()
    assert (folder / "config.yaml").exists()
    return records[-1].round


# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), STATEFUL], ids=["fedavg", "stateful"])
def test_a_run_whose_disk_is_lost_goes_on_from_its_copy_to_the_same_bits(
    make_config, url, settings
):
    cut = make_config(*settings, "name=cut", f"mirror={url}")
    whole = make_config(*settings, "name=whole")
    before = abandon(cut, 2)
    shutil.rmtree(cut.folder)
    run_experiments([cut])
    run_experiments([whole])
    after = RunStore(run_folder(cut)).records()
    assert [r.time_ms for r in after[: len(before)]] == [r.time_ms for r in before]
    assert_equal_results(cut, whole)


def test_an_older_folder_is_brought_up_to_the_copy(make_config, bucket, tmp_path):
    cut = make_config("name=cut", f"mirror={URL}")
    abandon(cut, 0)
    shutil.copytree(cut.folder, tmp_path / "old")
    later = abandon(cut, 2)
    shutil.rmtree(cut.folder)
    shutil.copytree(tmp_path / "old", cut.folder)
    run_experiments([cut])
    after = RunStore(run_folder(cut)).records()
    assert [r.time_ms for r in after[: len(later)]] == [r.time_ms for r in later]
    assert len(after) == 5


def test_a_damaged_newest_round_comes_from_the_copy(make_config, bucket):
    cut = make_config("name=cut", f"mirror={URL}")
    before = abandon(cut, 2)
    newest = run_folder(cut) / "rounds" / "000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    run_experiments([cut])
    after = RunStore(run_folder(cut)).records()
    assert [r.time_ms for r in after[:4]] == [r.time_ms for r in before]
    assert_equal_results(cut, make_whole(make_config))


def make_whole(make_config):
    whole = make_config("name=whole")
    run_experiments([whole])
    return whole


@pytest.mark.parametrize("protocol", ["s3", "far"])
def test_what_stands_at_the_url_is_a_whole_state_at_every_moment(make_config, tmp_path, protocol):
    """Also where rounds come faster than they are sent: the first pass waits for four of them."""
    gate, states, faults = threading.Event(), [], []
    with mounted(protocol) as kind:
        config = make_config(*STATEFUL, "name=slow", f"mirror={protocol}://bucket/runs")

        def wait(what, path):
            if what == "put" and "000000" in path:
                assert gate.wait(60)

        def look(what, path):
            snapshot = tmp_path / f"snapshot{len(states)}"
            kind.copy_to(snapshot)
            try:
                states.append(whole_state(snapshot / "bucket" / "runs" / run_folder(config).name))
            except (AssertionError, StateError) as error:
                faults.append((what, path, repr(error)))

        kind.before, kind.after = staticmethod(wait), staticmethod(look)
        for event in CoordinatorHost().run(config):
            if isinstance(event, Committed) and event.record.round == 3:
                gate.set()
        assert isinstance(event, Finished)
        assert event.not_mirrored == ""
        kind.before = kind.after = staticmethod(lambda what, path: None)
        assert faults == []
        reached = [s for s in dict.fromkeys(states) if s is not None]
        assert reached == sorted(reached)
        assert reached[-1] == 6
        assert not {0, 1, 2} & set(reached), "these came together, and were shown together"
        there = RemoteFolder(f"{protocol}://bucket/runs").child(run_folder(config).name)
        here = {p.name for p in (run_folder(config) / "rounds").iterdir()}
        assert there.child("rounds").sizes().keys() == here


@pytest.mark.parametrize("protocol", ["s3", "far"])
def test_a_torn_upload_leaves_a_state_to_go_on_from_and_the_run_says_so(
    make_config, protocol, caplog
):
    def cut(what, path):
        if what == "put" and "000003" in path:
            raise OSError("the line went dead")

    with mounted(protocol) as kind:
        config = make_config("name=torn", f"mirror={protocol}://bucket/runs")
        kind.before = staticmethod(cut)
        with caplog.at_level(logging.WARNING):
            (result,) = run_experiments([config])
        assert len(result.records) == 5
        assert "its mirror has not" in caplog.text
        assert "the line went dead" in caplog.text
        kind.before = staticmethod(lambda what, path: None)
        shutil.rmtree(config.folder)
        run_experiments([config])
        assert_equal_results(config, make_whole(make_config))
        there = RemoteFolder(f"{protocol}://bucket/runs").child(run_folder(config).name)
        assert there.size("DONE") == 0


def test_a_finished_run_sends_what_its_copy_lacks_when_it_is_run_again(make_config, bucket):
    config = make_config("name=later")
    run_experiments([config])
    mirrored = make_config("name=later", f"mirror={URL}")
    run_experiments([mirrored])
    shutil.rmtree(config.folder)
    bucket.calls.clear()
    (result,) = run_experiments([mirrored])
    assert len(result.records) == 5
    assert [n for n in bucket.names("put") if not n.startswith(".probe")] == []


def test_what_did_not_change_is_not_sent_again(make_config, bucket):
    config = make_config("name=once", f"mirror={URL}", "federation.rounds=6")
    abandon(config, 2)
    run_experiments([config])
    run_experiments([config])
    sent = bucket.names("put", "/rounds/")
    assert len(sent) == len(set(sent))
    assert {n for n in sent if n.endswith(".json")} == {f"{i:06d}.json" for i in range(7)}
    for name in ("population.parquet", "config.yaml", "environment.json", "DONE"):
        assert bucket.names("put").count(name) == 1


def test_tensors_that_no_round_needs_are_removed_on_both_sides(make_config, bucket):
    config = make_config("name=few", "federation.rounds=9", "evaluation.every=0", f"mirror={URL}")
    run_experiments([config])
    rounds = run_folder(config) / "rounds"
    assert {p.name for p in rounds.glob("*.safetensors")} <= {
        f"{i:06d}.safetensors" for i in (7, 8, 9)
    }
    there = RemoteFolder(URL).child(run_folder(config).name).child("rounds").sizes()
    assert there.keys() == {p.name for p in rounds.iterdir()}


def test_other_results_at_the_url_are_refused_and_neither_side_changes(make_config, bucket):
    config = make_config("name=other", f"mirror={URL}")
    abandon(config, 2)
    name = f"/bucket/runs/{run_folder(config).name}/rounds/000003.json"
    record = json.loads(bucket.store[name].getvalue())
    foreign = json.dumps({**record, "sha256": "0" * 64}).encode()
    bucket().pipe_file(name, foreign)
    with pytest.raises(StateError, match="another result of round 2"):
        run_experiments([config])
    assert bucket.store[name].getvalue() == foreign
    assert len(RunStore(run_folder(config)).records()) == 4


def test_a_round_that_another_process_has_sent_stays_and_is_told(make_config, bucket):
    config = make_config("name=both", f"mirror={URL}")
    rounds = f"/bucket/runs/{run_folder(config).name}/rounds"
    name, foreign = f"{rounds}/000001.json", json.dumps({"round": 0, "sha256": "0" * 64}).encode()
    events = CoordinatorHost().run(config)
    next(e for e in events if isinstance(e, Committed))
    until = time.monotonic() + 30
    while f"{rounds}/000000.json" not in bucket.store and time.monotonic() < until:
        time.sleep(0.01)
    bucket().pipe_file(name, foreign)
    (event,) = (e for e in events if isinstance(e, Finished))
    assert "another result of round 0" in event.not_mirrored
    assert bucket.store[name].getvalue() == foreign
    assert len(RunStore(run_folder(config)).records()) == 5


def test_fresh_forgets_the_copy_too(make_config, bucket):
    config = make_config("name=fresh", f"mirror={URL}")
    (first,) = run_experiments([config])
    (again,) = run_experiments([config], fresh=True)
    assert again.records[0].time_ms > first.records[-1].time_ms
    shutil.rmtree(config.folder)
    (third,) = run_experiments([config])
    assert [r.time_ms for r in third.records] == [r.time_ms for r in again.records]


def test_places_are_no_part_of_what_is_computed(make_config):
    here = make_config("name=same")
    there = make_config("name=same", f"mirror={URL}", "shared_store=gs://bucket/store")
    assert config_hash(here) == config_hash(there)
    assert not {"mirror", "shared_store"} & flat(there).keys()


def test_every_place_that_cannot_be_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        load_config({"mirror": "runs", "shared_store": "s3://me:secret@bucket/x", "seed": "x"})
    told = "\n".join(error.value.faults)
    assert len(error.value.faults) == 3
    assert "mirror = 'runs' is relative" in told
    assert "shared_store = 's3://***@bucket/x' holds credentials" in told
    assert "me:secret" not in told


def test_a_mirror_that_cannot_be_written_stops_the_run_before_it_begins(make_config, bucket):
    def fail(what, path):
        raise PermissionError("access denied")

    bucket.before = staticmethod(fail)
    config = make_config(f"mirror={URL}")
    with pytest.raises(ConfigError, match=r"mirror: s3://bucket/runs cannot be written.*denied"):
        run_experiments([config])
    assert not (run_folder(config) / "rounds").exists()


# -- by URL --------------------------------------------------------------------------------------


def resume(*words):
    return CliRunner().invoke(main, ["resume", *map(str, words), "--quiet"])


def test_a_run_is_resumed_by_its_url_on_another_machine(make_config, bucket, tmp_path):
    config = make_config("name=moved", f"mirror={URL}")
    before = abandon(config, 1)
    shutil.rmtree(config.folder)
    name, elsewhere = run_folder(config).name, tmp_path / "elsewhere"
    done = resume(f"{URL}/{name}", "--folder", elsewhere)
    assert done.exit_code == 0, done.output
    assert not config.folder.exists()
    after = RunStore(elsewhere / name).records()
    assert [r.time_ms for r in after[: len(before)]] == [r.time_ms for r in before]
    assert len(after) == 5
    assert RemoteFolder(URL).child(name).size("DONE") == 0
    again = load_config(elsewhere / name / "config.yaml")
    assert (again.folder, again.mirror) == (elsewhere, URL)


def test_a_url_without_a_run_says_what_to_name(bucket, tmp_path):
    done = resume(f"{URL}/nothing", "--folder", tmp_path)
    assert done.exit_code == 1
    assert "holds no run and no sweep" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_exit_status_tells_of_a_copy_that_lacks_something(make_config, bucket):
    def cut(what, path):
        if what == "put" and "000003" in path:
            raise OSError("the line went dead")

    config = make_config("name=told", f"mirror={URL}")
    abandon(config, 1)
    bucket.before = staticmethod(cut)
    name = run_folder(config).name
    assert resume(name, "--folder", config.folder).exit_code == 1
    bucket.before = staticmethod(lambda what, path: None)
    assert resume(name, "--folder", config.folder).exit_code == 0
    assert RemoteFolder(URL).child(name).size("DONE") == 0


# -- sweeps --------------------------------------------------------------------------------------


@pytest.fixture
def make_sweep(make_config, tmp_path):
    from orchestrator.loading import to_dict

    def make(*overrides, **settings):
        base = {**to_dict(make_config(*overrides)), "name": None, "folder": str(tmp_path / "runs")}
        axes = {"federation": ["fedavg", "fedprox"]}
        return load_sweep({"name": "pair", "base": base, "axes": axes, **settings})

    return make


def test_a_sweep_whose_disk_is_lost_takes_its_trials_from_the_copies(make_sweep, bucket, tmp_path):
    sweep = make_sweep(f"mirror={URL}")
    first = run_sweep(sweep)
    assert first.not_mirrored == {}
    stamps = {e.run.name: [r.time_ms for r in RunStore(e.run).records()] for e in first.ended}
    shutil.rmtree(tmp_path / "runs")
    again = run_sweep(sweep)
    assert [e.status for e in again.ended] == ["reused", "reused"]
    found = {e.run.name: [r.time_ms for r in RunStore(e.run).records()] for e in again.ended}
    assert found == stamps
    assert again.summary.equals(first.summary)


def test_a_sweep_is_resumed_by_its_url_and_unfinished_trials_go_on(make_sweep, bucket, tmp_path):
    sweep = make_sweep(f"mirror={URL}")
    trials = Design(sweep).check()
    run_experiments([trials[0].config])
    before = abandon(trials[1].config, 1)
    then = dict(bucket.store)
    folder = run_sweep(sweep).folder
    copy = RemoteFolder(URL).child("sweeps").child(folder.name)
    assert copy.size("sweep.yaml")
    run = f"/bucket/runs/{trials[1].key}"
    now = {p: file for p, file in bucket.store.items() if not p.startswith(run)}
    bucket.store = now | {p: file for p, file in then.items() if p.startswith(run)}
    shutil.rmtree(tmp_path / "runs")
    done = resume(copy.url, "--folder", tmp_path / "elsewhere")
    assert done.exit_code == 0, done.output
    records = RunStore(tmp_path / "elsewhere" / trials[1].key).records()
    assert [r.time_ms for r in records[:3]] == [r.time_ms for r in before]
    assert len(records) == 5
    assert (tmp_path / "elsewhere" / "sweeps" / folder.name / "summary.csv").exists()
    refused = resume(copy.url, "federation.rounds=9", "--folder", tmp_path / "elsewhere")
    assert "goes on as it was" in refused.output


def test_a_trial_that_ran_on_a_node_with_a_folder_of_its_own_is_read_from_its_copy(
    make_sweep, bucket, tmp_path
):
    sweep = make_sweep(f"mirror={URL}")
    design = Design(sweep)
    trials = design.check()
    runner = SweepRunner(Agenda(design), SweepStore(sweep_folder(design, trials)), None)
    trial = runner.next()
    elsewhere = replace(runner.config(trial), folder=tmp_path / "node")
    (theirs,) = run_experiments([elsewhere])
    assert not runner.run_of(trial).exists()
    runner.end(trial, {"ended": True, "not_mirrored": ""})
    assert runner.ended[trial.key].status == "finished"
    ours = Result.load(runner.run_of(trial))
    assert [r.sha256 for r in ours.records] == [r.sha256 for r in theirs.records]
    assert ours.parameters.keys() == theirs.parameters.keys()


def test_trials_that_were_finished_before_there_was_a_mirror_are_sent(make_sweep, bucket):
    run_sweep(make_sweep())
    result = run_sweep(make_sweep(f"mirror={URL}"))
    assert [e.status for e in result.ended] == ["reused", "reused"]
    for ended in result.ended:
        assert RemoteFolder(URL).child(ended.run.name).size("DONE") == 0


def test_a_sweep_tells_which_copies_lack_something(make_sweep, bucket):
    def cut(what, path):
        if what == "put" and "fedprox" in path and "000002" in path:
            raise OSError("the line went dead")

    bucket.before = staticmethod(cut)
    result = run_sweep(make_sweep(f"mirror={URL}"))
    assert [e.status for e in result.ended] == ["finished", "finished"]
    (name,) = result.not_mirrored
    assert "fedprox" in name
    assert "the line went dead" in result.not_mirrored[name]


# -- the shared store ----------------------------------------------------------------------------


def test_a_node_with_an_empty_store_computes_no_feature(make_config, bucket, tmp_path):
    first = make_config("name=first", f"store={tmp_path}/a", "shared_store=s3://bucket/store")
    events = list(CoordinatorHost().run(first))
    assert any(isinstance(event, Progress) for event in events)
    second = make_config("name=second", f"store={tmp_path}/b", "shared_store=s3://bucket/store")
    events = list(CoordinatorHost().run(second))
    assert not any(isinstance(event, Progress) for event in events)
    assert list((tmp_path / "b").glob("*.arrow"))
    assert_equal_results(second, first)


def test_features_that_were_there_before_are_sent_for_the_other_nodes(make_config, bucket):
    run_experiments([make_config("name=first")])
    bucket.calls.clear()
    run_experiments([make_config("name=second", "shared_store=s3://bucket/store")])
    assert [n for n in bucket.names("put", "/store/") if n.endswith(".json")]


def test_a_backbone_that_another_node_has_prepared_is_fetched_whole(make_config, bucket, tmp_path):
    config = make_config("shared_store=s3://bucket/store", f"store={tmp_path}/a")
    list(CoordinatorHost().run(config))
    prepared = prepare_experiment(config).backbone.folder
    here = tmp_path / "b" / "backbones" / prepared.name
    bring_backbone(here, config.shared_store)
    for path in (p for p in here.rglob("*") if p.is_file()):
        assert path.read_bytes() == (prepared / path.relative_to(here)).read_bytes()
    assert load_backbone(here).weights_hash == load_backbone(prepared).weights_hash
    bucket.calls.clear()
    bring_backbone(here, config.shared_store)
    assert bucket.calls == []


def test_a_language_model_is_fetched_with_its_weights(bucket, tmp_path):
    model = small_language(tmp_path / "a", BERT)
    share_backbone(model, "s3://bucket/store")
    here = tmp_path / "b" / model.folder.name
    bring_backbone(here, "s3://bucket/store")
    ours = load_backbone(here)
    assert ours.weights_hash == model.weights_hash
    assert {p.name for p in (tmp_path / "b").iterdir() if not p.name.startswith(".")} == {
        model.folder.name,
        model.weights_folder.name,
    }


def test_a_backbone_that_is_nowhere_says_where_it_was_looked_for(bucket, tmp_path):
    with pytest.raises(ResourceError, match=r"neither in .* nor in s3://bucket/store"):
        bring_backbone(tmp_path / "b" / "0123", "s3://bucket/store")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_leaves_enough_for_a_machine_that_has_nothing(
    make_config, tmp_path
):
    urls = (f"mirror=file://{tmp_path}/far/runs", f"shared_store=file://{tmp_path}/far/store")
    settings = ("name=cut", "federation.rounds=30", "resources.executor=ray", f"store={tmp_path}/a")
    cut = make_config(*settings, *urls, "resources.clients_per_actor=8")
    (tmp_path / "cut.yaml").write_text(to_yaml(cut))
    kill_when(["run", str(tmp_path / "cut.yaml")], lambda line: "round 6" in line, tmp_path)
    place = tmp_path / "far" / "runs" / run_folder(cut).name
    assert not (place / "DONE").exists()
    sent = RunStore(place).records()
    assert sent
    shutil.rmtree(tmp_path / "a")
    words = [f"file://{place}", f"store={tmp_path}/b", "--folder", str(tmp_path / "elsewhere")]
    subprocess.run([*FEDARENA, "resume", *words], check=True, cwd=tmp_path)
    whole = make_config("federation.rounds=30", "name=whole")
    run_experiments([whole])
    moved = replace(cut, folder=tmp_path / "elsewhere")
    assert_equal_results(moved, whole)
    after = RunStore(run_folder(moved)).records()
    assert [r.time_ms for r in after[: len(sent)]] == [r.time_ms for r in sent]
    assert (place / "DONE").exists()
