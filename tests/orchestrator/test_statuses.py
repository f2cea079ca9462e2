"""What MLflow says of runs and sweeps that were stopped or have failed, and what they let go."""

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing

import pytest
from click.testing import CliRunner
from drivers import FEDARENA

from orchestrator.checkpoint import RunStore
from orchestrator.cli import main
from orchestrator.events import Committed
from orchestrator.experiment import run_folder
from orchestrator.loading import to_dict, to_yaml
from orchestrator.mlflow_access import connect
from orchestrator.run import run_experiments
from orchestrator.sweep.design import Design
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.run import run_sweep
from orchestrator.sweep.state import SweepStore, sweep_folder
from orchestrator.sweep.state import to_yaml as sweep_yaml
from orchestrator.sweep.tracking import SweepTracker

NOBODY = "communication.max_update_norm=1e-9"
"""Every update is refused, so that the first round fails."""
STOPS = [KeyboardInterrupt, SystemExit]  # the latter is what SIGTERM becomes


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """A database as MLflow makes it, which takes seconds: tests copy it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}", "fedarena")
    return path


@pytest.fixture
def database(tmp_path, empty_database):
    return shutil.copyfile(empty_database, tmp_path / "mlflow.db")


@pytest.fixture
def tracked(make_config, database):
    def make(*overrides):
        uri = f"tracking.uri=sqlite:///{database}"
        return make_config("tracking.enabled=true", uri, *overrides)

    return make


@pytest.fixture
def make_sweep(tracked):
    def make(*overrides):
        base = to_dict(tracked(*overrides)) | {"name": None}
        axes = {"federation": ["fedavg", "fedprox"]}
        return load_sweep({"name": "pair", "base": base, "axes": axes})

    return make


def statuses(database):
    """By the name of the run."""
    with closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute("SELECT name, status FROM runs").fetchall())


class Stopping:
    """An audience in which somebody stops the sweep once a run of a rule goes on."""

    def __init__(self, stop, rule):
        self.stop, self.rule = stop, rule

    def expect(self, total):
        pass

    def prepare(self, progress):
        pass

    def progress(self, trial, state):
        if self.rule in trial.name and state.get("round"):
            raise self.stop

    def end(self, trial, status, result):
        pass


# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS, ids=["ctrl-c", "sigterm"])
def test_a_run_that_is_stopped_is_killed_and_finished_once_it_is_resumed(tracked, database, stop):
    config = tracked("name=stopped")

    def listen(config, event):
        if isinstance(event, Committed) and event.record.round == 1:
            raise stop

    with pytest.raises(stop):
        run_experiments([config], listen=listen)
    assert statuses(database) == {"stopped": "KILLED"}
    run_experiments([config])
    assert statuses(database) == {"stopped": "FINISHED"}


def test_a_run_that_fails_is_failed_and_the_command_says_why(tracked, database, tmp_path):
    (tmp_path / "fails.yaml").write_text(to_yaml(tracked("name=fails", NOBODY)))
    done = CliRunner().invoke(main, ["run", str(tmp_path / "fails.yaml"), "--quiet"])
    assert done.exit_code == 1
    assert "every client of the cohort failed" in done.output
    assert statuses(database) == {"fails": "FAILED"}


def test_a_run_whose_exports_fail_is_no_run_that_goes_on(tracked, database):
    config = tracked("name=unexported")

    def spoil(config, event):
        if isinstance(event, Committed) and event.record.round == config.federation.rounds - 1:
            (run_folder(config) / "clients.csv").mkdir()  # where a table is to be written

    with pytest.raises(OSError, match=r"clients\.csv"):
        run_experiments([config], listen=spoil)
    assert statuses(database) == {"unexported": "FAILED"}


@pytest.mark.slow
def test_sigterm_ends_a_run_in_this_process_as_killed(tracked, database, tmp_path):
    config = tracked("name=termed", "federation.rounds=100000", "evaluation.every=0")
    (tmp_path / "termed.yaml").write_text(to_yaml(config))
    words = [*FEDARENA, "run", str(tmp_path / "termed.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, cwd=tmp_path, **pipes)
    for line in process.stdout:
        if "round 0" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"go on with: fedarena resume {run_folder(config).name}\n" in told
    assert statuses(database) == {"termed": "KILLED"}
    with RunStore(run_folder(config)).lock(wait_s=0.2):
        pass


def test_a_command_leaves_the_signals_of_its_process_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    CliRunner().invoke(main, ["list", "codecs"])
    assert signal.getsignal(signal.SIGTERM) is before
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(CliRunner().invoke(main, ["list", "codecs"]).exit_code)
    )
    thread.start()
    thread.join()
    assert codes == [0]


# -- sweeps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS, ids=["ctrl-c", "sigterm"])
def test_a_sweep_that_is_stopped_is_killed_and_lets_go_of_its_trial(make_sweep, database, stop):
    sweep = make_sweep("federation.rounds=100000", "evaluation.every=0")
    with pytest.raises(stop) as caught:
        run_sweep(sweep, audience=Stopping(stop, "fedavg"))
    assert caught.tb is not None  # it holds the frames, and they hold nothing of the run
    trial = Design(sweep).check()[0]
    with RunStore(trial.config.folder / trial.key).lock(wait_s=0.2):
        pass
    assert statuses(database) == {"pair": "KILLED", trial.name: "KILLED"}


def test_a_sweep_that_is_stopped_says_how_to_go_on(make_sweep, tmp_path):
    sweep = make_sweep("federation.rounds=100000", "evaluation.every=0")
    (tmp_path / "pair.yaml").write_text(sweep_yaml(sweep))
    (trial, _) = Design(sweep).check()

    def stop():
        rounds = trial.config.folder / trial.key / "rounds"
        while not list(rounds.glob("*.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    done = CliRunner().invoke(main, ["sweep", str(tmp_path / "pair.yaml"), "--quiet"])
    assert done.exit_code == 128 + signal.SIGTERM
    assert "go on with: fedarena resume pair" in done.output


def test_a_sweep_that_breaks_off_by_an_error_is_failed(make_sweep, database):
    stop = RuntimeError("the screen is gone")
    with pytest.raises(RuntimeError, match="the screen is gone"):
        run_sweep(
            make_sweep("federation.rounds=100000", "evaluation.every=0"),
            audience=Stopping(stop, "fedavg"),
        )
    assert statuses(database)["pair"] == "FAILED"


def test_a_sweep_with_a_trial_that_fails_is_failed_and_the_others_are_finished(
    make_sweep, database
):
    sweep = make_sweep()
    broken, sound = Design(sweep).check()
    rounds = broken.config.folder / broken.key / "rounds"
    rounds.mkdir(parents=True)
    (rounds / "000000.json").write_text("{")
    result = run_sweep(sweep)
    assert [ended.trial.key for ended in result.failed] == [broken.key]
    found = statuses(database)
    assert (found["pair"], found[sound.name]) == ("FAILED", "FINISHED")
    assert found[broken.name] == "FAILED"


def test_a_sweep_whose_end_mlflow_was_not_told_says_so(make_sweep, database, caplog):
    sweep = make_sweep()
    design = Design(sweep)
    store = SweepStore(sweep_folder(design, design.check()))
    store.write_sweep(sweep)
    tracker = SweepTracker(f"sqlite:///{database}", "fedarena", store, design)
    until = threading.Event()
    for _ in range(600):
        if statuses(database):
            break
        until.wait(0.1)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("ALTER TABLE runs RENAME TO away")
    assert not tracker.close("FINISHED", timeout_s=90)
    assert f"does not have all of sweep {store.folder.name}" in caplog.text
