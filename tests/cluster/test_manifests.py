"""The shipped manifests: they parse, obey their schemas, and have the token on."""

import json
import subprocess
from copy import deepcopy
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from orchestrator.sweep.design import Design
from orchestrator.sweep.loading import load_sweep

FOLDER = Path(__file__).parents[2] / "cluster" / "manifests"


def closed(required, **properties):
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
PARAMS = {"type": "object", "additionalProperties": TEXT}  # numbers must be quoted here
TEMPLATE = {"type": "object"}  # a pod, for which Kubernetes has a schema of its own
WORKERS = closed(
    ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=PARAMS,
    template=TEMPLATE,
)
RAY_CLUSTER = closed(
    ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=closed(["mode"], mode={"const": "token"}),
    headGroupSpec=closed(["rayStartParams", "template"], rayStartParams=PARAMS, template=TEMPLATE),
    workerGroupSpecs={"type": "array", "items": WORKERS, "minItems": 1},
)
RAY_JOB = closed(
    ["entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"],
    entrypoint=TEXT,
    shutdownAfterJobFinishes={"const": True},
    ttlSecondsAfterFinished=NUMBER,
    backoffLimit=NUMBER,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=RAY_CLUSTER,
)
"""The fields of ray.io/v1 that are used, as KubeRay's API reference has them."""

KUBERNETES = "1.33"


@pytest.fixture(scope="module")
def kube():
    documents = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
    return {document["kind"]: document for document in documents}


def templates(kube):
    cluster = kube["RayJob"]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def pods(kube):
    return [template["spec"] for template in templates(kube)]


def test_the_kuberay_job_obeys_its_schema(kube):
    assert set(kube) == {"PersistentVolumeClaim", "ConfigMap", "RayJob"}
    assert kube["RayJob"]["apiVersion"] == "ray.io/v1"
    jsonschema.validate(kube["RayJob"]["spec"], RAY_JOB)
    wrong = deepcopy(kube["RayJob"]["spec"])
    wrong["rayClusterSpec"]["authOptions"]["mode"] = "disabled"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_JOB)


def test_claim_config_and_pods_obey_the_schemas_of_kubernetes(kube):
    head, *workers = templates(kube)
    whole = [kube["PersistentVolumeClaim"], kube["ConfigMap"], as_pod(head), *map(as_pod, workers)]
    for document in whole:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    wrong = deepcopy(head)
    wrong["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(as_pod(wrong), KUBERNETES, strict=True)


def as_pod(template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fedarena"}, **template}


def test_every_pod_has_the_state_and_memory_for_the_object_store(kube):
    claim = kube["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(kube):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        state = volumes[mounts["/state"]]["persistentVolumeClaim"]["claimName"]
        assert state == claim["metadata"]["name"]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/config"]]["configMap"]["name"] == "fedarena-config"


def test_the_command_of_the_kuberay_job_is_one_that_runs(kube, tmp_path):
    program, kind, file, *settings = kube["RayJob"]["spec"]["entrypoint"].split()
    assert (program, kind) == ("fedarena", "sweep")
    (tmp_path / "sweep.yaml").write_text(kube["ConfigMap"]["data"][Path(file).name])
    for trial in Design(load_sweep(tmp_path / "sweep.yaml", settings)).check():
        assert str(trial.config.folder).startswith("/state/")
        assert str(trial.config.store).startswith("/state/")
        assert trial.config.tracking.uri == "sqlite:////state/mlflow.db"


def test_versions_in_the_manifests_are_those_of_the_constraints(kube):
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text()
    version = kube["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version}\n" in constraints
    assert f"rayproject/ray:{version}-" in (FOLDER / "Dockerfile").read_text()


def test_the_cluster_of_ray_up_obeys_rays_own_schema():
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "head_start": []}, schema)


def test_every_ray_start_of_ray_up_has_the_token_and_no_command_holds_it():
    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    kinds = ("head_start_ray_commands", "worker_start_ray_commands")
    commands = [line for kind in kinds for line in config[kind] if "ray start" in line]
    assert len(commands) == 2
    for line in commands:
        words = line.split()
        assert "RAY_AUTH_MODE=token" in words
        (place,) = (w.partition("=")[2] for w in words if w.startswith("RAY_AUTH_TOKEN_PATH="))
        assert place in config["file_mounts"]
        assert not any(word.startswith("RAY_AUTH_TOKEN=") for word in words)
    assert "--dashboard-host=127.0.0.1" in commands[0]


# -- Slurm, with stand-ins for Slurm's and Ray's programs -----------------------------------------

SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
RAY = """#!/bin/bash
echo "$RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c <"$RAY_AUTH_TOKEN_PATH")" >seen
echo "$@" >>seen
[[ -n "${NO_HEAD:-}" ]] && exit 0
while [[ "$1" != -- ]]; do shift; done
shift
exec "$@"
"""
FEDARENA = """#!/bin/bash
echo "$RAY_ADDRESS $*" >called
exit "${CODE:-0}"
"""


@pytest.fixture
def slurm(tmp_path):
    programs = {
        "srun": SRUN,
        "ray": RAY,
        "fedarena": FEDARENA,
        "scontrol": "#!/bin/bash\nprintf 'n1\\nn2\\n'\n",
        "hostname": "#!/bin/bash\necho 10.0.0.7 fe80::1\n",
        "python": '#!/bin/bash\nprintf "%064d" 7\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*words, **env):
        told = {"SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", str(FOLDER / "slurm.sh"), *words],
            cwd=tmp_path,
            env={"PATH": path, **told, **env},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def test_the_slurm_script_is_bash_and_has_the_nodes_for_itself():
    text = (FOLDER / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    assert "\n#SBATCH --exclusive\n" in text


def test_the_slurm_script_hands_on_address_settings_token_and_status(slurm, tmp_path):
    done = slurm("sweep", "my grid.yaml", "seeds=[1, 2]")
    assert done.returncode == 0, done.stderr
    mode, line = (tmp_path / "seen").read_text().splitlines()
    assert mode.split() == ["token", "600", "64"]
    assert "--address 10.0.0.7:20041 --min-nodes 2" in line
    assert (tmp_path / "called").read_text() == "10.0.0.7:20041 sweep my grid.yaml seeds=[1, 2]\n"
    assert slurm("run", "a.yaml", CODE="3").returncode == 3
    assert list(tmp_path.glob(".fedarena-*")) == [], "the token is gone"


def test_the_slurm_script_fails_where_no_head_comes_up(slurm):
    done = slurm("run", "a.yaml", NO_HEAD="1")
    assert done.returncode == 1
    assert "did not come up" in done.stderr
    assert slurm("lose", "a.yaml").returncode == 2
