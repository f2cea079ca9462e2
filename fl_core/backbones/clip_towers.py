"""CLIP folders whose towers lie in files of their own, so that several models can share one.

Beside what open_clip reads, ``open_clip_config.json`` of such a folder has
``"towers": {"image": FILE, "text": FILE}``, paths relative to the folder. The image file has the
tensors of open_clip's vision module; the text file those of a whole model, of which all but the
image tower is taken, the logit scale included.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fl_core.errors import ConfigError

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
VISUAL = "visual."
LOGIT_SCALE = "logit_scale"


class TowerFiles(NamedTuple):
    image: Path
    text: Path


def tower_files(folder: Path) -> TowerFiles | None:
    """The files of the towers of a model's folder; None where one file has the whole model."""
    path = folder / CONFIG
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # open_clip says what is wrong with it
    named = about.get("towers") if isinstance(about, dict) else None
    if named is None:
        return None
    fits = isinstance(named, dict) and set(named) == set(TowerFiles._fields)
    if not fits or not all(isinstance(name, str) for name in named.values()):
        raise ConfigError(
            f"{path}: towers = {json.dumps(named)} is not allowed: it must be "
            '{"image": FILE, "text": FILE}. Leave it out where one file has the whole model.'
        )
    files = TowerFiles(*(folder / named[tower] for tower in TowerFiles._fields))
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError(
            f"{path}: towers names {', '.join(missing)}, which is missing. Put it there, or "
            "reinstall fedarena if the model is a packaged one."
        )
    return files


@contextmanager
def whole_model(folder: Path, towers: TowerFiles) -> Iterator[Path]:
    """A folder with the same model in one file, as open_clip loads it; gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name)
        shutil.copyfile(folder / CONFIG, whole / CONFIG)
        save_file(joined(towers), whole / WEIGHTS, metadata={"format": "pt"})
        yield whole


def joined(towers: TowerFiles) -> dict[str, Tensor]:
    """The tensors of the whole model, under open_clip's names."""
    image, text = (_read(path) for path in towers)
    if LOGIT_SCALE not in text:
        raise ConfigError(
            f"{towers.text} has no tensor {LOGIT_SCALE}, so it is not a whole open_clip model. "
            f"towers in {CONFIG} must name one for text."
        )
    rest = {name: tensor for name, tensor in text.items() if not name.startswith(VISUAL)}
    return rest | {f"{VISUAL}{name}": tensor for name, tensor in image.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
