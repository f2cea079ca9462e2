"""docs/settings.md names every setting with its default."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.language import LanguageModel
from orchestrator.config import ExperimentConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
ELSEWHERE = {"participation", "attack", "communication"}
"""Sections whose settings stand on pages of their own."""


def documented():
    """By setting, what its row says in the column of defaults."""
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]*) \|", PAGE.read_text(), flags=re.MULTILINE)
    return {name: told for names, told in rows for name in re.findall(r"`([^`]+)`", names)}


def settings(section, path=""):
    """(dotted name, default) of every setting; a section of several kinds is one setting."""
    for key, value in vars(section).items():
        name = f"{path}{key}"
        if is_dataclass(value) and "name" not in vars(value) and name not in ELSEWHERE:
            yield from settings(value, f"{name}.")
        else:
            yield name, value


def spoken(value):
    if is_dataclass(value):
        return str(getattr(value, "name", ""))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def says(cell, default):
    return re.search(rf"(?<![\w.]){re.escape(default)}(?![\w.])", cell) is not None


def test_every_setting_stands_there_with_its_default():
    told = documented()
    found = {name: spoken(value) for name, value in settings(ExperimentConfig())}
    whole = {"resources.slice.cpus", "resources.slice.gpus", "resources.slice.memory_gb"}
    assert whole <= found.keys()
    for name, default in found.items():
        if name in whole:
            assert says(told["resources.slice"], f"{name.rpartition('.')[2]}` {default}")
        elif name == "name" or name in ELSEWHERE:  # in words
            assert name in told
        else:
            assert says(told[name], default), name


def test_every_setting_of_a_backbone_stands_there():
    told = documented()
    for kind in (OpenClip, LanguageModel):
        for name in {field.name for field in fields(kind)} - {"name"}:
            assert f"backbone.{name}" in told


def test_no_setting_stands_there_that_is_none():
    known = {name for name, _ in settings(ExperimentConfig())} | {"resources.slice"}
    known |= {
        f"backbone.{field.name}" for kind in (OpenClip, LanguageModel) for field in fields(kind)
    }
    known |= {f"federation.{name}" for name in ("rounds", "clients_per_round", "weights")}
    assert documented().keys() <= known
