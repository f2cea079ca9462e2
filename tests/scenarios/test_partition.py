"""Partitions: what is asked for is what is dealt out, on every machine."""

from typing import get_args

import numpy as np
import pytest

from fl_core.errors import ConfigError, DataError
from scenarios.partitions import (
    Continuous,
    Dirichlet,
    DisjointClasses,
    Domain,
    DomainDirichlet,
    Exponential,
    Iid,
    InnerDirichlet,
    Linear,
    LogNormal,
    Natural,
    Partition,
    Pathological,
    Shards,
    Square,
    by_owner,
    dirichlet_owners,
    share_out,
    split,
)

LABELS = np.random.default_rng(0).integers(0, 8, 600)
DOMAINS = np.random.default_rng(1).integers(0, 3, 600)
CLIENTS = np.random.default_rng(2).integers(0, 7, 600)
PARTITIONS: list[Partition] = [
    Iid(),
    Dirichlet(alpha=0.1),
    Dirichlet(alpha=0.05, self_balancing=True),
    Dirichlet(alpha=0.001, min_examples=20, top_up=True),
    InnerDirichlet(alpha=0.1),
    Pathological(num_classes_per_client=3, class_assignment_mode="first-deterministic"),
    DisjointClasses(),
    Shards(),
    Shards(num_shards_per_client=None, shard_size=17, keep_incomplete=True),
    Linear(),
    Square(),
    Exponential(),
    LogNormal(sigma=1.0),
    Continuous(strictness=0.8),
    Natural(),
    Domain(),
    DomainDirichlet(),
]
LEAVES_ROWS_OUT = (Pathological, Shards)


def parts(partition, seed=3, num_clients=7):
    return split(partition, LABELS, num_clients, seed, domains=DOMAINS, clients=CLIENTS)


def test_the_laws_here_cover_every_partition():
    assert {type(partition) for partition in PARTITIONS} == set(get_args(Partition))


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
def test_no_row_goes_to_two_clients_and_none_is_lost(partition):
    shards = parts(partition)
    dealt = np.concatenate(shards)
    assert len(np.unique(dealt)) == len(dealt)
    assert len(dealt) == len(LABELS) or (
        isinstance(partition, LEAVES_ROWS_OUT) and len(dealt) > len(LABELS) - 17
    )
    assert len(shards) == 7
    assert all(len(shard) and np.all(np.diff(shard) > 0) for shard in shards)


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(partition):
    first, again, other = (parts(partition, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    same = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert same == isinstance(partition, Natural)


def test_another_process_draws_the_same_splits(tables):
    code = (
        "import numpy as np\n"
        "from scenarios.partitions import *\n"
        "from scenarios.partitions import split\n"
        "labels, domains, clients = (\n"
        "    np.random.default_rng(i).integers(0, n, 600) for i, n in enumerate((8, 3, 7)))\n"
        f"for partition in {PARTITIONS!r}:\n"
        "    shards = split(partition, labels, 7, 3, domains=domains, clients=clients)\n"
        "    print(*[','.join(map(str, shard)) for shard in shards])"
    )
    here = [",".join(map(str, shard)) for partition in PARTITIONS for shard in parts(partition)]
    assert tables.run_python(code).split() == here


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(shard) for shard in split(Iid(), LABELS, 7, seed=0)]
    assert max(sizes) - min(sizes) <= 1


def test_without_rounding_dirichlet_is_the_published_procedure():
    """Worked row by row: cut each class, in order, at the rounded-down cumulative shares."""
    labels, num_clients, partition = LABELS[:200], 5, Dirichlet(alpha=0.5, self_balancing=True)
    rng = np.random.default_rng(11)
    expected: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(8):
        rows = [row for row in range(200) if labels[row] == label]
        shares = list(rng.dirichlet([0.5] * num_clients))
        shares = [0 if len(expected[k]) > 200 / 5 else share for k, share in enumerate(shares)]
        reached, start = 0.0, 0
        for client in range(num_clients):
            reached += shares[client] / sum(shares)
            stop = len(rows) if client == num_clients - 1 else int(reached * len(rows))
            expected[client] += rows[start:stop]
            start = stop
    owners = dirichlet_owners(partition, labels, num_clients, np.random.default_rng(11), None)
    assert [part.tolist() for part in by_owner(owners, num_clients)] == [
        sorted(rows) for rows in expected
    ]


def test_random_rounding_favours_no_client():
    labels = np.repeat(np.arange(300), 2)
    sizes = [len(shard) for shard in split(Dirichlet(alpha=10.0), labels, 10, seed=0)]
    assert max(sizes) < 2 * min(sizes)


def test_a_small_alpha_gives_a_client_few_classes():
    def mean_classes(alpha: float) -> float:
        shards = split(Dirichlet(alpha=alpha), LABELS, 5, seed=0)
        return float(np.mean([len(np.unique(LABELS[shard])) for shard in shards]))

    assert mean_classes(0.02) < 3 < mean_classes(100.0)
    assert mean_classes(100.0) == 8


def test_min_examples_are_reached():
    shards = split(Dirichlet(alpha=0.2, min_examples=40), LABELS, 8, seed=0)
    assert min(map(len, shards)) >= 40


def test_more_clients_than_rows_says_what_would_work():
    with pytest.raises(DataError, match=r"601 clients cannot share 600 .* num_clients to 600"):
        split(Iid(), LABELS, 601, seed=0)


def test_a_minimum_beyond_the_rows_says_what_would_work():
    with pytest.raises(DataError, match=r"needs 700 training rows.*min_examples to 60.*to 8 or"):
        split(Dirichlet(min_examples=70), LABELS, 10, seed=0)


def test_an_unreachable_minimum_ends_and_says_what_would_work():
    with pytest.raises(DataError, match=r"(?s)no draw of \d+ gave each.*self_balancing=true"):
        split(Dirichlet(alpha=0.001, min_examples=59), LABELS, 10, seed=0)


def test_all_faults_of_a_partition_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Dirichlet(alpha=-1.0, min_examples=0)
    assert len(caught.value.faults) == 2
    for alpha in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ConfigError, match="alpha"):
            Dirichlet(alpha=alpha)


def test_the_tiniest_alpha_still_deals_out_every_row():
    for balance in (False, True):
        partition = Dirichlet(alpha=1e-300, self_balancing=balance)
        assert sum(map(len, split(partition, LABELS, 2, seed=0))) == len(LABELS)


def test_further_rows_follow_the_shares_that_a_client_holds():
    held = np.array([[30, 0], [10, 5], [0, 15]])
    labels = np.repeat([0, 1], [400, 80])
    owners = share_out(held, labels, np.random.default_rng(0))
    assert np.bincount(owners[labels == 0], minlength=3).tolist() == [300, 100, 0]
    assert np.bincount(owners[labels == 1], minlength=3).tolist() == [0, 20, 60]


def test_few_further_rows_are_spread_without_bias():
    held = np.ones((100, 50), dtype=np.int64)
    labels = np.repeat(np.arange(50), 10)
    owners = share_out(held, labels, np.random.default_rng(0))
    counts = np.bincount(owners, minlength=100)
    assert counts.sum() == 500
    assert counts.max() < 20
    assert min(counts[:50].sum(), counts[50:].sum()) > 200
