"""What each partition promises about sizes, classes and domains, and what it refuses."""

from itertools import pairwise

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
    InnerDirichlet,
    Linear,
    LogNormal,
    Natural,
    Pathological,
    Shards,
    Square,
    split,
)

RNG = np.random.default_rng(5)
LABELS, DOMAINS = RNG.integers(0, 10, 6000), RNG.integers(0, 4, 6000)


def sizes(partition, num_clients, **columns):
    return np.array([len(part) for part in split(partition, LABELS, num_clients, 0, **columns)])


def histograms(parts, column):
    counts = np.array([np.bincount(column[part], minlength=column.max() + 1) for part in parts])
    return counts / counts.sum(axis=1, keepdims=True)


def divergence(parts, column):
    """Mean total-variation distance of the clients' histograms to that of all rows."""
    overall = np.bincount(column) / len(column)
    return float(np.abs(histograms(parts, column) - overall).sum(axis=1).mean() / 2)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("balance", [False, True])
def test_top_up_makes_a_tiny_alpha_possible_for_hundreds_of_clients(alpha, balance):
    partition = Dirichlet(alpha=alpha, min_examples=4, self_balancing=balance, top_up=True)
    parts = split(partition, LABELS, 400, 0)
    assert min(map(len, parts)) >= 4
    assert sum(map(len, parts)) == len(LABELS)


def test_what_top_up_gives_to_a_client_is_of_few_classes():
    parts = split(Dirichlet(alpha=0.001, min_examples=10, top_up=True), LABELS, 400, 0)
    assert np.mean([len(np.unique(LABELS[part])) for part in parts]) < 1.2


def test_inner_dirichlet_gives_the_sizes_that_were_asked_for():
    wanted = (100, 200, 300, 1000)
    assert tuple(sizes(InnerDirichlet(alpha=0.3, sizes=wanted), 4)) == wanted
    assert sizes(InnerDirichlet(alpha=0.3), 7).max() - sizes(InnerDirichlet(), 7).min() <= 1
    with pytest.raises(DataError, match=r"4 entries for 5 clients: set num_clients to 4"):
        split(InnerDirichlet(sizes=wanted), LABELS, 5, 0)
    with pytest.raises(DataError, match=r"asks for 8000 training rows, there are 6000.*0\.75"):
        split(InnerDirichlet(sizes=(4000, 4000)), LABELS, 2, 0)
    with pytest.raises(ConfigError, match="sizes"):
        InnerDirichlet(sizes=(3, 0))


def test_inner_dirichlet_has_the_skew_of_its_alpha_and_bears_a_tiny_one():
    skewed, mild = (split(InnerDirichlet(alpha=a), LABELS, 10, 0) for a in (0.001, 100.0))
    assert divergence(mild, LABELS) < 0.15 < 0.6 < divergence(skewed, LABELS)
    assert sum(map(len, skewed)) == len(LABELS)


@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
@pytest.mark.parametrize("num_classes", [1, 2, 10])
def test_a_pathological_client_holds_exactly_so_many_classes(mode, num_classes):
    partition = Pathological(num_classes_per_client=num_classes, class_assignment_mode=mode)
    parts = split(partition, LABELS, 30, 0)
    assert {len(np.unique(LABELS[part])) for part in parts} == {num_classes}


def test_pathological_refuses_what_the_classes_cannot_give():
    with pytest.raises(DataError, match=r"have 10 classes. Set it to 10 or less"):
        split(Pathological(num_classes_per_client=11), LABELS, 3, 0)
    few = np.repeat(np.arange(4), [50, 50, 50, 3])
    with pytest.raises(DataError, match=r"goes to 10 clients and has 3 rows.*num_clients to"):
        split(
            Pathological(num_classes_per_client=1, class_assignment_mode="deterministic"),
            few,
            40,
            0,
        )


def test_disjoint_classes_give_each_class_to_one_client_with_all_of_its_rows():
    parts = split(DisjointClasses(), LABELS, 4, 0)
    held = [np.unique(LABELS[part]).tolist() for part in parts]
    assert sorted(map(len, held)) == [2, 2, 3, 3]
    dealt = [label for own in held for label in own]
    assert sorted(dealt) == list(range(10))
    assert [len(part) for part in parts] == [np.isin(LABELS, own).sum() for own in held]
    assert dealt != list(range(10))  # shuffled
    assert held != [
        np.unique(LABELS[part]).tolist() for part in split(DisjointClasses(), LABELS, 4, 1)
    ]


def test_disjoint_classes_of_a_given_number_leave_out_the_rest(caplog):
    parts = split(DisjointClasses(num_classes_per_client=3), LABELS, 3, 0)
    held = [np.unique(LABELS[part]).tolist() for part in parts]
    assert list(map(len, held)) == [3, 3, 3]
    assert len({label for own in held for label in own}) == 9
    assert "1 of 10 classes belong to no client" in caplog.text


