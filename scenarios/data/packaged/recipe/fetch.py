"""Stage `fetch`: downloads each pinned archive with its registry's own client."""

import hashlib
import logging
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from scenarios.data.packaged.recipe.sources import SOURCES, Source

logger = logging.getLogger(__name__)


def _command(item: Source) -> list[str]:
    pinned = f"{item.name}=={item.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", pinned]
    match item.registry:
        case "npm":
            return ["npm", "pack", "--silent", f"{item.name}@{item.version}"]
        case "debian":
            return ["apt-get", "download", "--quiet", f"{item.name}={item.version}"]
        case "pypi-wheel":
            return pip
        case "pypi-sdist":
            return [*pip, "--no-binary", ":all:", "--no-build-isolation"]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, target: Path) -> None:
    if target.exists():
        return
    target.mkdir(parents=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(target)
    else:
        with tarfile.open(archive) as bundle:
            bundle.extractall(target, filter="data")


def unpacked(work: Path, item: Source) -> Path:
    """The folder that holds the content of a fetched archive."""
    return work / "unpacked" / item.name.replace("/", "_")


def fetch(work: Path) -> None:
    folder = work / "fetch"
    folder.mkdir(parents=True, exist_ok=True)
    for item in SOURCES:
        archive = folder / item.archive
        if not archive.exists():
            logger.info("fetching %s %s", item.name, item.version)
            subprocess.run(_command(item), cwd=folder, check=True)
        digest = _sha256(archive)
        if digest != item.sha256:
            raise ValueError(
                f"{item.archive} has sha256 {digest}, expected {item.sha256}; "
                "remove it and fetch again"
            )
        _unpack(archive, unpacked(work, item))
