"""Sweeps that run: in this process and on Ray, cut off and resumed, tracked and planned."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch
from click.testing import CliRunner
from drivers import FEDARENA, kill_when

from fl_core.errors import ConfigError, StateError
from orchestrator.checkpoint import RunStore
from orchestrator.cli import main
from orchestrator.display import console, show_results
from orchestrator.events import Progress
from orchestrator.host import CoordinatorHost
from orchestrator.loading import to_dict
from orchestrator.results import MEASURED, Result
from orchestrator.run import run_experiments
from orchestrator.sweep.design import Design
from orchestrator.sweep.display import SweepWatcher, show_sweep
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.results import SweepResult
from orchestrator.sweep.run import Ended, run_sweep
from orchestrator.sweep.state import SweepStore, find_sweep, to_yaml
from orchestrator.sweep.survey import Survey
from orchestrator.sweep.tracking import charts_page

AXES = {
    "method": {
        "promptfl": {"federation": "fedavg"},
        "fedprox": {"federation": "fedprox"},
        "zs": {"learner": "zero_shot"},
    },
    "scenario.partition.alpha": {"grid": [0.3, 1.0], "when": {"method": ["promptfl", "fedprox"]}},
}
TUNED = {**AXES, "federation.mu": {"choice": [0.1, 50.0], "when": {"method": "fedprox"}}}


@pytest.fixture
def make_sweep(make_config, tmp_path):
    """A sweep over the small model and data; its runs lie in a folder of the test's own."""

    def make(axes=None, *overrides, folder="runs", **settings):
        base = to_dict(make_config(*overrides))
        base |= {"name": None, "folder": str(tmp_path / folder)}
        return load_sweep({"base": base, "axes": axes or AXES, **settings})

    return make


class Listener:
    """Keeps what a sweep tells its audience."""

    def __init__(self):
        self.total, self.ends, self.running = 0, {}, []

    def expect(self, total):
        self.total = total

    def prepare(self, progress):
        pass

    def progress(self, trial, state):
        self.running.append((trial.key, dict(state)))

    def end(self, trial, status, result):
        self.ends[trial.key] = status


def records_of(folder):
    """What the runs under a folder have computed, by run, without what clocks say."""
    found = {}
    for path in sorted(folder.glob("*/rounds")):
        rounds = []
        for record in RunStore(path.parent).records():
            kept = {n: v for n, v in record.metrics.items() if not n.startswith(MEASURED)}
            rounds.append((record.round, kept, dict(record.client_metrics), record.sha256))
        found[path.parent.name] = rounds
    return found


def test_a_sweep_gives_the_bits_of_its_experiments_run_alone(make_sweep, tmp_path):
    sweep = make_sweep(seeds=2)
    result = run_sweep(sweep)
    assert len(result.ended) == 2 * (2 + 2 + 1)
    assert {e.status for e in result.ended} == {"finished"}
    trial = next(e.trial for e in result.ended if e.trial.method == "fedprox")
    alone = Path(tmp_path / "alone")
    lone = load_sweep({"base": {**sweep.base, "folder": str(alone)}, "axes": AXES, "seeds": 2})
    same = next(t for t in Design(lone).check() if t.name == trial.name)
    (single,) = run_experiments([same.config])
    theirs = Result.load(trial.config.folder / trial.key)
    assert single.folder.name == trial.key
    for name, tensor in theirs.parameters.items():
        assert torch.equal(single.parameters[name], tensor)


def test_finished_trials_are_taken_from_their_folders(make_sweep):
    first = run_sweep(make_sweep())
    stamps = {e.run: [r.time_ms for r in RunStore(e.run).records()] for e in first.ended}
    listener = Listener()
    again = run_sweep(make_sweep(seeds=2), audience=listener)
    statuses = [e.status for e in again.ended]
    assert (statuses.count("reused"), statuses.count("finished")) == (5, 5)
    assert listener.total == len(listener.ends) == 10
    for run, times in stamps.items():
        assert [r.time_ms for r in RunStore(run).records()] == times


def test_a_run_with_another_name_counts_as_finished(make_sweep):
    run_sweep(make_sweep())
    renamed = {k: v for k, v in AXES.items() if k != "method"}
    renamed["scenario.partition.alpha"] = [0.3, 1.0]
    again = run_sweep(make_sweep(renamed))
    assert [e.status for e in again.ended] == ["reused", "reused"]
    assert all(e.run.name.startswith("promptfl") for e in again.ended)