def test_disjoint_classes_refuse_fewer_classes_than_are_needed():
    with pytest.raises(DataError, match=r"11 clients need 11 classes, .* have 10. .* to 10 or"):
        split(DisjointClasses(), LABELS, 11, 0)
    with pytest.raises(
        DataError,
        match=r"4 clients with 3 classes each need 12 classes.*to 3 or.*per_client to 2 or",
    ):
        split(DisjointClasses(num_classes_per_client=3), LABELS, 4, 0)
    with pytest.raises(ConfigError, match="num_classes_per_client = 0"):
        DisjointClasses(num_classes_per_client=0)


def test_a_shard_client_holds_few_classes_and_equal_rows():
    parts = split(Shards(num_shards_per_client=2), LABELS, 20, 0)
    assert {len(part) for part in parts} == {300}
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 4
    assert set(sizes(Shards(num_shards_per_client=3, shard_size=40), 20)) == {120}
    both = Shards(num_shards_per_client=2, shard_size=70, keep_incomplete=True)
    assert set(sizes(both, 42)) == {140}  # the shorter shard at the end is not among them


def test_shards_by_size_deal_out_nearly_all_rows_or_all():
    assert sizes(Shards(num_shards_per_client=None, shard_size=70), 9).sum() == 5950
    assert (
        sizes(Shards(num_shards_per_client=None, shard_size=70, keep_incomplete=True), 9).sum()
        == 6000
    )
    with pytest.raises(DataError, match=r"make 60 shards of 100, too few for 61 clients"):
        split(Shards(num_shards_per_client=None, shard_size=100), LABELS, 61, 0)
    with pytest.raises(DataError, match=r"need 6100 training rows.*num_clients to 60"):
        split(Shards(num_shards_per_client=1, shard_size=100), LABELS, 61, 0)
    with pytest.raises(ConfigError, match="both null"):
        Shards(num_shards_per_client=None)


@pytest.mark.parametrize(
    ("partition", "weight"),
    [(Linear(), lambda k: k), (Square(), lambda k: k**2), (Exponential(), np.exp)],
)
def test_quantity_skews_have_their_sizes_and_an_equal_label_mix(partition, weight):
    units = weight(np.arange(1.0, 6))
    parts = split(partition, LABELS, 5, 0)
    assert np.abs(np.array([len(p) for p in parts]) - 6000 * units / units.sum()).max() < 1
    assert np.abs(histograms(parts[-2:], LABELS) - 0.1).max() < 0.03


def test_a_quantity_skew_that_leaves_a_client_bare_says_how_many_clients_fit():
    with pytest.raises(DataError, match=r"exponential partition.*Set num_clients to (\d+)") as hit:
        split(Exponential(), LABELS, 1000, 0)
    fits = int(str(hit.value).split("num_clients to ")[1].split()[0])
    assert sizes(Exponential(), fits).min() >= 1
    with pytest.raises(DataError, match="exponential partition"):
        split(Exponential(), LABELS, fits + 1, 0)


def test_log_normal_sizes_have_their_spread_and_their_minimum():
    found = sizes(LogNormal(sigma=0.5), 200)
    assert 0.4 < np.std(np.log(found)) < 0.6
    assert np.ptp(sizes(LogNormal(sigma=0.0), 200)) == 0
    tight = sizes(LogNormal(sigma=3.0, min_examples=20), 200)
    assert tight.min() == 20
    assert tight.sum() == 6000


def test_strictness_orders_continuous_clients_along_the_property():
    found = [
        divergence(split(Continuous(by="label", strictness=strictness), LABELS, 10, 0), LABELS)
        for strictness in (0.0, 0.5, 0.8, 1.0)
    ]
    assert found[0] < 0.06
    assert found == sorted(found)
    assert found[-1] > 0.8
    first, last = split(Continuous(by="label", strictness=1.0), LABELS, 10, 0)[::9]
    assert LABELS[first].max() <= LABELS[last].min()


def test_continuous_refuses_a_property_without_an_order():
    with pytest.raises(DataError, match="one domain"):
        split(Continuous(by="domain", strictness=0.5), LABELS, 10, 0)
    assert len(split(Continuous(by="domain", strictness=0.0), LABELS, 10, 0)) == 10


