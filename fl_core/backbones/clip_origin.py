"""Which CLIP of open_clip's, and where its weights come from, without importing open_clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

from fl_core.backbones.clip_towers import CONFIG, TowerFiles, tower_files
from fl_core.errors import ConfigError

FORMAT = 1
LOCAL = "local-dir:"


@dataclass(frozen=True)
class OpenClip:
    """Which CLIP.

    model: a packaged model, any name that open_clip knows, or ``local-dir:PATH`` of a folder with
    ``open_clip_config.json`` and weights. pretrained: for an open_clip name a tag (downloaded), a
    file, or "random" for weights drawn by name, which are good for measuring time alone. precision:
    of the frozen towers; what is trained, class features and losses are float32.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    name: Literal["open_clip"] = "open_clip"
    model: str = "emoji_clip"
    pretrained: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class Origin:
    """Where the weights of an OpenClip come from: open_clip's name for it, and local files.

    towers: those of the files that hold one tower each; None where one file has the whole model.
    """

    model: str
    pretrained: str | None
    files: tuple[Path, ...]
    towers: TowerFiles | None = None


def find_origin(spec: OpenClip, packaged: Mapping[str, Path]) -> Origin:
    """Where a model comes from, as far as the file system tells; needs no open_clip."""
    local = packaged.get(spec.model)
    if spec.model.startswith(LOCAL):
        local = Path(spec.model.removeprefix(LOCAL))
    if local is not None:
        if spec.pretrained is not None:
            raise ConfigError(
                f"pretrained {spec.pretrained!r}: {spec.model!r} brings its own weights, "
                "leave pretrained out"
            )
        if not (local / CONFIG).is_file():
            raise ConfigError(f"model {spec.model!r}: {local} has no {CONFIG}")
        towers = tower_files(local)
        own = {path for path in local.iterdir() if path.is_file()}
        files = tuple(sorted(own.union(towers or ())))
        return Origin(f"{LOCAL}{local}", None, files, towers)
    path = Path(spec.pretrained or "")
    return Origin(spec.model, spec.pretrained, (path,) if path.is_file() else ())


def source_key(spec: OpenClip, origin: Origin) -> str:
    """What the prepared weights depend on, without reading them: names, sizes, times, versions."""
    stats = [(str(path.resolve()), path.stat()) for path in origin.files]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    facts = [FORMAT, asdict(spec), origin.model, files, version("open_clip_torch")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
