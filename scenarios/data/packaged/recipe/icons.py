"""Iconify sets: names, aliases, and rendering to pixels."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.pictures import SIZE, on_white
from scenarios.data.packaged.recipe.sources import source

# Signs rather than things, and variants of one picture.
_LEFT_OUT = re.compile(r"skin-tone|^flag-|keycap|^regional|-letter|button$|oclock|thirty$")
_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark|default)$")
_INK = "#222222"


def load_set(work: Path, name: str) -> dict[str, Any]:
    path = unpacked(work, source(name)) / "package" / "icons.json"
    icon_set: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return icon_set


def picture_names(icon_set: dict[str, Any]) -> list[str]:
    """Names of things, without signs, flags and skin tones."""
    names = set(icon_set["icons"]) | set(icon_set.get("aliases", {}))
    return sorted(
        name
        for name in names
        if not _LEFT_OUT.search(name) and not (_TONE.search(name) and _TONE.sub("", name) in names)
    )


def _resolve(icon_set: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The icon behind a name; aliases that mirror or turn a picture are left out."""
    icons, aliases = icon_set["icons"], icon_set.get("aliases", {})
    for _ in range(4):
        if name in icons:
            icon: dict[str, Any] = icons[name]
            return icon
        alias = aliases.get(name)
        if alias is None or len(alias) > 1:
            return None
        name = alias["parent"]
    return None


def render(icon_set: dict[str, Any], name: str, size: int = SIZE) -> np.ndarray | None:
    """uint8 [size, size, 3] on white, or None where the set has no such picture."""
    icon = _resolve(icon_set, name)
    if icon is None:
        return None
    box = [icon.get(key, icon_set.get(key, default)) for key, default in _BOX]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}">'
        f"{icon['body'].replace('currentColor', _INK)}</svg>"
    )
    wide = box[2] >= box[3]
    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=size if wide else None, height=None if wide else size
    )
    with Image.open(io.BytesIO(bytes(data))) as image:
        return on_white(image, size)


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
