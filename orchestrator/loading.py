"""From YAML and dotted overrides to an ``ExperimentConfig``, with every fault told at once.

The dataclasses of the config are the schema. Where a field may hold one of several of them, the
key ``name`` says which; where it is missing, the field's default does; and a plain string stands
for a ``name`` alone (``learner: coop``). Single values are checked by pydantic in its strict JSON
mode, so ``"3"`` or ``true`` is no number, while 1 is a fine float. Sections are walked here, since
pydantic stops at the first broken part of a dataclass, and tries every member of a union.

An override that names another type (``federation=fedprox``, or ``federation.name=fedprox``) keeps
the settings that the new type also has, and drops those that only the old one had.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fl_core.attacks import NoAttack
from fl_core.backbones.language import LanguageModel
from fl_core.errors import ConfigError
from fl_core.local import check_pair
from fl_core.participation import Participation
from orchestrator.answers import answer_faults
from orchestrator.config import PLACES, AutoSlice, ExperimentConfig
from orchestrator.methods import write_out
from orchestrator.mlflow_access import refuse_password
from orchestrator.pairing import backbone_faults, feedback_faults
from orchestrator.reading import ROOT, Reader
from orchestrator.schema import leaves, plain
from orchestrator.yaml_text import Dumper, read_yaml

SETTINGS_OF_NO_RESULT = re.compile(rf"({'|'.join(PLACES)}|resources)(\.|$)")
RESOURCES_OF_A_RESULT = ("resources.group_size", "resources.threads")
MAX_GROUP_SIZE = 16
"""Beyond it a larger batch of clients gained nothing on the machines measured."""
TOKENS_THAT_PAY = 1024
"""Of a language model on a CPU, over all clients of a group: a step with more took no less time per
client (benchmarks/lora_step.py)."""


def is_sweep(raw: Any) -> bool:
    """Whether plain values describe a sweep, and not one experiment."""
    return isinstance(raw, Mapping) and bool({"base", "axes"} & raw.keys())


def load_config(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """The config of a YAML file (or of a mapping of the same form), with ``path=value`` overrides.

    ConfigError with one line per fault, each starting with the path of the setting.
    """
    if isinstance(source, Mapping):
        raw, origin = plain(source), "the config"
    else:
        raw, origin = read_yaml(Path(source)), str(source)
    if is_sweep(raw):
        raise ConfigError(
            f"{origin} is a sweep, since it has a base or axes, and not one experiment: use "
            "`fedarena sweep` with it, or name the file of its base."
        )
    reader = Reader()
    for override in overrides:
        raw = reader.override(raw, override)
    config = reader.section(ROOT, write_out(raw, reader.note), "")
    if not isinstance(config, ExperimentConfig):
        config = ExperimentConfig()
    known_bad = reader.bad_paths
    reader.faults += [f for paths, f in _cross_faults(config) if not _overlap(paths, known_bad)]
    if reader.faults:
        error = ConfigError(reader.faults)
        given = f" with {' '.join(overrides)}" if overrides else ""
        error.args = (f"{origin}{given}: {_count(reader.faults)}.\n{error}",)
        raise error
    return config


def check(config: ExperimentConfig) -> list[str]:
    """Faults between settings that are each fine alone, one line each."""
    return [fault for _, fault in _cross_faults(config)]


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with nothing left open: name, group size, slice, absolute paths and URI.

    A slice that is ``auto`` looks at the cluster, and on one with GPUs at data and backbone.
    ConfigError where the config (made in Python, say) has a fault that ``load_config`` would find.
    """
    config = load_config(to_dict(config))
    refuse_password(config.tracking.uri)
    parts = (config.learner.name, config.federation.name, f"s{config.seed}")
    resolved = replace(
        config,
        name="-".join(parts) if config.name is None else config.name,
        resources=replace(config.resources, group_size=_group_size(config)),
        tracking=replace(config.tracking, uri=tracking_uri(config.tracking.uri)),
        folder=config.folder.expanduser().absolute(),
        store=config.store.expanduser().absolute(),
    )
    if isinstance(config.resources.slice, AutoSlice):
        from orchestrator.sizing import sized

        return sized(resolved)
    return resolved


