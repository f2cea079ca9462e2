"""What can be named in a config, with a line on each, taken from the unions and docstrings."""

from __future__ import annotations

import inspect
from typing import get_args

from fl_core.attacks import AnyAttack
from fl_core.errors import ConfigError, did_you_mean
from fl_core.federation import FEDERATIONS
from fl_core.learners import LEARNERS
from fl_core.wire import CODECS
from orchestrator.methods import listed
from orchestrator.words import KINDS
from scenarios.data.catalogue import (
    PACKAGED_BACKBONES,
    PACKAGED_DATASETS,
    PACKAGED_LANGUAGE_MODELS,
    PUBLISHED,
)
from scenarios.partitions import Partition
from scenarios.protocols import Protocol

SCENARIOS = {"partition": Partition, "protocol": Protocol, "attack": AnyAttack}
ELSEWHERE = {
    "backbones": [
        ("any open_clip name", "with backbone.pretrained: a tag, a file, or random"),
        ("local-dir:PATH", "a folder in open_clip's format"),
        ("PATH or a hub's name", "with backbone=transformers: an encoder or a causal model"),
    ],
    "datasets": [
        ("PATH", "an image folder (train/CLASS/*.png) or a Parquet, Arrow or JSON-lines file"),
        ("hf:ID", "a data set of the Hugging Face hub"),
        ("NAME:PLACE", "a published set in a folder; texts also from the hub, as NAME:hub"),
        ("NAME is one of", ", ".join(sorted(PUBLISHED))),
    ],
}


def entries(kind: str) -> list[tuple[str, str]]:
    """(name, line) of every method, learner, federation, partition, codec, backbone or data set."""
    packaged: list[tuple[str, str]] = []
    match kind:
        case "methods":
            return listed()
        case "learners":
            return [(learner.name, _line(learner, module=True)) for learner in LEARNERS]
        case "federations":
            return [(rule.name, _line(rule, module=True)) for rule in FEDERATIONS]
        case "scenarios":
            return [
                (f"{section}: {kind.name}", _line(kind))
                for section, union in SCENARIOS.items()
                for kind in get_args(union)
            ]
        case "codecs":
            return [(codec.name, _line(codec)) for codec in CODECS]
        case "backbones":
            packaged = [(name, "packaged; works offline") for name in PACKAGED_BACKBONES]
            line = "packaged, with backbone=transformers; works offline"
            packaged += [(name, line) for name in PACKAGED_LANGUAGE_MODELS]
        case "datasets":
            packaged = [(name, "packaged; works offline") for name in PACKAGED_DATASETS]
        case _:
            raise ConfigError(f"{kind!r} cannot be listed.{did_you_mean(kind, KINDS)}")
    return packaged + ELSEWHERE[kind]


def _line(kind: type, *, module: bool = False) -> str:
    """The first line of what documents a class: its module's, which names the paper, or its own."""
    documented = inspect.getmodule(kind) if module else kind
    return (inspect.getdoc(documented) or "").splitlines()[0]
