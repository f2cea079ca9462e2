"""Every error that fedarena raises on purpose.

    FedarenaError
    ├── ConfigError       what a user wrote is wrong; also a ValueError
    ├── DataError         a data set is missing, broken or too small; also a ValueError
    ├── ResourceError     the machine or cluster cannot hold what was asked for
    ├── MessageError      encoded bytes are not what the receiver expects
    └── StateError        a run's folder cannot be used: changed config, in use, or damaged

Each message says what was wrong, the value, what is allowed and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedarenaError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(FedarenaError, ValueError):
    """A setting is wrong. ``faults`` lists every fault that was found, one line each."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.faults,)


class DataError(FedarenaError, ValueError):
    """A data set is missing, broken, or too small for what was asked of it."""


class ResourceError(FedarenaError):
    """The machine or the cluster cannot hold what was asked for."""


class MessageError(FedarenaError):
    """Encoded bytes are not what the receiver expects (names, shapes, dtypes, or damage)."""


class StateError(FedarenaError):
    """A run's folder cannot be used: another config, another process, or damaged files."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known words, and lists them all where they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(names) if len(names) <= 40 else f"{len(names)} names"
    return f"{hint} Known: {listed}."
