"""How a cohort is cut into groups of clients that are trained, and scored, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def even_groups(clients: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    """Consecutive groups of at most ``size`` clients, as few as that takes.

    Their sizes differ by one at most, so that slices which get equally many groups finish together.
    """
    num = -(-len(clients) // size)
    sizes = (len(clients) // num + (i < len(clients) % num) for i in range(num))
    bounds = accumulate(sizes, initial=0)
    return tuple(tuple(clients[start:end]) for start, end in pairwise(bounds))
