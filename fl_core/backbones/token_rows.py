"""Stored inputs of texts: token ids [N, L], and states [N, L, d] beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fl_core.errors import DataError

TOKEN_IDS, BELOW_TOP = "token_ids", "below_top_"
RESPONSE_IDS = "response_ids_"
"""With the most tokens that a response may have: what is written after the text, and its end."""
LAST_TOKEN = "last_token"
"""One state per text: the last layer's, at the last token."""
PADDING = -1
"""Stands in stored token ids where a text has no token."""


def is_token_ids(kind: str) -> bool:
    """Whether a kind of stored input is whole numbers, PADDING among them."""
    return kind == TOKEN_IDS or kind.startswith(RESPONSE_IDS)


def trimmed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored inputs without the columns that are padding in every row; others as they are."""
    found = dict(inputs)
    for kind, ids in inputs.items():
        if is_token_ids(kind) and ids.numel():
            there = _used(ids)
            found[kind] = ids[:, there]
            if kind == TOKEN_IDS:
                states = (name for name in inputs if name.startswith(BELOW_TOP))
                found |= {name: inputs[name][:, there] for name in states}
    return found


def shortest_first(inputs: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
    """The order of some rows [n] by their number of tokens; None where they are no texts."""
    ids = inputs.get(TOKEN_IDS)
    return None if ids is None else (ids[rows] != PADDING).sum(dim=-1).argsort(stable=True)


def check_rows(rows: Sequence[Sequence[int]], reading: Mapping[str, Any]) -> None:
    """DataError for texts (their tokens) without a token, and for long ones that may not be cut.

    reading: how a model reads texts, ``model.json`` of a prepared one.
    """
    if not all(rows):
        raise DataError(
            f"{sum(not row for row in rows)} of {len(rows)} texts that were read together have no "
            f"token in model {reading['model']!r}, so it could read nothing: leave them out."
        )
    most, room = int(reading["max_length"]), reading["max_positions"]
    longest = max(map(len, rows), default=0)
    if longest <= most or reading["truncation"] != "error":
        return
    fits = room is None or longest <= room
    longer = f"backbone.max_length={longest} or more, or " if fits else ""
    raise DataError(
        f"{sum(len(row) > most for row in rows)} of {len(rows)} texts that were read together have "
        f"more than backbone.max_length = {most} tokens, the longest {longest} (the model takes "
        f"{room or 'any number'}). Set {longer}backbone.truncation=end or start."
    )


def _used(ids: Tensor) -> slice:
    """From the first column with a token to the last."""
    used = torch.nonzero((ids != PADDING).any(dim=0)).flatten()
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    return slice(first, last + 1)
