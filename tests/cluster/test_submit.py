"""Jobs on a head that is started here: true status, token, stop and go on."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from drivers import FEDARENA

from fl_core.errors import ConfigError, ResourceError
from orchestrator.checkpoint import RunStore
from orchestrator.experiment import run_folder
from orchestrator.loading import load_config, resolve, to_yaml
from orchestrator.results import Result
from orchestrator.run import run_experiments

TOKEN = "of-these-tests-" + "0" * 32


@dataclass
class Head:
    """A head with token authentication. submit, stop: ``fedarena`` as a user would call it."""

    address: str
    env: dict

    def fedarena(self, *words, cwd, **env):
        command = [*FEDARENA, *words, "--address", self.address]
        own = {**os.environ, **self.env, **env}
        return subprocess.run(
            command, cwd=cwd, env=own, capture_output=True, text=True, check=False, timeout=240
        )


def free_ports(num):
    held = [socket.socket() for _ in range(num)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head():
    port, dashboard, agent, agent_grpc, metrics, clients = free_ports(6)
    programs = str(Path(sys.executable).parent)
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
    with tempfile.TemporaryDirectory(prefix="fa", dir="/tmp") as temp:  # sockets have short paths
        command = [f"{programs}/ray", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--temp-dir={temp}", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        command += [f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--metrics-export-port={metrics}", f"--ray-client-server-port={clients}"]
        log = Path(temp) / "head.log"
        with log.open("w") as out:
            started = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 200
            while not listens(dashboard):
                assert started.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            assert started.poll() is None, log.read_text()
            yield Head(f"http://127.0.0.1:{dashboard}", env)
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(30)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def project(make_config, tmp_path):
    """A working folder with ``job.yaml``, whose state is to lie outside of it."""
    folder = tmp_path / "project"
    folder.mkdir()

    def write(*overrides):
        config = make_config("name=job", "resources.executor=ray", *overrides)
        (folder / "job.yaml").write_text(to_yaml(config))
        return config

    write.folder = folder
    return write


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token_is_refused_and_nothing_runs(head, project):
    project()
    done = head.fedarena("submit", "job.yaml", cwd=project.folder, RAY_AUTH_TOKEN="x" * 40)
    assert done.returncode == 1
    assert "refuses the token" in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_job_goes_on_to_the_result_of_an_undisturbed_run(head, project, make_config):
    settings = ("federation.rounds=24", "evaluation.every=12", "training.local_epochs=12")
    config = project(*settings)
    handed = head.fedarena("submit", "job.yaml", "--no-wait", cwd=project.folder)
    assert handed.returncode == 0, handed.stderr
    job = next(word for word in handed.stderr.split() if word.startswith("raysubmit_"))
    store, until = RunStore(run_folder(config)), time.monotonic() + 200
    while len(store.records()) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    stopped = head.fedarena("stop", job, cwd=project.folder)
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in stopped.stderr
    first = store.records()
    assert 3 <= len(first) < 25
    assert store.read_text("DONE") is None

    again = head.fedarena("submit", "job.yaml", cwd=project.folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "SUCCEEDED" in again.stderr
    assert again.stdout.count("round 24") == 1, "a line of the log was lost, or came twice"
    assert [r.time_ms for r in store.records()][: len(first)] == [r.time_ms for r in first]

    whole = make_config(*settings, "name=whole")
    run_experiments([whole])
    ours, theirs = Result.load(run_folder(config)), Result.load(run_folder(whole))
    assert torch.equal(ours.parameters["context"], theirs.parameters["context"])


@pytest.mark.ray
@pytest.mark.slow
def test_the_status_of_a_command_that_fails_comes_back(head, project):
    project("scenario.dataset=/not/on/this/cluster")
    done = head.fedarena("submit", "job.yaml", cwd=project.folder)
    assert done.returncode == 1
    assert "FAILED" in done.stderr
    assert "every node must have /not/on/this/cluster" in done.stderr
    assert "/not/on/this/cluster" in done.stdout, "the log says why"


# -- without a cluster ---------------------------------------------------------------------------


def prepared(*words, folder, state="/shared/fedarena", files=("job.yaml",)):
    from orchestrator.submit.submission import prepare_submission

    return prepare_submission([folder / file for file in files], words, folder, state)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.yaml").write_text("name: job\n")
    return tmp_path


def test_a_file_that_is_a_sweep_becomes_a_sweep(folder):
    (folder / "grid.yaml").write_text("base: job.yaml\nseeds: 2\n")
    run = prepared("seed=3", folder=folder).request.entrypoint.split()
    assert run[:3] == ["fedarena", "run", "job.yaml"]
    assert run[-1] == "seed=3"
    sweep = prepared(folder=folder, files=("grid.yaml",)).request.entrypoint.split()
    assert sweep[:3] == ["fedarena", "sweep", "grid.yaml"]
    with pytest.raises(ConfigError, match="submit it alone"):
        prepared(folder=folder, files=("grid.yaml", "job.yaml"))


def test_relative_state_is_put_under_the_given_folder_and_absolute_state_stays(folder):
    uri = "http://mlflow:5000"
    words = prepared("store=/big/store", f"tracking.uri={uri}", folder=folder).request.entrypoint
    assert "folder=/shared/fedarena/runs" in words
    assert "store=/shared" not in words
    assert "mlflow.db" not in words
    everything = prepared(folder=folder).request.entrypoint
    job = [word for word in everything.split() if "=" in word]
    config = resolve(load_config(folder / "job.yaml", job))
    assert str(config.folder) == "/shared/fedarena/runs"
    assert str(config.store) == "/shared/fedarena/store"
    assert config.tracking.uri == "sqlite:////shared/fedarena/mlflow.db"


def test_a_state_at_a_url_has_a_copy_on_every_node_and_needs_a_tracking_server(folder):
    server = "tracking.uri=http://mlflow:5000"
    request = prepared(server, folder=folder, state="s3://bucket/lab/").request
    words = [w for w in shlex.split(request.entrypoint) if "=" in w]
    config = resolve(load_config(folder / "job.yaml", words))
    assert config.mirror == "s3://bucket/lab/runs"
    assert config.shared_store == "s3://bucket/lab/store"
    assert config.folder == Path("~/.cache/fedarena/runs").expanduser()
    assert config.store == Path("~/.cache/fedarena/store").expanduser()
    with pytest.raises(ConfigError, match="no database can lie at s3://bucket/lab"):
        prepared(folder=folder, state="s3://bucket/lab")
    with pytest.raises(ConfigError, match=r"--state = .* holds credentials"):
        prepared(server, folder=folder, state="s3://key:secret@bucket/lab")
    with pytest.raises(ConfigError, match=r"--state = 'lab' is relative"):
        prepared(server, folder=folder, state="lab")


def test_a_folder_that_may_be_lost_may_be_relative(folder):
    urls = ("mirror=s3://bucket/runs", "shared_store=s3://bucket/store", "tracking.enabled=false")
    entrypoint = prepared(*urls, folder=folder, state=None).request.entrypoint
    assert "folder=" not in entrypoint


def test_everything_that_would_be_lost_or_missing_is_told_at_once(folder):
    with pytest.raises(ConfigError) as error:
        prepared("scenario.dataset=pictures/mine", folder=folder, state=None)
    told = "\n".join(error.value.faults)
    assert len(error.value.faults) == 4
    for word in ("folder = runs is relative", "store", "tracking.uri", "--state FOLDER"):
        assert word in told
    assert "scenario.dataset = pictures/mine does not exist in the working folder" in told


def test_data_in_the_working_folder_travel_unless_something_leaves_them_out(folder):
    (folder / "pictures").mkdir()
    prepared("scenario.dataset=./pictures", folder=folder)
    (folder / "runs" / "pictures").mkdir(parents=True)
    with pytest.raises(ConfigError, match="/runs/ is left out of every upload"):
        prepared("scenario.dataset=runs/pictures", folder=folder)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / ".gitignore").write_text("pictures/\n")
    with pytest.raises(ConfigError, match=r"a \.gitignore names it"):
        prepared("scenario.dataset=./pictures", folder=folder)


def test_a_file_outside_of_the_working_folder_is_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "other.yaml").write_text("name: other\n")
    with pytest.raises(ConfigError, match=r"other\.yaml is not in the working folder"):
        prepared(folder=folder, files=(elsewhere / "other.yaml",))


def test_the_plain_line_holds_the_same_job(folder):
    request = prepared("resources.threads=3", folder=folder).request
    words = shlex.split(request.plain_command("http://head:8265"))
    assert words[:4] == ["RAY_AUTH_MODE=token", "ray", "job", "submit"]
    environment = json.loads(words[words.index("--runtime-env-json") + 1])
    assert environment["env_vars"] == {"OMP_NUM_THREADS": "3"}
    assert "/runs/" in environment["excludes"]
    assert shlex.join(words[words.index("--") + 1 :]) == request.entrypoint


def test_an_address_where_nothing_listens_says_how_to_start_a_head():
    from cluster.submit import Jobs, checked_address

    (port,) = free_ports(1)
    with pytest.raises(ResourceError, match=r"no Ray head answers .*ray start --head"):
        Jobs(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="http://head:8265"):
        checked_address("ray://head:10001")
