"""Config: YAML and overrides to frozen dataclasses, all faults at once, hash, round trip."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.backbones.language import LanguageModel
from fl_core.errors import ConfigError
from fl_core.federation import FEDERATIONS, FedAvg, FedProx
from fl_core.learners import LEARNERS, CoOp, ZeroShot
from fl_core.learners.text_learner import TextLearner
from fl_core.optim import SGD, AdamW
from fl_core.work import Training
from orchestrator.config import ExperimentConfig, Resources, Tracking
from orchestrator.loading import (
    check,
    config_hash,
    difference,
    flat,
    load_config,
    resolve,
    to_dict,
    to_yaml,
)
from orchestrator.schema import slots, tag_of

HOSTILE_TEXTS = ["1e-3", "010", "0o7", "no", "null", "~", "", "true", "a: b", "# x", "<<", "ü\n'"]
BAD_NAMES = ["../x", "a/b", "", ".x", "-x", "a..b", "a b", "ä", "x" * 101]


def faults_of(source: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return caught.value.faults


def only_fault(source: Any, *overrides: str) -> str:
    (fault,) = faults_of(source, *overrides)
    return fault


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def in_another_process(code: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, env=env, text=True).strip()


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "training:\nlearner:\n"])
def test_what_is_not_said_has_its_default(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == ExperimentConfig()


def test_a_file_is_read_and_overrides_win_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 3\nfederation: {name: fedprox, rounds: 7}\nfolder: out\n")
    config = load_config(path, ["federation.mu=0.5", "seed=1", "seed=2"])
    assert config.federation == FedProx(rounds=7, mu=0.5)
    assert (config.seed, config.folder) == (2, Path("out"))
    assert load_config(str(path)).seed == 3


@pytest.mark.parametrize(
    ("text", "lr"), [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("2", 2.0), ("1.", 1.0)]
)
def test_numbers_are_those_of_yaml_1_2(text: str, lr: float) -> None:
    config = load_config({}, [f"training.optimizer.lr={text}", "seed=010"])
    assert isinstance(config.training.optimizer.lr, float)
    assert (config.training.optimizer.lr, config.seed) == (lr, 10)


def test_words_that_yaml_1_1_takes_for_booleans_stay_words() -> None:
    assert load_config({}, ["scenario.dataset=no"]).scenario.dataset == "no"
    assert "true or false" in only_fault({}, "tracking.enabled=off")


def test_a_plain_string_is_the_name_of_a_type(tmp_path: Path) -> None:
    path = written(tmp_path, "learner: zero_shot\ntraining: {optimizer: adamw}\n")
    config = load_config(path, ["training.optimizer.lr=0.1", "learner.ensemble=true"])
    assert config.learner == ZeroShot(ensemble=True)
    assert config.training.optimizer == AdamW(lr=0.1)


def test_without_a_name_a_section_has_the_type_of_its_default() -> None:
    config = load_config({"learner": {"num_tokens": 4}, "training": {"optimizer": {"lr": 1}}})
    assert config.learner == CoOp(num_tokens=4)
    assert config.training.optimizer == SGD(lr=1.0)


@pytest.mark.parametrize("override", ["federation=fedavg", "federation.name=fedavg"])
def test_another_type_keeps_what_it_also_has_and_drops_the_rest(override: str) -> None:
    source = {"federation": {"name": "fedprox", "mu": 0.5, "rounds": 3}}
    assert load_config(source, [override]).federation == FedAvg(rounds=3)


def test_a_mapping_as_override_replaces_the_section() -> None:
    source = {"federation": {"rounds": 3, "weights": "uniform"}}
    config = load_config(source, ["federation={name: fedprox, rounds: 5}"])
    assert config.federation == FedProx(rounds=5)


def test_another_type_does_not_hide_a_misspelt_setting() -> None:
    fault = only_fault({"federation": {"name": "fedprox", "round": 3}}, "federation=fedavg")
    assert fault.startswith("federation.round is not a setting of fedavg. Did you mean 'rounds'")


def test_sources_are_not_changed_and_aliases_are_not_shared(tmp_path: Path) -> None:
    source = {"federation": {"rounds": 3}}
    load_config(source, ["federation.rounds=4"])
    assert source == {"federation": {"rounds": 3}}
    path = written(tmp_path, "training: &a {}\nscenario: *a\n")
    assert load_config(path, ["scenario.shots=4"]).scenario.shots == 4


def test_a_mapping_may_hold_paths_and_ready_made_parts(tmp_path: Path) -> None:
    config = load_config({"learner": CoOp(num_tokens=2), "folder": tmp_path})
    assert config.learner == CoOp(num_tokens=2)
    assert config.folder == tmp_path


def test_a_mapping_may_hold_numbers_of_numpy() -> None:
    config = load_config({"seed": np.arange(4)[3], "training": {"local_steps": np.int32(2)}})
    assert (config.seed, config.training.local_steps) == (3, 2)
    assert type(config.seed) is int
    with pytest.raises(ConfigError, match="seed = True"):
        load_config({"seed": True})


# -- faults --------------------------------------------------------------------------------------


def test_every_fault_is_told_at_once_with_its_path_and_file(tmp_path: Path) -> None:
    text = """
