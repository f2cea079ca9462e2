"""From YAML and dotted overrides to a ``SweepConfig``, with every fault told at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fl_core.errors import ConfigError, did_you_mean
from fl_core.remote import check_disk
from orchestrator.config import PLACES, ExperimentConfig
from orchestrator.loading import (
    RESOURCES_OF_A_RESULT,
    SETTINGS_OF_NO_RESULT,
    is_sweep,
    tracking_uri,
)
from orchestrator.reading import Reader, put, what_may_be_meant
from orchestrator.schema import Slot, slots
from orchestrator.sweep.config import BUDGET, Axis, SweepConfig, Tuning, label
from orchestrator.yaml_text import Loader, read_yaml

NOT_AXES = re.compile(rf"({'|'.join(PLACES)}|seed|resources\.(executor|address))(\.|$)")
SWEEP = Slot(SweepConfig, (SweepConfig,), SweepConfig)


def load_sweep(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()
) -> SweepConfig:
    """The sweep of a YAML file (or of a mapping of the same form).

    overrides: ``path=value``, of the sweep's own settings where the path begins with one of them,
    else of the base. ConfigError with one line per fault. Places become absolute.
    """
    if isinstance(source, Mapping):
        raw, origin, here = dict(source), "the sweep", Path.cwd()
    else:
        raw, origin, here = read_yaml(Path(source)), str(source), Path(source).parent
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{origin} is not a sweep: it must be a mapping with base and axes.")
        if not is_sweep(raw):
            raise ConfigError(
                f"{origin} is one experiment, since it has neither base nor axes, and no sweep: "
                "use `fedarena run` with it, or `fedarena compare` for several seeds."
            )
        raw = {"name": Path(source).stem, **raw}
    raw["base"] = _base(raw.get("base") or {}, here)
    reader = Reader()
    for override in overrides:
        raw = _overridden(reader, raw, override)
    _note_seed(reader, raw, overrides)
    axes = raw.pop("axes", None) or {}
    sweep = reader.section(SWEEP, raw, "")
    found = _axes(reader, axes)
    if isinstance(sweep, SweepConfig) and isinstance(sweep.base, dict):
        sweep = replace(sweep, base=_with_places(sweep.base), axes=found)
    else:  # only to look at its axes: a section tuning that has a fault is no missing one
        sweep = SweepConfig(axes=found, tuning=Tuning(1) if raw.get("tuning") else None)
    reader.faults += _axis_faults(sweep)
    if reader.faults:
        error = ConfigError(reader.faults)
        count = len(reader.faults)
        error.args = (f"{origin}: {count} fault{'s' if count > 1 else ''}.\n{error}",)
        raise error
    return sweep


def _base(raw: Any, here: Path) -> Any:
    """The base as a mapping; a file is looked for beside the sweep, then in this folder."""
    if not isinstance(raw, str | Path):
        return raw
    beside = here / raw
    found = read_yaml(beside if beside.exists() else Path(raw))
    return found if found is not None else {}


def _overridden(reader: Reader, raw: dict[str, Any], override: str) -> dict[str, Any]:
    path, _, text = override.partition("=")
    keys = path.strip().split(".")
    known = slots(SweepConfig).keys() | slots(ExperimentConfig).keys() | {"method"}
    if keys[0] not in known:
        hint = what_may_be_meant(keys[0], "", known)
        reader.note(path, f"{path} is no setting of a sweep, nor of its base.{hint}")
        return raw
    if keys[0] not in slots(SweepConfig):
        return {**raw, "base": reader.override(raw["base"], override)}
    if keys[0] == "base":
        reader.note(path, f"{path}: leave out 'base.': {'.'.join(keys[1:]) or 'name one setting'}.")
        return raw
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError:
        reader.note(path, f"{path} = {text!r} cannot be read. Put it in quotes.")
        return raw
    if keys[0] == "axes":
        return {**raw, "axes": {**(raw.get("axes") or {}), ".".join(keys[1:]): value}}
    return put(SWEEP, raw, keys, value)


def _note_seed(reader: Reader, raw: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse a base's seed that cannot be counted from, or that an override sets in vain."""
    base = raw["base"]
    seed = base.get("seed", 0) if isinstance(base, Mapping) else 0
    if not isinstance(seed, int):
        reader.refuse("seed", seed, "a whole number.")
    elif isinstance(raw.get("seeds"), list) and any(
        override.partition("=")[0].strip() == "seed" for override in overrides
    ):
        reader.note(
            "seed", f"seed = {seed} has no effect beside seeds = {raw['seeds']}: set seeds."
        )


