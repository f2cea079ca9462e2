"""Clients that differ in the domains that they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl_core.checks import check_fields
from fl_core.errors import DataError
from scenarios.partitions.dirichlet import check_alpha, draw_until
from scenarios.partitions.pool import (
    Basis,
    Draw,
    Floats,
    Ints,
    Pool,
    apportion,
    even_sizes,
    owners_of_cells,
    refuse_impossible_minimum,
    refuse_single_domain,
    top_up,
)

Spread = Literal["even", "size"]


@dataclass(frozen=True)
class Domain:
    """Each client has one domain, whose rows its clients share equally.

    Neighbouring clients have one domain. ``spread``: ``even`` gives each domain as many clients,
    ``size`` in proportion to its training rows, one at least.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "domain"
    name: Literal["domain"] = "domain"
    spread: Spread = "even"

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        sizes = np.bincount(pool.domain_codes)
        refuse_single_domain(len(sizes), self.name)
        homes = home_domains(sizes, num_clients, self.spread)
        counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
        for domain, size in enumerate(sizes.tolist()):
            members = np.flatnonzero(homes == domain)
            counts[domain, members] = even_sizes(size, len(members))
        _refuse_crowded(sizes, homes, 1)
        return owners_of_cells(pool.domain_codes, counts)


@dataclass(frozen=True)
class DomainDirichlet:
    """Dirichlet label skew together with a domain skew, each with a knob of its own.

    Client k has one home domain of D; K_d clients have home d, as ``spread`` says. Of the rows of
    domain d and class c it gets the share

        w[k, d] q[c, k] / sum over j of w[j, d] q[c, j]
        w[k, d] = (1 - heterogeneity) / K + heterogeneity [d is its home] / K_d

    with q[c, .] one draw from Dirichlet(alpha, ..., alpha) per class. ``heterogeneity`` 0: each
    client gets the same share of a class in every domain; 1: each client has its home domain only.
    Repeated, or topped up from the home domain, until each client has ``min_examples``, as in
    ``dirichlet``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    follows: ClassVar[Basis] = "domain"
    name: Literal["domain_dirichlet"] = "domain_dirichlet"
    heterogeneity: float = 0.5
    alpha: float = 0.5
    min_examples: int = 1
    spread: Spread = "even"
    top_up: bool = False

    def __post_init__(self) -> None:
        check_fields(self, heterogeneity="from 0 to 1", alpha="> 0", min_examples=">= 1")
        check_alpha(self.alpha)

    def deal(self, pool: Pool, num_clients: int, draw: Draw) -> Ints:
        domain_sizes = np.bincount(pool.domain_codes)
        refuse_single_domain(len(domain_sizes), self.name)
        refuse_impossible_minimum(self.min_examples, len(pool), num_clients)
        homes = home_domains(domain_sizes, num_clients, self.spread)
        if self.heterogeneity == 1:
            _refuse_crowded(domain_sizes, homes, self.min_examples)
        num_classes, num_domains = int(pool.codes.max()) + 1, len(domain_sizes)
        cells = pool.domain_codes * num_classes + pool.codes
        sizes = np.bincount(cells, minlength=num_domains * num_classes)
        weights = self._domain_weights(homes, num_domains)
        rng, rounding = draw("domain_dirichlet"), draw("rounding")

        def drawn() -> Ints:
            logs = _log_gammas(self.alpha, (num_classes, num_clients), rng)
            return _cell_counts(logs, weights, sizes, rounding)

        if self.top_up:
            cell_domains = np.repeat(np.arange(num_domains), num_classes)
            counts = top_up(drawn(), self.min_examples, cell_domains, homes)
            return owners_of_cells(cells, counts)
        counts, best, tries = draw_until(drawn, self.min_examples, num_classes * num_clients)
        if best < self.min_examples:
            raise DataError(
                f"domain_dirichlet partition: no draw of {tries} gave each of {num_clients} "
                f"clients min_examples={self.min_examples} of {len(pool)} training rows with "
                f"alpha={self.alpha} and heterogeneity={self.heterogeneity} (at best the smallest "
                f"client had {best}). Try a larger alpha, or fewer clients, or top_up=true"
                + (f", or min_examples={best}." if best else ".")
            )
        return owners_of_cells(cells, counts)

    def _domain_weights(self, homes: Ints, num_domains: int) -> Floats:
        """w of the docstring, [num_clients, D]; each column sums to one."""
        is_home = homes[:, None] == np.arange(num_domains)  # [num_clients, D]
        alike = (1 - self.heterogeneity) / len(homes)
        weights: Floats = alike + self.heterogeneity * is_home / is_home.sum(axis=0)
        return weights


def home_domains(sizes: Ints, num_clients: int, spread: Spread) -> Ints:
    """The home domain of each client, ascending [num_clients]; every domain has a client."""
    if num_clients < len(sizes):
        raise DataError(
            f"{num_clients} clients cannot cover {len(sizes)} domains with one home domain each. "
            f"Set num_clients to {len(sizes)} or more."
        )
    if spread == "size":
        members = 1 + apportion(sizes.astype(np.float64), num_clients - len(sizes))
    else:
        largest_first = np.argsort(-sizes, kind="stable")
        members = np.empty(len(sizes), dtype=np.int64)
        members[largest_first] = even_sizes(num_clients, len(sizes))
    return np.repeat(np.arange(len(sizes)), members)


def _refuse_crowded(sizes: Ints, homes: Ints, min_examples: int) -> None:
    members = np.bincount(homes, minlength=len(sizes))
    short = np.flatnonzero(members * min_examples > sizes)
    if len(short):
        worst = int(short[np.argmax(members[short] * min_examples / sizes[short])])
        fits = int((sizes // min_examples).min()) * len(sizes)
        raise DataError(
            f"{len(short)} of {len(sizes)} domains have too few training rows for their clients: "
            f"the smallest has {int(sizes[worst])} for {int(members[worst])} clients of at least "
            f"{min_examples}. Set num_clients to {max(fits, len(sizes))} or less, or spread=size."
        )


def _log_gammas(alpha: float, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Logarithms of Gamma(alpha) draws: Dirichlet shares up to a factor, sound for tiny alpha.

    Gamma(alpha) = Gamma(alpha + 1) * U ** (1 / alpha) in distribution; the power alone underflows.
    """
    logs = np.log(rng.standard_gamma(alpha + 1.0, shape))
    bounded: Floats = np.maximum(logs + np.log1p(-rng.random(shape)) / alpha, -1e300)
    return bounded


def _cell_counts(logs: Floats, weights: Floats, sizes: Ints, rounding: np.random.Generator) -> Ints:
    """Rows of each cell for each client, int64 [D * C, num_clients]; logs [C, num_clients]."""
    counts = np.empty((len(sizes), weights.shape[0]), dtype=np.int64)
    for domain, column in enumerate(weights.T):
        members = np.flatnonzero(column)
        held = logs[:, members] + np.log(column[members])  # [C, members]
        reached = np.cumsum(np.exp(held - held.max(axis=1, keepdims=True)), axis=1)
        # Divided by its last value, so that nobody without a share gets the rounding error.
        shares = reached / reached[:, -1:]
        block = slice(domain * len(logs), (domain + 1) * len(logs))
        offsets = rounding.random((len(logs), 1))
        ends = np.floor(shares * sizes[block, None] + offsets).astype(np.int64)
        counts[block] = 0
        counts[block, members] = np.diff(ends, axis=1, prepend=0)
    return counts