lerner: coop
seed: "3"
training: {optimizer: {lr: -1, momentum: 7, weight_decay: a}, batch_size: 0, schedule: cosin}
resources: {slice: {cpus: 0, gpus: 0}, threads: true}
scenario: {partition: dirichle, num_clients: 0}
"""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["federation.mu=1"])
    starts = {
        "lerner is not a setting. Did you mean 'learner'",
        "seed = '3' (text) is not allowed: it must be a whole number.",
        "training.optimizer.lr = -1.0 is not allowed: it must be > 0.",
        "training.optimizer.momentum = 7.0 is not allowed: it must be from 0 to below 1.",
        "training.optimizer.weight_decay = 'a' (text) is not allowed: it must be a number.",
        "training.batch_size = 0 is not allowed: it must be >= 1.",
        "training.schedule = 'cosin' (text) is not allowed: it must be one of cosine, linear, "
        "constant. Did you mean 'cosine'?",
        "resources.slice: a slice needs cpus or gpus above 0.",
        "resources.threads = True (true or false) is not allowed: it must be a whole number.",
        "scenario.partition = 'dirichle' is not known. Did you mean 'dirichlet'",
        "scenario.num_clients = 0 is not allowed: it must be >= 1.",
        "federation.mu is not a setting of fedavg. It is a setting of fedprox",
    }
    faults = caught.value.faults
    assert len(faults) == len(starts)
    assert all(any(fault.startswith(start) for fault in faults) for start in starts)
    assert str(caught.value).startswith(f"{path} with federation.mu=1: 12 faults.\n")
    assert all(fault in str(caught.value) for fault in faults)
    assert pickle.loads(pickle.dumps(caught.value)).faults == faults  # noqa: S301


def test_an_unknown_type_is_answered_with_all_known_ones() -> None:
    known = {tag_of(kind) for kind in LEARNERS}
    fault = only_fault({"learner": "ko-op"})
    assert fault.startswith("learner = 'ko-op' is not known. Did you mean ")
    assert "'coop'" in fault
    assert set(fault.split("Known: ")[1].rstrip(".").split(", ")) == known
    assert "centralised, " in only_fault({"federation": {"name": 3}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1.0", "seed = 1.0 (a number)"),
        ("seed=true", "seed = True (true or false)"),
        ("seed=null", "seed = None (null)"),
        ("seed.x=1", "seed = {'x': 1} (a mapping)"),
        ("seed=2026-01-01", "seed = '2026-01-01' (text)"),
        ("seed=!!timestamp 2026-01-01", "seed = datetime.date(2026, 1, 1) (date)"),
        ("training.optimizer.lr=.nan", "training.optimizer.lr = nan is not allowed"),
        ("training.local_steps=few", "it must be a whole number or null."),
        ("resources.clients_per_actor=many", "it must be a whole number or auto."),
        ("training=3", "training = 3 (a whole number) is not allowed: it must be a mapping."),
        ("learner=[coop]", "it must be one of zero_shot, coop, "),
    ],
)
def test_a_wrong_type_is_told_with_value_type_and_what_is_allowed(override: str, said: str) -> None:
    assert said in only_fault({}, override)


def test_a_value_out_of_bounds_in_a_nested_type_has_its_whole_path() -> None:
    fault = only_fault({}, "scenario.partition.alpha=1e9")
    assert fault.startswith("scenario.partition.alpha = 1000000000.0 is not allowed")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "'seed' is not an override. Write path=value"),
        ("=3", "is not an override"),
        ("training..lr=3", "is not an override"),
        ("learner=[1", "learner = '[1' cannot be read"),
        ("trainig.lr=3", "trainig is not a setting. Did you mean 'training'"),
        ("training.lr=3", "training.lr is not a setting. There is training.optimizer.lr. Known:"),
        ("rounds=3", "rounds is not a setting. There is federation.rounds. Known:"),
        (
            "alpha=3",
            "alpha is not a setting. There is federation.alpha and learner.alpha and "
            "scenario.partition.alpha.",
        ),
    ],
)
def test_an_override_that_cannot_be_read_is_a_fault_among_others(override: str, said: str) -> None:
    faults = faults_of({"seed": "x"}, override)
    assert len(faults) == 2
    assert any(said in fault for fault in faults)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 1\nlearner: {name: coop\nfoo: 2\n", "line 3, column 4: expected ',' or '}'"),
        ("seed: 1\ntraining:\n  a: 1\n  a: 2\n", "line 4, column 3: the key 'a' is there twice"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is there twice (first in line 1)"),
        ("a: *b\n", "line 1, column 4: found undefined alias"),
        ("a: !!python/object:os.system {}\n", "line 1, column 4: could not determine"),
    ],
)
def test_broken_yaml_is_told_with_file_line_and_column(
    tmp_path: Path, text: str, place: str
) -> None:
    path = written(tmp_path, text)
    assert only_fault(path).startswith(f"{path}, {place}")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    written(tmp_path, "")
    assert "Did you mean 'experiment.yaml'" in only_fault(tmp_path / "experimnt.yaml")
    assert "cannot be read" in only_fault(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4")
    assert "cannot be read" in only_fault(tmp_path / "latin.yaml")
    (tmp_path / "control.yaml").write_bytes(b"name: \x07")
    assert "is not YAML" in only_fault(tmp_path / "control.yaml")
    assert "must be a mapping" in only_fault(written(tmp_path, "- 1\n"))
    assert "seed" in only_fault(written(tmp_path, "seed: &a [*a]\n"))


# -- between settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learner=zero_shot", "federation=fedprox"], "learner=zero_shot trains nothing"),
        (["federation.clients_per_round=11"], "at most scenario.num_clients = 10"),
        (["resources.clients_per_actor=1", "resources.group_size=4"], "must be auto or 1"),
        (["tracking.experiment=' '"], "tracking.experiment is not allowed to be empty"),
        *(([f"name='{name}'"], "names a folder") for name in BAD_NAMES),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], said: str) -> None:
    assert said in only_fault({}, *overrides)


def test_faults_between_settings_come_with_the_others_but_not_because_of_them() -> None:
    faults = faults_of({}, "federation.clients_per_round=11", "seed=x")
    assert [fault.split(" ")[0] for fault in faults] == ["seed", "federation.clients_per_round"]
    faults = faults_of({}, "federation.clients_per_round=11", "scenario.num_clients=x")
    assert [fault.split(" ")[0] for fault in faults] == ["scenario.num_clients"]


def test_check_finds_no_fault_in_the_default() -> None:
    assert check(ExperimentConfig()) == []


# -- resolving -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], 3),
        (["scenario.num_clients=1"], 1),
        (["scenario.num_clients=1000"], 16),
        (["scenario.num_clients=1000", "federation.clients_per_round=20"], 5),
        (["resources.group_size=7"], 7),
        (["resources.clients_per_actor=1"], 1),
        (["resources.clients_per_actor=5"], 3),
        (["federation=centralised"], 1),
    ],
)
def test_an_automatic_group_is_a_quarter_of_the_cohort(overrides: list[str], size: int) -> None:
    config = load_config({}, overrides)
    assert resolve(config).resources.group_size == size
    assert config_hash(resolve(config)) == config_hash(config)


def test_a_resolved_config_leaves_nothing_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve(load_config({}, ["seed=3", "federation=fedprox"]))
    assert config.name == "coop-fedprox-s3"
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (config.folder, config.store) == (tmp_path / "runs", tmp_path / "fedarena-store")
    monkeypatch.chdir("/")
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///x/y.db", "sqlite:///{here}/x/y.db"),
        ("sqlite:////abs/y.db", "sqlite:////abs/y.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_a_relative_database_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(name="mine", tracking=Tracking(uri=uri))
    assert resolve(config).tracking.uri == absolute.format(here=tmp_path)
    assert resolve(config).name == "mine"


def test_a_config_made_in_python_is_checked_when_it_is_resolved() -> None:
    with pytest.raises(ConfigError, match="names a folder"):
        resolve(ExperimentConfig(name="../x"))
    wrong: Any = "3"
    with pytest.raises(ConfigError, match="seed = '3'"):
        resolve(ExperimentConfig(seed=wrong))


# -- hash, differences, params -------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.optimizer.lr=0.002", "learner.name=coop", "federation.rounds=10"],
        ["name=x", "folder=/x", "store=/y", "tracking.enabled=false", "tracking.experiment=z"],
        ["resources.executor=inline", "resources.clients_per_actor=2", "resources.slice.gpus=1"],
        ["resources.group_size=3"],
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_hash(overrides: list[str]) -> None:
    assert config_hash(load_config({}, overrides)) == config_hash(ExperimentConfig())


@pytest.mark.parametrize(
    "override",
    ["seed=1", "scenario.seed=1", "learner.num_tokens=4", "learner=zero_shot", "federation=fedprox",
     "federation.rounds=11", "resources.group_size=2", "resources.threads=2", "evaluation.every=2",
     "resources.clients_per_actor=1", "communication.codec=fp16", "training.optimizer=adamw"],
)  # fmt: skip
def test_what_can_change_a_result_changes_the_hash(override: str) -> None:
    assert config_hash(load_config({}, [override])) != config_hash(ExperimentConfig())


def test_the_hash_is_the_same_in_every_process_and_order_of_keys() -> None:
    items = [("seed", 1), ("learner", {"num_tokens": 4, "name": "coop"}), ("training", {})]
    items.append(("training", {"optimizer": {"momentum": 0, "lr": 1}}))
    expected = config_hash(load_config(dict(items)))
    turned = {"training": {"optimizer": {"lr": 1.0, "momentum": 0.0}}, **dict(items[:2][::-1])}
    code = (
        "from orchestrator.loading import config_hash, load_config\n"
        f"print(config_hash(load_config({turned!r})))"
    )
    assert in_another_process(code) == expected
    assert len(expected) == 16
    assert int(expected, 16)


def test_a_whole_number_for_a_float_set_in_python_has_the_hash_of_the_float() -> None:
    with_int = ExperimentConfig(federation=FedProx(mu=1))
    assert config_hash(with_int) == config_hash(ExperimentConfig(federation=FedProx(mu=1.0)))


def test_a_difference_names_what_changed_and_only_what_matters() -> None:
    old = load_config({}, ["federation=fedprox", "folder=/old"])
    new = load_config({}, ["federation.rounds=20", "folder=/new", "training.optimizer.lr=0.1"])
    assert difference(old, new) == [
        'federation.name: "fedprox" -> "fedavg"',
        "federation.rounds: 10 -> 20",
        "federation.mu: 0.01 -> (none)",
        "training.optimizer.lr: 0.002 -> 0.1",
    ]
    assert difference(old, replace(old, name="other", resources=Resources(retries=3))) == []


def test_params_are_flat_short_and_without_places() -> None:
    params = flat(resolve(load_config({}, ["learner.num_tokens=4", "federation=fedprox"])))
    assert params["learner"] == "coop"
    assert params["learner.num_tokens"] == 4
    assert params["training.optimizer"] == "sgd"
    assert params["federation.mu"] == 0.01
    assert params["resources.group_size"] == 3
    absent = {"name", "folder", "store", "tracking.uri", "scenario.shots", "learner.name"}
    assert absent.isdisjoint(params)
    assert all(isinstance(value, str | int | float) for value in params.values())


# -- round trip, and the schema ------------------------------------------------------------------


def every_config() -> Iterator[ExperimentConfig]:
    for learner in LEARNERS:
        texts = {"backbone": LanguageModel()} if issubclass(learner, TextLearner) else {}
        yield ExperimentConfig(learner=learner(), **texts)
    plain = Training(SGD(momentum=0.0), schedule="constant")  # what every rule allows
    for rule in (kind(rounds=3) for kind in FEDERATIONS):
        every = (k() for k in LEARNERS if not issubclass(k, ZeroShot | TextLearner))
        learner = next(learner for learner in every if not rule.faults(learner, plain))
        yield resolve(ExperimentConfig(learner=learner, federation=rule, training=plain))
    yield load_config({}, ["training.optimizer.lr=1e-7", "training.optimizer.weight_decay=1e22"])
    for text in HOSTILE_TEXTS:
        yield ExperimentConfig(learner=CoOp(init_text=text))


@pytest.mark.parametrize("config", list(every_config()), ids=lambda c: config_hash(c)[:6])
def test_a_config_comes_back_from_its_yaml(tmp_path: Path, config: ExperimentConfig) -> None:
    assert load_config(written(tmp_path, to_yaml(config))) == config
    assert load_config(to_dict(config)) == config


def reachable(kind: type) -> Iterator[type]:
    yield kind
    for slot in slots(kind).values():
        for part in slot.kinds:
            yield from reachable(part)


def test_every_dataclass_of_the_config_forbids_unknown_keys() -> None:
    kinds: Sequence[Any] = list(reachable(ExperimentConfig))
    assert {CoOp, ZeroShot, SGD, AdamW, Resources, *FEDERATIONS} <= set(kinds)
    for kind in kinds:
        assert kind.__pydantic_config__ == {"extra": "forbid"}, kind
        assert kind.__dataclass_params__.frozen, kind


def test_loading_brings_in_neither_ray_nor_mlflow() -> None:
    code = "import sys, orchestrator.loading; print({'ray', 'mlflow'} & set(sys.modules))"
    assert in_another_process(code) == "set()"