def _axes(reader: Reader, raw: Any) -> dict[str, Axis]:
    if not isinstance(raw, Mapping):
        reader.refuse("axes", raw, "a mapping from settings to their values.")
        return {}
    found = {}
    for name, values in raw.items():
        if isinstance(values, list):
            values = {"grid": values}
        elif _is_variants(values):
            values = {"variants": values}
        axis = reader.section(Slot(Axis, (Axis,), Axis), values, f"axes.{name}")
        if isinstance(axis, Axis):
            found[str(name)] = axis
    return found


def _is_variants(values: Any) -> bool:
    """Whether an axis is written as variants without that word: name -> settings."""
    if not isinstance(values, Mapping) or values.keys() & slots(Axis).keys():
        return False
    return all(isinstance(settings, Mapping) for settings in values.values())


def _axis_faults(sweep: SweepConfig) -> list[str]:
    """What is wrong between axes."""
    faults = []
    for name, axis in sweep.axes.items():
        at = f"axes.{name}"
        if sweep.budgets and name.startswith(BUDGET):
            faults.append(f"{at} and budgets both set what may be sent: leave one of them out.")
        paths = [p for v in axis.variants.values() for p in v] if axis.variants else [name]
        for path in dict.fromkeys(p for p in paths if NOT_AXES.match(str(p))):
            instead = "seeds" if path == "seed" else "base"
            faults.append(f"{at}: {path} cannot differ between trials; set it in {instead}.")
        if axis.is_tuned and sweep.tuning is None:
            faults.append(
                f"{at} = {axis.kinds[0]} is a hyper-parameter to be tuned: add a section tuning, "
                "such as tuning: {trials_per_method: 8}, or give its values as a grid."
            )
        faults += _when_faults(sweep, name, axis)
    return faults


def _when_faults(sweep: SweepConfig, name: str, axis: Axis) -> list[str]:
    faults = []
    for other, wanted in (axis.when or {}).items():
        at = f"axes.{name}.when.{other}"
        known = sweep.axes.get(other)
        cells = {n: a for n, a in sweep.axes.items() if not a.is_tuned and n != name}
        if known is None or other not in cells:
            faults.append(
                f"{at} is not another grid, range or variants.{did_you_mean(other, cells)}"
            )
            continue
        names = [label(v) for v in known.values]
        short = [label(v["name"]) for v in known.values if isinstance(v, dict) and "name" in v]
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if label(value) not in (*names, *short):
                hint = did_you_mean(label(value), names)
                faults.append(f"{at} = {label(value)} is not a value of axis {other}.{hint}")
        if _waits_for(sweep, other, name):
            faults.append(f"{at}: axis {other} itself applies only where {name} has a value.")
    return faults


def _waits_for(sweep: SweepConfig, name: str, wanted: str, depth: int = 0) -> bool:
    """Whether the conditions of axis ``name`` lead to axis ``wanted``."""
    axis = sweep.axes.get(name)
    before = list(axis.when or ()) if axis is not None else []
    if depth > len(sweep.axes):
        return True
    return wanted in before or any(_waits_for(sweep, b, wanted, depth + 1) for b in before)


def _with_places(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base with absolute places, so that a sweep can go on from any folder."""
    usual = {"folder": ExperimentConfig.folder, "store": ExperimentConfig.store}
    given = {name: base.get(name, default) for name, default in usual.items()}
    places = {
        name: str(Path(place).expanduser().absolute()) if _is_of_disk(place) else place
        for name, place in given.items()
    }
    tracking = base.get("tracking") or {}
    if not isinstance(tracking, Mapping) or not isinstance(tracking.get("uri"), str | None):
        return {**base, **places}  # told with the other faults of the trials
    return {**base, **places, "tracking": {**tracking, "uri": tracking_uri(tracking.get("uri"))}}


def _is_of_disk(place: Any) -> bool:
    """Whether a place is a path; what is none is told with the other faults of the trials."""
    return isinstance(place, str | Path) and not check_disk("", Path(place), "")


def is_about_places(override: str) -> bool:
    """Whether an override only says where things lie, or where work runs."""
    path = override.partition("=")[0].strip()
    if path in (*RESOURCES_OF_A_RESULT, "name", "resources"):
        return False
    return SETTINGS_OF_NO_RESULT.match(path) is not None
