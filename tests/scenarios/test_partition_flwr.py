"""Where flwr-datasets has the same partition, ours deals out the same rows for an equal generator.

Its answers are recorded in golden/flwr_partitions.json, with its version, by the script beside it:
its pin on rich excludes ours, so the two cannot be installed together. The inner step is compared,
since we shuffle the rows first, round Dirichlet's cuts at random, and give the rows left by
rounding the quantity skews to the largest remainders, where it gives them to the last client.
"""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from scenarios.partitions import (
    Dirichlet,
    DisjointClasses,
    Domain,
    DomainDirichlet,
    LogNormal,
    Partition,
    Pool,
    dirichlet_owners,
)

RECORDED = json.loads((Path(__file__).parent / "golden" / "flwr_partitions.json").read_text())
KINDS = {kind.name: kind for kind in get_args(Partition)}
POOL = Pool(*(np.array(RECORDED[column]) for column in ("label", "domain", "client")))
SKEWS = {"linear": lambda k: k, "square": lambda k: k**2, "exponential": np.exp}


def made(case):
    fields = dict(case["partition"])
    name, num_clients = fields.pop("name"), fields.pop("num_clients")
    if "sizes" in fields:
        fields["sizes"] = tuple(fields["sizes"])
    return KINDS[name](**fields), num_clients, np.array(case["owners"])


def cases(wanted):
    chosen = [case for case in RECORDED["cases"] if wanted(case["partition"]["name"])]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: json.dumps(case["partition"]))


@cases(lambda name: name not in SKEWS)
def test_equal_generators_give_the_owners_of_flwr_datasets(case):
    partition, num_clients, expected = made(case)
    rng = np.random.default_rng(RECORDED["seed"])
    if isinstance(partition, Dirichlet):
        owners = dirichlet_owners(partition, POOL.labels, num_clients, rng, None)
    else:
        owners = partition.deal(POOL, num_clients, lambda purpose: rng)
    assert owners.tolist() == expected.tolist()


@cases(lambda name: name in SKEWS)
def test_quantity_skews_differ_from_flwr_datasets_in_the_remainder_only(case):
    partition, num_clients, expected = made(case)
    weights = SKEWS[partition.name](np.arange(1.0, num_clients + 1))
    exact = weights / weights.sum() * len(POOL)
    theirs, ours = (
        np.bincount(owners, minlength=num_clients)
        for owners in (expected, partition.deal(POOL, num_clients, np.random.default_rng))
    )
    assert np.array_equal(theirs[:-1], np.floor(exact)[:-1])
    assert np.abs(ours - exact).max() < 1
    assert ours.sum() == theirs.sum() == len(POOL)


def test_every_partition_that_flwr_datasets_has_is_recorded():
    recorded = {case["partition"]["name"] for case in RECORDED["cases"]}
    ours_only = {kind.name for kind in (DisjointClasses, LogNormal, Domain, DomainDirichlet)}
    assert recorded == set(KINDS) - ours_only
