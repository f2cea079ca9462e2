"""What the columns of a table may be: the roles, and which column plays which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal[
    "image", "text", "label", "domain", "client", "concept", "split", "family", "response"
]
ROLES: tuple[Role, ...] = ("image", "text", "label", "domain", "client", "concept", "split")
NAMED_ROLES: tuple[Role, ...] = ("family", "response")
"""Never taken from a column of that name: they change what a domain, or an answer, is."""


@dataclass(frozen=True)
class Columns:
    """Which column plays which role; the role's own name where nothing is said.

    ``class_names``: names of the labels 0, 1, ... where the file has whole numbers without names.
    """

    named: Mapping[Role, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
