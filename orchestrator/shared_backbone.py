"""Prepared backbones in the shared store: a node that has not prepared one fetches it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from fl_core.backbones.language import Language
from fl_core.backbones.prepared import is_complete
from fl_core.backbones.union import Backbone
from fl_core.errors import ResourceError
from scenarios.locks import acquire
from scenarios.shared_store import shared_at


def share_backbone(backbone: Backbone, url: str | None) -> None:
    """Send a prepared backbone to the shared store, if there is one that lacks it."""
    shared = shared_at(url)
    if shared is None:
        return
    parts = [backbone.folder]
    if isinstance(backbone, Language):
        parts.append(backbone.weights_folder)
    files = {
        f"{part.name}/{name}": part / name
        for part in parts
        for name in ("model.json", *json.loads((part / "model.json").read_text())["files"])
    }
    shared.publish(_entry(backbone.folder), files)


def bring_backbone(folder: Path, url: str | None) -> None:
    """Make sure that a prepared backbone is on this node; one process of it fetches what is not.

    ResourceError where the shared store has not got it either.
    """
    shared = shared_at(url)
    if shared is None or _is_whole(folder):
        return
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    partial = Path(tempfile.mkdtemp(dir=root, prefix=".fetched-"))
    try:
        acquire(handle, f"backbone {folder.name}")
        if _is_whole(folder):
            return
        if not shared.fetch(_entry(folder), lambda name: partial / name):
            raise ResourceError(
                f"the backbone {folder.name} is neither in {root} on this node nor in {url}. Run "
                "it where it was prepared, or check that shared_store can be written there."
            )
        for part in sorted(partial.iterdir(), key=lambda part: part.name == folder.name):
            _put_in_place(part, root / part.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)  # releases the lock


def _entry(folder: Path) -> str:
    return f"backbones/{folder.name}"


def _is_whole(folder: Path) -> bool:
    """Whether the folder is complete, and so is that of the weights which it may name."""
    if not is_complete(folder):
        return False
    weights = json.loads((folder / "model.json").read_text()).get("weights")
    return weights is None or is_complete(folder.parent / str(weights))


def _put_in_place(part: Path, target: Path) -> None:
    if is_complete(target):
        return
    with suppress(FileNotFoundError):
        target.rename(Path(f"{part}.damaged"))
    part.rename(target)