def test_two_trials_that_compute_the_same_run_once(make_sweep):
    twins = {"method": {"a": {"federation": "fedavg"}, "b": {"federation": "fedavg"}}}
    result = run_sweep(make_sweep(twins))
    assert sorted(e.status for e in result.ended) == ["finished", "reused"]
    assert len({e.run for e in result.ended}) == 1


def test_a_sweep_that_was_cut_off_ends_as_one_that_was_not(make_sweep):
    whole, cut = make_sweep(folder="whole"), make_sweep(folder="cut")
    run_sweep(whole)
    trials = Design(cut).check()
    run_experiments([trials[0].config])
    for i, _ in enumerate(CoordinatorHost().run(trials[1].config)):
        if i == 4:  # two rounds are committed
            break
    assert 0 < len(RunStore(trials[1].config.folder / trials[1].key).records()) < 5
    result = run_sweep(cut)
    assert sorted(e.status for e in result.ended) == ["finished"] * 4 + ["reused"]
    folders = [Path(s.base["folder"]) for s in (whole, cut)]
    assert records_of(folders[0]) == records_of(folders[1])


def test_tuning_looks_at_validation_rows_only(make_sweep):
    sweep = make_sweep(TUNED, "scenario.validation_fraction=0.3", tuning={"trials_per_method": 2})
    result = run_sweep(sweep)
    tuning = [e for e in result.ended if e.trial.stage == "tuning"]
    scores = {
        e.trial.tuned["federation.mu"]: RunStore(e.run).records()[-1].validation for e in tuning
    }
    assert set(scores) == {0.1, 50.0}
    choice = result.choices["fedprox"]
    assert choice.validation == max(scores.values()) == scores[choice.point["federation.mu"]]
    tests = [e.trial for e in result.ended if e.trial.stage == "test"]
    assert {t.config.federation.mu for t in tests if t.method == "fedprox"} == {
        choice.point["federation.mu"]
    }
    assert set(result.summary.index.get_level_values("method")) == {"promptfl", "fedprox", "zs"}


def test_tuning_without_validation_rows_is_refused(make_sweep):
    sweep = make_sweep(TUNED, "scenario.validation_fraction=0", tuning={"trials_per_method": 2})
    with pytest.raises(ConfigError, match="leaves nothing to tune on"):
        run_sweep(sweep)


def test_what_only_the_data_can_refuse_is_refused_before_the_first_trial(make_sweep, tmp_path):
    budgets = {"communication.budget.megabytes": [1.0, 0.0001], "scenario.shots": [4, 10**6]}
    with pytest.raises((ConfigError, StateError)) as caught:
        run_sweep(make_sweep(budgets))
    assert "megabytes" in str(caught.value)
    assert not list((tmp_path / "runs").glob("*/rounds"))


def test_what_only_the_model_can_refuse_is_told_of_all_methods_at_once(make_sweep, tmp_path):
    methods = {"coop": "coop", "vpt": "vpt", "maple": "maple"}
    with pytest.raises(ConfigError) as caught:
        run_sweep(make_sweep({"method": {name: {"learner": own} for name, own in methods.items()}}))
    for learner in ("vpt", "maple"):
        assert f"learner.depth = 9 is not allowed for learner={learner}" in str(caught.value)
    assert not list((tmp_path / "runs").glob("*/rounds"))


def test_a_trial_that_fails_costs_the_others_nothing(make_sweep):
    sweep = make_sweep()
    trials = Design(sweep).check()
    broken = trials[0].config.folder / trials[0].key
    (broken / "rounds").mkdir(parents=True)
    (broken / "rounds" / "000000.json").write_text("{")
    result = run_sweep(sweep)
    assert [e.trial.key for e in result.failed] == [trials[0].key]
    assert "cannot be read" in result.failed[0].fault
    assert sum(e.status == "finished" for e in result.ended) == 4


def test_summaries_are_means_over_seeds(make_sweep):
    result = run_sweep(make_sweep(seeds=3))
    table = result.trials
    kept = table[(table.method == "fedprox") & (table["scenario.partition.alpha"] == "0.3")]
    values = kept["eval/global/accuracy"].tolist()
    row = result.summary.loc[("fedprox", "0.3")]
    assert len(values) == 3
    mean = sum(values) / 3
    assert row["mean"]["eval/global/accuracy"] == pytest.approx(mean)
    deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert row["std"]["eval/global/accuracy"] == pytest.approx(deviation)
    assert (result.folder / "trials.csv").read_text().count("\n") == 16


