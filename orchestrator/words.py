"""What commands are told: YAML files beside settings, and what can be listed. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

KINDS = ("methods", "learners", "federations", "scenarios", "codecs", "backbones", "datasets")
"""What `fedarena list` lists."""


def files_and_settings(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The YAML files among some words, and the ``path=value`` for all of them.

    A file that is there is a file, whatever its name. UsageError without a file.
    """
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    files = [Path(word) for word in words if word not in settings]
    if not files:
        raise click.UsageError("name at least one YAML file, such as examples/promptfl.yaml")
    return files, settings
