"""Stored inputs of texts: token ids [N, L], and states [N, L, d] beside them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

TOKEN_IDS, BELOW_TOP = "token_ids", "below_top_"
PADDING = -1
"""Stands in stored token ids where a text has no token."""


def trimmed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored inputs without the columns that are padding in every row; others as they are."""
    ids = inputs.get(TOKEN_IDS)
    if ids is None or not ids.numel():
        return dict(inputs)
    used = (ids != PADDING).any(dim=0).nonzero().flatten()
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    of_tokens = {kind for kind in inputs if kind == TOKEN_IDS or kind.startswith(BELOW_TOP)}
    return {k: v[:, first : last + 1] if k in of_tokens else v for k, v in inputs.items()}


def shortest_first(inputs: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
    """The order of some rows [n] by their number of tokens; None where they are no texts."""
    ids = inputs.get(TOKEN_IDS)
    return None if ids is None else (ids[rows] != PADDING).sum(dim=-1).argsort(stable=True)
