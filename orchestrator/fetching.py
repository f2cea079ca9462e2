"""A run or a sweep by its URL, on a machine that has nothing of it."""

from __future__ import annotations

import re
from pathlib import Path

from fl_core.errors import ConfigError, StateError
from fl_core.remote import RemoteFolder, check_url
from orchestrator.checkpoint import RunStore
from orchestrator.remote_run import RemoteRun
from orchestrator.sweep.away import SIDE_FILES, bring_sweep
from orchestrator.sweep.state import SWEEP_FILE, SWEEPS


def fetch_state(url: str, folder: Path) -> tuple[Path, list[str]]:
    """Bring the run or the sweep at ``url`` into a folder of runs.

    Its own folder there, and the settings by which it goes on in these places. StateError where
    there is none.
    """
    remote = _checked_place(url)
    if remote.parent.name == SWEEPS and remote.read(SWEEP_FILE) is not None:
        here, root = folder / SWEEPS / remote.name, remote.parent.parent
        with RunStore(here).lock():
            bring_sweep(RemoteRun(here, remote, SIDE_FILES))
    elif remote.read("config.yaml") is not None:
        here, root = folder / remote.name, remote.parent
        with RunStore(here).lock():
            copy = RemoteRun(here, remote)
            if not copy.restore() and not (here / "config.yaml").exists():
                copy.fetch_side_files(copy.side_files)
    else:
        raise StateError(
            f"{url} holds no run and no sweep: there is no config.yaml and no sweep.yaml. Name one "
            "of those below the mirror, such as s3://bucket/runs/promptfl-0123abcd or "
            "s3://bucket/runs/sweeps/methods-0123abcd."
        )
    return here, [f"folder={folder.expanduser().absolute()}", f"mirror={root.url}"]


def _checked_place(url: str) -> RemoteFolder:
    """The folder of a run or a sweep. ConfigError where a URL cannot be one."""
    faults = check_url("RUN", url)
    remote = RemoteFolder(url.rstrip("/"))
    if not faults and not re.fullmatch(r"(?!.*\.\.)\w[\w.-]*", remote.name, re.A):
        faults = [f"RUN = {url!r} does not end in the name of a run or a sweep."]
    if faults:
        raise ConfigError(faults)
    return remote