def test_natural_clients_are_those_of_the_data_after_its_filters():
    clients = np.repeat([3, 1, 0, 5, -1], [10, 20, 30, 4, 6])
    labels = np.zeros(70, dtype=np.int64)

    def owners(partition, num_clients=None):
        return [
            np.unique(clients[part]).tolist()
            for part in split(partition, labels, num_clients, 0, clients=clients)
        ]

    assert owners(Natural()) == [[0], [1], [3], [5]]
    assert owners(Natural(), 4) == [[0], [1], [3], [5]]
    assert owners(Natural(min_examples=11)) == [[0], [1]]
    assert len(owners(Natural(max_clients=2))) == 2
    with pytest.raises(DataError, match=r"num_clients=3, but the data name 4 .*max_clients=3"):
        owners(Natural(), 3)
    with pytest.raises(DataError, match=r"the largest has 30. Set min_examples to 30"):
        owners(Natural(min_examples=31))
    with pytest.raises(DataError, match="name no client"):
        split(Natural(), labels, None, 0)
    with pytest.raises(DataError, match="null goes with partition natural"):
        split(Linear(), labels, None, 0)


@pytest.mark.parametrize("spread", ["even", "size"])
def test_a_domain_client_has_one_domain_and_every_domain_has_clients(spread):
    domains = np.repeat(np.arange(4), [600, 1200, 1800, 2400])
    parts = split(Domain(spread=spread), LABELS, 20, 0, domains=domains)
    homes = [np.unique(domains[part]).tolist() for part in parts]
    assert all(len(home) == 1 for home in homes)
    members = np.bincount([home[0] for home in homes])
    assert members.tolist() == ([5] * 4 if spread == "even" else [3, 4, 6, 7])


def test_domain_partitions_say_how_many_clients_would_work():
    with pytest.raises(DataError, match=r"3 clients cannot cover 4 domains.*to 4 or more"):
        split(Domain(), LABELS, 3, 0, domains=DOMAINS)
    with pytest.raises(DataError, match="of one domain"):
        split(DomainDirichlet(), LABELS, 10, 0)
    lean = np.repeat(np.arange(2), [3, 5997])
    with pytest.raises(DataError, match=r"smallest has 3 for 10 clients.*num_clients to 6"):
        split(Domain(), LABELS, 20, 0, domains=lean)
    assert len(split(Domain(), LABELS, 6, 0, domains=lean)) == 6


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_heterogeneity_raises_the_divergence_of_domains_from_nothing_to_one_each(alpha):
    found = []
    for knob in (0.0, 0.25, 0.5, 0.75, 1.0):
        partition = DomainDirichlet(heterogeneity=knob, alpha=alpha)
        parts = split(partition, LABELS, 12, 0, domains=DOMAINS)
        assert sum(map(len, parts)) == len(LABELS)
        found.append(divergence(parts, DOMAINS))
    assert found[0] < 0.08
    assert all(low + 0.05 < high for low, high in pairwise(found))
    assert {len(np.unique(DOMAINS[part])) for part in parts} == {1}


def test_domain_dirichlet_shares_are_those_of_its_formula():
    """With a huge alpha all q are equal, so a client's share of a cell is its domain weight."""
    num_clients, knob = 8, 0.6
    partition = DomainDirichlet(heterogeneity=knob, alpha=1e6)
    parts = split(partition, LABELS, num_clients, 0, domains=DOMAINS)
    rows = np.bincount(DOMAINS)
    for client, part in enumerate(parts):
        home = client // 2  # four domains, eight clients, neighbours share a home
        for domain in range(4):
            weight = (1 - knob) / num_clients + knob * (domain == home) / 2
            assert np.count_nonzero(DOMAINS[part] == domain) == pytest.approx(
                weight * rows[domain], abs=15
            )


def test_domain_dirichlet_with_a_tiny_alpha_is_sound():
    partition = DomainDirichlet(heterogeneity=1.0, alpha=1e-300, min_examples=3, top_up=True)
    parts = split(partition, LABELS, 200, 0, domains=DOMAINS)
    assert min(map(len, parts)) >= 3
    assert {len(np.unique(DOMAINS[part])) for part in parts} == {1}
    with pytest.raises(DataError, match=r"no draw of \d+ gave.*top_up=true"):
        split(DomainDirichlet(alpha=1e-3), LABELS, 200, 0, domains=DOMAINS)


def test_top_up_takes_only_what_the_giver_can_spare():
    """Sixty rows for each of a hundred clients is all that there is."""
    parts = split(Dirichlet(alpha=0.001, min_examples=60, top_up=True), LABELS, 100, 0)
    assert {len(part) for part in parts} == {60}


def test_top_up_from_a_home_domain_with_too_few_rows_is_refused():
    domains = np.repeat(np.arange(2), [100, 5900])
    partition = DomainDirichlet(alpha=0.01, min_examples=250, top_up=True)
    with pytest.raises(DataError, match=r"no client has a row to spare.*min_examples=250"):
        split(partition, LABELS, 20, 0, domains=domains)