def test_budgets_that_are_a_run_each_are_cells_of_their_own_and_no_seeds(make_sweep):
    axes = {"method": {"fedavg": {"federation": "fedavg"}, "local": {"federation": "local_only"}}}
    sweep = make_sweep(axes, "federation.rounds=2", budgets=[8, 9], seeds=2)
    result = run_sweep(sweep)
    budgets = result.summary.index.get_level_values("communication.budget.megabytes")
    assert list(budgets) == ["8", "9", ""]
    assert (result.summary["count"]["rounds"] == 2).all()
    told = (result.folder / "summary.csv").read_text().splitlines()
    assert told[0].startswith("method,communication.budget.megabytes,")


def test_mlflow_has_a_parent_and_a_child_per_trial(make_sweep, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'sweep.db'}"
    sweep = make_sweep(None, "tracking.enabled=true", f"tracking.uri={uri}", "federation.rounds=2")
    result = run_sweep(sweep)
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("fedarena").experiment_id])
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if r is not parent]
    assert len(children) == len(result.ended) == 5
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parent.info.run_id}
    assert {r.data.tags["fedarena.sweep"] for r in found} == {result.folder.name}
    assert {r.data.tags["fedarena.method"] for r in children} == set(AXES["method"])
    assert {r.data.params["method"] for r in children} == set(AXES["method"])
    assert {r.info.status for r in found} == {"FINISHED"}
    for child in children:
        steps = client.get_metric_history(child.info.run_id, "eval/global/accuracy")
        expected = 1 if child.data.params["method"] == "zs" else 3
        assert len({point.step for point in steps}) == expected
    names = {artifact.path for artifact in client.list_artifacts(children[0].info.run_id)}
    assert {"config.yaml", "population.png", "summary.json"} <= names
    run_sweep(sweep)
    experiment = parent.info.experiment_id
    assert len(client.search_runs([experiment])) == 6
    place, page = charts_page(result.folder.name, tmp_path / "runs")
    path, _, query = page.partition("?")
    assert (place, path) == (uri, f"/#/experiments/{experiment}/runs")
    (condition,) = parse_qs(query)["searchFilter"]
    assert len(client.search_runs([experiment], condition)) == 5  # all children, no parent
    again = run_sweep(replace(sweep, name="again"))
    moved = client.search_runs([experiment], f"tags.`fedarena.sweep` = '{again.folder.name}'")
    assert len(moved) == 6
    assert len(client.search_runs([experiment], condition)) == 5  # both sweeps have them
    with pytest.raises(StateError, match=rf"no sweep gone\..* {result.folder.name}\. Or pass"):
        charts_page("gone", tmp_path / "runs")


def test_a_table_of_runs_ends_with_the_command_that_shows_them_in_mlflow(make_config):
    config = make_config("federation.rounds=1")
    results = run_experiments([config])
    for words, line in (
        (["tracking.enabled=true"], "fedarena ui\n"),
        (
            ["tracking.enabled=true", "tracking.uri=http://mlflow:5000"],
            "ui --uri http://mlflow:5000",
        ),
        (["tracking.enabled=false"], None),
    ):
        with console.capture() as told:
            show_results([make_config("federation.rounds=1", *words)], results)
        assert line in told.get() if line else " ui" not in told.get()


