"""Short names of methods and scenarios, for tables, pictures and MLflow's tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import ExperimentConfig
from orchestrator.loading import SETTINGS_OF_NO_RESULT, to_dict
from orchestrator.schema import leaves

METHOD_TAG, SCENARIO_TAG = "fedarena.method", "fedarena.scenario"


def method_label(config: ExperimentConfig) -> str:
    """The experiment's name without its seed, or learner and federation where it has none."""
    if config.name is None:
        return f"{config.learner.name}-{config.federation.name}"
    return config.name.removesuffix(f"-s{config.seed}")


def scenario_label(config: ExperimentConfig) -> str:
    """Data set, partition, clients, and what else is not as usual; without any seed."""
    scenario = config.scenario
    parts = [Path(scenario.dataset).name]
    if scenario.manifest is not None:
        parts.append(f"manifest {scenario.manifest.stem}")
    else:
        parts.append(_described(scenario.partition, keep_first=True))
    if scenario.num_clients is not None:
        parts.append(f"{scenario.num_clients} clients")
    if scenario.shots is not None:
        parts.append(f"{scenario.shots} shots per class and {scenario.shots_per}")
    protocol = _described(scenario.protocol, keep_first=scenario.protocol.name != "standard")
    if protocol != "standard":
        parts.append(protocol)
    return ", ".join(parts)


def told_apart(
    labels: Sequence[str], settings: Sequence[Mapping[str, Any]], ignored: Sequence[str] = ()
) -> list[str]:
    """The labels; where several are equal, each with the settings in which they differ.

    Of sections of another type only the type is told. Settings below ``ignored`` are not looked at.
    """
    flat = [dict(leaves(values)) for values in settings]
    told = []
    for label, own in zip(labels, flat, strict=True):
        twins = [other for other, name in zip(flat, labels, strict=True) if name == label]
        paths = {path for twin in twins for path in twin if not path.startswith(tuple(ignored))}
        differing = [p for p in sorted(paths) if any(t.get(p) != own.get(p) for t in twins)]
        kinds = [p.removesuffix("name") for p in differing if p.endswith(".name")]
        telling = [p for p in differing if p.endswith(".name") or not p.startswith(tuple(kinds))]
        shown = ", ".join(f"{_short(path)}={own[path]}" for path in telling if path in own)
        told.append(f"{label} ({shown})" if shown else label)
    return told


def result_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The sections of a config that say what is computed, without the seed."""
    own = to_dict(config)
    return {k: v for k, v in own.items() if k != "seed" and not SETTINGS_OF_NO_RESULT.match(k)}


def scenario_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The sections of a config by which two scenarios of one label are told apart."""
    own = to_dict(config)
    return {"scenario": own["scenario"], "backbone": own["backbone"]}


def numbered(labels: Sequence[str]) -> list[str]:
    """The labels; of equal ones each but the first with its number."""
    earlier = [labels[:place].count(label) for place, label in enumerate(labels)]
    return [f"{x} #{n + 1}" if n else x for x, n in zip(labels, earlier, strict=True)]


def _described(part: Any, *, keep_first: bool) -> str:
    """``name`` of a section with the fields that differ from their defaults.

    keep_first: with the first field in any case, such as the alpha of a Dirichlet partition.
    """
    assert is_dataclass(part)
    own = [field for field in fields(part) if field.name != "name"]
    shown = []
    for position, field in enumerate(own):
        value = vars(part)[field.name]
        is_kept = keep_first and position == 0 and value not in (None, "")
        if is_kept or value != field.default:
            text = "+".join(map(str, value)) if isinstance(value, tuple) else value
            shown.append(f"{field.name}={text}")
    return " ".join([str(vars(part)["name"]), *shown])


def _short(path: str) -> str:
    """The end of a dotted path that a reader needs; a type's name stands under its section."""
    return ".".join(path.removesuffix(".name").split(".")[-2:])
