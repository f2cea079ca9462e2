"""Checks on the fields of a config dataclass: every fault is found, then told at once."""

from __future__ import annotations

import math
from typing import Any

from fl_core.errors import ConfigError

BOUNDS = {
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    "> 0": lambda x: x > 0,
    "from 0 to 1": lambda x: 0 <= x <= 1,
    "from 0 to below 1": lambda x: 0 <= x < 1,
    "above 0 to 1": lambda x: 0 < x <= 1,
    "above 0 to below 1": lambda x: 0 < x < 1,
}


def check_fields(config: Any, **bounds: str) -> None:
    """Raise one ``ConfigError`` that lists each field outside its bound.

    ``bounds`` maps a field's name to a key of ``BOUNDS``; a field that is ``None`` is passed over.
    Values that are not finite are never within a bound.
    """
    faults = []
    for name, bound in bounds.items():
        value = vars(config)[name]
        if value is None:
            continue
        if not (math.isfinite(value) and BOUNDS[bound](value)):
            faults.append(f"{name} = {value!r} is not allowed: it must be {bound}.")
    if faults:
        raise ConfigError(faults)