def test_mlflow_that_runs_on_a_server_is_named_and_not_started_again(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    done = CliRunner().invoke(main, ["ui", "--uri", "http://mlflow:5000/"])
    assert done.output == "MLflow is on http://mlflow:5000\n"
    assert started == []
    CliRunner().invoke(main, ["ui", "--uri", "sqlite:////here/mlflow.db", "--port", "7000"])
    ((_, words),) = started
    assert words[words.index("--backend-store-uri") + 1] == "sqlite:////here/mlflow.db"
    assert words[words.index("--port") + 1] == "7000"


def test_plan_tells_states_and_bytes_and_computes_nothing(make_sweep, tmp_path):
    sweep = make_sweep()
    (tmp_path / "small.yaml").write_text(to_yaml(sweep))
    words = ["plan", str(tmp_path / "small.yaml")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "5 (0 tuning, 5 test)" in done.output
    assert "0 finished, 0 partly done, 5 new" in done.output
    assert "unknown" in done.output
    assert not (tmp_path / "runs").exists()
    result = run_sweep(sweep)
    done = CliRunner().invoke(main, words)
    assert "5 finished, 0 partly done, 0 new" in done.output
    total = result.trials["comm/up_bytes"].sum() + result.trials["comm/down_bytes"].sum()
    assert f"{total / 1e6:.1f}" in done.output


def test_plan_tells_which_budgets_admit_no_round_of_a_method(make_sweep, make_config, tmp_path):
    constant = "training.schedule=constant"
    (result,) = run_experiments([make_config(constant, "federation.rounds=1")])
    sent = [result.last.metrics[f"comm/{way}_bytes"] for way in ("up", "down")]
    cost = sum(sent) / 8 / 1e6  # all of the 8 clients take part, with messages of one size
    sweep = make_sweep({"method": AXES["method"]}, constant, budgets=[cost / 2, cost])
    (tmp_path / "small.yaml").write_text(to_yaml(sweep))
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "small.yaml")])
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert f"{cost / 2:g} MB too small for the first round of promptfl ({cost:.4g} MB), " in told
    assert told.count("too small") == 1
    assert "zs (" not in told


def test_plan_knows_what_tuning_came_to(make_sweep, tmp_path):
    sweep = make_sweep(TUNED, "scenario.validation_fraction=0.3", tuning={"trials_per_method": 2})
    (tmp_path / "tuned.yaml").write_text(to_yaml(sweep))
    words = ["plan", str(tmp_path / "tuned.yaml")]
    before = CliRunner().invoke(main, words)
    assert "7 (2 tuning, 5 test)" in before.output
    assert "0 finished, 0 partly done, 5 new" in before.output
    run_sweep(sweep)
    after = CliRunner().invoke(main, words)
    assert "7 (2 tuning, 5 test)" in after.output
    assert "5 finished, 0 partly done, 0 new" in after.output
    (line,) = (line for line in after.output.splitlines() if "time, about" in line)
    assert line.split() == ["time,", "about", "0:00"]


def test_sweep_and_resume_are_commands(make_sweep, tmp_path):
    sweep = make_sweep()
    (tmp_path / "small.yaml").write_text(to_yaml(sweep))
    done = CliRunner().invoke(main, ["sweep", str(tmp_path / "small.yaml"), "seeds=2"])
    assert done.exit_code == 0, done.output
    assert "10/10" in done.output
    for word in ("promptfl", "±", "trials.csv"):
        assert word in done.output
    assert "fedarena ui" not in done.output  # nothing was tracked
    words = ["resume", "sweep", "--folder", str(tmp_path / "runs")]
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0, again.output
    assert "10 trials: 10 reused" in again.output
    assert find_sweep("nothing", tmp_path / "runs") is None


def test_a_mistyped_name_is_told_with_runs_sweeps_and_the_nearest(make_sweep, tmp_path):
    folder = tmp_path / "runs"
    for kept in ("promptfl-0123abcd/config.yaml", "sweeps/methods-4567cdef/sweep.yaml"):
        (folder / kept).parent.mkdir(parents=True)
        (folder / kept).touch()
    for typed, meant in (("methds", "methods"), ("promptfl-0123abce", "promptfl-0123abcd")):
        done = CliRunner().invoke(main, ["resume", typed, "--folder", str(folder)])
        assert done.exit_code == 1
        assert f"holds no run and no sweep. Did you mean '{meant}'?" in done.output
        assert f"Runs in {folder}: promptfl-0123abcd." in done.output
        assert f"Sweeps in {folder}: methods-4567cdef." in done.output


@pytest.mark.parametrize("words", [["show"], ["export"], ["report"], ["runs", "--folder"]])
def test_what_reads_the_disk_says_how_to_bring_what_is_at_a_url(words):
    done = CliRunner().invoke(main, [*words, "s3://bucket/runs"])
    assert done.exit_code == 2
    assert "'s3://bucket/runs' is a URL" in done.output
    assert "fedarena resume" in done.output


