"""The frozen models that learners may stand on, and how each is named, prepared and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.language import Language, LanguageModel, load_language, prepare_language
from fl_core.backbones.token_rows import BELOW_TOP, LAST_TOKEN, RESPONSE_IDS, TOKEN_IDS
from fl_core.errors import StateError

AnyBackbone = OpenClip | LanguageModel
"""At once the config schema and the list in error messages."""

Backbone: TypeAlias = Clip | Language

IMAGE_INPUTS = ("features", "patches", "tokens")


def modality(spec: AnyBackbone) -> Literal["image", "text"]:
    """What the backbone reads."""
    return "image" if isinstance(spec, OpenClip) else "text"


def gives(spec: AnyBackbone, kind: str) -> bool:
    """Whether a backbone of this type puts out a kind of stored input."""
    if isinstance(spec, OpenClip):
        return kind in IMAGE_INPUTS
    return kind in (TOKEN_IDS, LAST_TOKEN) or kind.startswith((BELOW_TOP, RESPONSE_IDS))


def prepare_backbone(
    spec: AnyBackbone,
    folder: Path,
    packaged: Mapping[str, Path],
    packaged_language: Mapping[str, Path],
) -> Path:
    """The folder, inside ``folder``, that ``load_backbone`` takes; written if it is missing."""
    if isinstance(spec, OpenClip):
        return prepare_clip(spec, folder, packaged)
    return prepare_language(spec, folder, packaged_language)


def load_backbone(folder: Path, device: str = "cpu") -> Backbone:
    """The model of a prepared folder."""
    try:
        kind = json.loads((folder / "model.json").read_text()).get("kind", "clip")
    except (OSError, ValueError) as error:
        raise StateError(f"{folder} holds no prepared backbone: {error}") from error
    return load_language(folder, device) if kind == "language" else load_clip(folder, device)