def config_hash(config: ExperimentConfig) -> str:
    """16 hex digits over all that can change a result; the same in every process.

    Name, folders, tracking and placement are left out; ``auto`` counts as what it resolves to.
    """
    text = json.dumps(_result_settings(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """What differs among the settings that ``config_hash`` covers: lines ``path: old -> new``."""
    before, after = _result_settings(old), _result_settings(new)
    absent = object()
    lines = []
    for path in {**before, **after}:
        pair = before.get(path, absent), after.get(path, absent)
        if pair[0] != pair[1]:
            shown = ["(none)" if v is absent else json.dumps(v) for v in pair]
            lines.append(f"{path}: {shown[0]} -> {shown[1]}")
    return lines


def to_dict(config: Any) -> dict[str, Any]:
    """A config, or a part of one, as plain values that YAML and JSON know."""
    values: dict[str, Any] = plain(config)
    return values


def to_yaml(config: ExperimentConfig) -> str:
    """YAML with every setting spelled out; ``load_config`` makes an equal config of it."""
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def flat(config: ExperimentConfig) -> dict[str, str | int | float | bool]:
    """Settings under dotted names, for a table of runs; a type's name stands under its section.

    Without what is null, and without where files and services are.
    """
    hidden = re.compile(rf"({'|'.join(PLACES)}|resources\.address)(\.|$)")
    found = {p: v for p, v in leaves(to_dict(config)) if v is not None and not hidden.match(p)}
    return {
        path.removesuffix(".name"): v if isinstance(v, str | int | float) else json.dumps(v)
        for path, v in found.items()
    }


# -- between settings ----------------------------------------------------------------------------


def _cross_faults(config: ExperimentConfig) -> Iterator[tuple[Sequence[str], str]]:
    """Faults between settings, each with the paths that it looked at."""
    resources, federation = config.resources, config.federation
    try:
        check_pair(config.learner, federation, config.training)
    except ConfigError as error:
        for fault in error.faults:
            yield ("learner", "federation", "training"), fault
    yield from backbone_faults(config)
    yield from answer_faults(config)
    yield from feedback_faults(config)
    ordinary = (config.attack, config.participation) == (NoAttack(), Participation())
    if federation.pooled and not ordinary:
        yield (
            ("federation", "attack", "participation"),
            f"federation = {federation.name} has all data in one place, so there are no clients "
            "that attack, come or go: leave attack and participation out.",
        )
    may_be_public = config.scenario.public_fraction or config.scenario.manifest is not None
    if federation.server_training() and not may_be_public:
        yield (
            ("federation", "scenario.public_fraction"),
            f"federation.distillation of federation={federation.name} trains on public examples: "
            "set scenario.public_fraction, such as 0.1, or leave distillation out.",
        )
    yield from _client_faults(config)
    if resources.clients_per_actor == 1 and resources.group_size not in ("auto", 1):
        yield (
            ("resources.clients_per_actor", "resources.group_size"),
            f"resources.group_size = {resources.group_size} is not allowed: with "
            "resources.clients_per_actor = 1 every client trains alone, so it must be auto or 1.",
        )
    if config.name is not None and not re.fullmatch(r"(?!.*\.\.)\w[\w.-]{0,99}", config.name, re.A):
        yield (
            ("name",),
            f"name = {config.name!r} is not allowed: it names a folder, so it must be 1 to 100 "
            "letters, digits, '.', '_' or '-', without '..', and begin with no '.' or '-'.",
        )
    if not config.tracking.experiment.strip():
        yield ("tracking.experiment",), "tracking.experiment is not allowed to be empty."


def _client_faults(config: ExperimentConfig) -> Iterator[tuple[Sequence[str], str]]:
    """Faults of what is asked about clients, where the config says how many there are."""
    held, cohort = config.scenario.num_clients, config.federation.clients_per_round
    if held is None:
        return
    for section, part in (("participation", config.participation), ("attack", config.attack)):
        for fault in part.faults(held):
            yield (section, "scenario.num_clients"), fault
    if cohort is not None and cohort > held:
        yield (
            ("federation.clients_per_round", "scenario.num_clients"),
            f"federation.clients_per_round = {cohort} is not allowed: it must be at most "
            f"scenario.num_clients = {held}.",
        )


def _group_size(config: ExperimentConfig) -> int:
    """Clients trained as one batch: as asked, or a quarter of the cohort."""
    resources, federation = config.resources, config.federation
    if resources.group_size != "auto":
        return resources.group_size
    if federation.pooled or resources.clients_per_actor == 1:
        return 1
    most, backbone = MAX_GROUP_SIZE, config.backbone
    if isinstance(backbone, LanguageModel) and not resources.slice.gpus:
        tokens = config.training.batch_size * backbone.max_length
        most = min(most, max(1, TOKENS_THAT_PAY // tokens))
    cohort = federation.clients_per_round or config.scenario.num_clients
    if cohort is None:  # only the data know how many clients there are
        return most
    return min(most, max(1, math.ceil(cohort / 4)))


def _result_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Every setting that can change a result, by dotted path."""
    config = load_config(to_dict(config))  # so that lr=1 and lr=1.0 are one setting
    resources = replace(config.resources, group_size=_group_size(config))
    return {
        path: value
        for path, value in leaves(to_dict(replace(config, resources=resources)))
        if path in RESOURCES_OF_A_RESULT or not SETTINGS_OF_NO_RESULT.match(path)
    }


def tracking_uri(uri: str | None) -> str:
    """MLflow's URI; a relative SQLite file would be another one in every working folder."""
    prefix = "sqlite:///"
    if uri is None:
        return f"{prefix}{Path.cwd() / 'mlflow.db'}"
    if uri.startswith(prefix) and not uri.startswith(f"{prefix}:"):
        return f"{prefix}{Path.cwd() / Path(uri.removeprefix(prefix)).expanduser()}"
    return uri


def _overlap(paths: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a path is one of the others, or stands above or below one."""
    dotted = [f"{other}." for other in others]
    return any(f"{p}.".startswith(o) or o.startswith(f"{p}.") for p in paths for o in dotted)


def _count(faults: Sequence[str]) -> str:
    return "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