def test_a_sweep_that_was_moved_goes_on_where_it_lies(make_sweep, tmp_path):
    sweep = make_sweep()
    run_sweep(sweep)
    here, there = tmp_path / "runs", tmp_path / "elsewhere"
    here.rename(there)
    done = CliRunner().invoke(main, ["resume", "sweep", "--folder", str(there), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "5 trials: 5 reused" in done.output
    assert not here.exists()


def test_trials_that_differ_in_what_is_looked_over_are_each_looked_over(make_sweep):
    axes = {"augmentation.views": [0, 2, 4]}
    survey = Survey()
    views = [survey.experiment(t.config).views for t in Design(make_sweep(axes)).check()]
    assert [len(own) for own in views] == [0, 1, 1]
    assert views[1] != views[2]
    assert len(survey.features()) == 1 + 2


def test_faults_and_names_are_shown_as_they_are_and_not_as_markup(make_sweep, tmp_path):
    trial = Design(make_sweep()).check()[0]
    fault = "pip install 'ray[default]': [/data] is full"
    ended = [Ended(trial, tmp_path / "run", "failed", fault)]
    lost, unsent = {"fedprox [mu]": "nothing"}, {"run": "no [/mirror] there"}
    result = SweepResult(tmp_path, [], ended, {}, lost, unsent)
    with console.capture() as told:
        show_sweep(result)
    shown = " ".join(told.get().split())
    for text in (fault, "of fedprox [mu]: nothing", "no [/mirror] there"):
        assert text in shown
    assert "fedarena ui" not in shown  # nothing was tracked
    tracked = replace(trial.config, tracking=replace(trial.config.tracking, enabled=True))
    ended = [replace(ended[0], trial=replace(trial, config=tracked))]
    with console.capture() as told:
        show_sweep(replace(result, ended=ended))
    assert f"fedarena ui {tmp_path.name}" in told.get()
    with console.capture() as told:
        SweepWatcher().prepare(Progress("features of photos [v2]", 0, 3))
    assert "photos [v2] 0/3" in told.get()


def on_ray(make_sweep, *overrides, **settings):
    ray = ("resources.executor=ray", *overrides)
    return make_sweep(settings.pop("axes", None), *ray, **settings)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_sweep_on_ray_resumes_to_the_bits_of_an_undisturbed_one(make_sweep, tmp_path):
    axes = {
        "method": {"promptfl": {"federation": "fedavg"}, "fedprox": {"federation": "fedprox"}},
        "federation.mu": TUNED["federation.mu"],
    }
    settings = {"tuning": {"trials_per_method": 2}, "seeds": 2}
    swept = on_ray(make_sweep, axes=axes, folder="ray", **settings)
    (tmp_path / "swept.yaml").write_text(to_yaml(swept))
    words = ["sweep", str(tmp_path / "swept.yaml")]
    kill_when(words, lambda line: line.startswith("2/"), tmp_path)
    done = {p.parent: p.stat().st_mtime_ns for p in (tmp_path / "ray").glob("*/DONE")}
    assert 0 < len(done) < 6
    resumed = subprocess.run(
        [*FEDARENA, "resume", "sweep", "--folder", str(tmp_path / "ray")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"{len(done)} reused" in resumed.stdout
    assert not resumed.stderr, resumed.stderr  # neither Ray nor Tune talks
    assert all((run / "DONE").stat().st_mtime_ns == stamp for run, stamp in done.items())
    run_sweep(make_sweep(axes, folder="inline", **settings))
    assert records_of(tmp_path / "ray") == records_of(tmp_path / "inline")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_asha_on_ray_ends_poor_tuning_trials_and_no_test_trial(make_sweep, local_ray):
    rates = {"choice": [1e-7, 30.0, 1e-6, 60.0]}  # two keep what there is, two spoil it
    sweep = on_ray(
        make_sweep,
        "scenario.validation_fraction=0.3",
        "resources.slice.cpus=8",  # all that are pretended: trials come one after the other
        "scenario.num_clients=2",
        "federation.rounds=6",
        "learner=clip_adapter",
        axes={"training.optimizer.lr": rates},
        tuning={"trials_per_method": 4},
        scheduler={"name": "asha", "grace": 3, "reduction": 2},
    )
    result = run_sweep(sweep)
    done = {e.trial.key: len(RunStore(e.run).records()) - 1 for e in result.ended}
    stopped = {e.trial.key for e in result.ended if e.status == "stopped"}
    assert stopped
    assert {e.trial.stage for e in result.ended if e.trial.key in stopped} == {"tuning"}
    assert all(3 <= done[key] < 6 for key in stopped)
    assert all(rounds == 6 for key, rounds in done.items() if key not in stopped)
    assert not result.failed
    assert SweepStore(result.folder).stops() == {key: done[key] for key in stopped}
