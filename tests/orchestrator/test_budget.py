"""Budgets: whole rounds or none, never exceeded, the same stop after a resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_core import wire
from fl_core.errors import ConfigError
from fl_core.federation import FEDERATIONS, FedAvg, HetLoRA, LocalOnly
from fl_core.participation import Participation
from fl_core.round import plan_round
from fl_core.setting import Load, Setting, Standing, expected_loads
from fl_core.types import TensorSpec
from fl_core.work import Training
from orchestrator.budget import (
    Purse,
    Spent,
    draw_links,
    horizon,
    link_seconds,
    next_round,
    no_round_error,
    one_run_answers,
    rounds_to_schedule,
)
from orchestrator.config import Budget, Communication, Link
from orchestrator.loading import load_config

SHAPES = {"context": (4, 32), "base": (10, 3)}
SPECS = {"context": TensorSpec(), "base": TensorSpec("frozen")}


def setting_for(codec=None, clients_per_round=None, seed=0, rounds=50):
    rule = FedAvg(rounds=rounds, clients_per_round=clients_per_round)
    return Setting(rule, codec or wire.FP32(), SPECS, seed, 2)


# -- decisions -----------------------------------------------------------------------------------


def played(setting, purse, clients, rounds, fails):
    """A run by its messages' lengths alone; yields what was spent after each round."""
    standing, spent, plans = Standing(0, SHAPES), Spent(), []
    while standing.round < rounds:
        plan = next_round(setting, purse, standing, spent, clients)
        if plan is None:
            break
        bounds = expected_loads(setting, standing, plan.cohort)
        loads = {
            client: Load(0, load.down) if fails(standing.round, client) else load
            for client, load in bounds.items()
        }
        answered = [c for c in plan.cohort if not fails(standing.round, c)]
        spent = spent.plus(loads, purse.seconds(loads))
        plans.append((plan, bounds, spent))
        standing = Standing(
            standing.round + 1,
            SHAPES,
            {"context": standing.round + 1},
            {**standing.last_seen, **dict.fromkeys(answered, standing.round)},
        )
    return plans, standing, spent


def counted(load, direction):
    return {"up": load.up, "down": load.down, "both": load.up + load.down}[direction]


CODECS = [wire.FP32(), wire.BF16(), wire.Int8(), wire.TopK(0.1, wire.FP16())]


@pytest.mark.parametrize("trial", range(60))
def test_no_budget_is_ever_exceeded_and_what_is_left_is_less_than_a_round(trial):
    draws = np.random.default_rng(trial)
    num_clients = int(draws.integers(1, 12))
    cohort = int(draws.integers(1, num_clients + 1)) if trial % 3 else None
    setting = setting_for(CODECS[trial % 4], cohort, seed=trial)
    clients = sorted(draws.choice(30, num_clients, replace=False).tolist())
    budget = Budget(
        megabytes=float(draws.uniform(0.002, 0.15)),
        direction=("up", "down", "both")[int(draws.integers(3))],
        per=("total", "client")[int(draws.integers(2))],
        seconds=float(draws.uniform(2, 30)) if trial % 2 else None,
    )
    links = (Link(0.5, 2.0, 0.1, 0.25), Link(5.0, 20.0, 0.01, 0.75))
    purse = Purse(budget, draw_links(links, trial, clients))
    failing = {(r, c) for r in range(50) for c in clients if draws.random() < 0.2}
    plans, standing, spent = played(setting, purse, clients, 50, lambda r, c: (r, c) in failing)
    limit, seconds = round(budget.megabytes * 1e6), 0.0
    for plan, bounds, so_far in plans:
        sent = {
            c: Load(0 if (plan.round, c) in failing else b.up, b.down) for c, b in bounds.items()
        }
        seconds += max(link_seconds(purse.links[client], load) for client, load in sent.items())
        each = [counted(load, budget.direction) for load in so_far.loads.values()]
        assert (sum(each) if budget.per == "total" else max(each)) <= limit
        assert budget.seconds is None or seconds <= budget.seconds
    if standing.round < 50:  # then nothing that could come next would have fitted
        bounds = expected_loads(setting, standing, clients)
        cohort = (
            clients
            if budget.per == "client"
            else plan_round(setting, standing.round, clients).cohort
        )
        more = {c: counted(bounds[c], budget.direction) for c in cohort}
        used = {c: counted(spent.loads.get(c, Load()), budget.direction) for c in clients}
        slow = max(link_seconds(purse.links[c], bounds[c]) for c in cohort)
        out_of_time = budget.seconds is not None and seconds + slow > budget.seconds
        if budget.per == "client":
            out_of_bytes = all(used[c] + more[c] > limit for c in clients)
        else:
            out_of_bytes = sum(used.values()) + sum(more.values()) > limit
        assert out_of_time or out_of_bytes


@pytest.mark.parametrize("trial", range(30))
def test_the_horizon_is_the_run_itself_where_every_client_answers(trial):
    draws = np.random.default_rng(100 + trial)
    clients = list(range(int(draws.integers(2, 12))))
    setting = setting_for(CODECS[trial % 4], int(draws.integers(1, len(clients) + 1)), seed=trial)
    per = ("total", "client")[trial % 2]
    links = draw_links((Link(),), 0, clients)
    purse = Purse(Budget(megabytes=float(draws.uniform(0.003, 0.1)), per=per), links)
    plans, standing, spent = played(setting, purse, clients, 50, lambda r, c: False)
    forecast = horizon(setting, purse, Standing(0, SHAPES), clients, 50)
    assert forecast.rounds == standing.round == len(plans)
    assert forecast.total.up == sum(load.up for load in spent.loads.values())
    assert forecast.total.down == sum(load.down for load in spent.loads.values())
    assert forecast.seconds == spent.seconds
    if plans:
        assert forecast.first.up == sum(load.up for load in plans[0][1].values())


def test_with_messages_of_one_length_the_horizon_is_a_division():
    setting = Setting(FedAvg(rounds=99, clients_per_round=3), wire.FP32(), {}, 0, 1)
    setting = replace(setting, specs={"context": TensorSpec()})
    shapes = {"context": (4, 32)}
    message = len(wire.encode(wire.FP32(), {"context": torch.zeros(4, 32)}))
    for rounds in (1, 2, 7):
        for extra, expected in ((-1, rounds - 1), (0, rounds), (3 * message, rounds)):
            size = 3 * 2 * message * rounds + extra
            purse = Purse(Budget(megabytes=size / 1e6))
            assert purse.num_bytes == size
            assert horizon(setting, purse, Standing(0, shapes), range(10), 99).rounds == expected
        one_way = Purse(Budget(megabytes=3 * message * rounds / 1e6, direction="up"))
        assert horizon(setting, one_way, Standing(0, shapes), range(10), 99).rounds == rounds
    assert horizon(setting, Purse(), Standing(0, shapes), range(10), 99).rounds == 99
    capped = horizon(setting, purse, Standing(0, shapes), range(10), 2)
    assert capped.rounds == 2  # rounds always cap


def test_clients_who_have_spent_their_budget_are_not_drawn_again():
    setting = setting_for(clients_per_round=2)
    (load,) = set(expected_loads(setting, Standing(0, SHAPES), [0]).values())
    purse = Purse(Budget(megabytes=2 * (load.up + load.down) / 1e6, per="client"))
    plans, standing, _ = played(setting, purse, list(range(7)), 50, lambda r, c: False)
    drawn = [client for plan, _, _ in plans for client in plan.cohort]
    assert {drawn.count(client) for client in range(7)} == {2}
    assert standing.round == 7
    assert [len(plan.cohort) for plan, _, _ in plans] == [2] * 7


def test_without_a_budget_nothing_is_refused_and_the_draw_is_the_same():
    setting = setting_for(clients_per_round=3)
    wide = Purse(
        Budget(megabytes=1e6, per="client", seconds=1e9), draw_links((Link(),), 0, [*range(9)])
    )
    for round in range(5):
        plans = [
            next_round(setting, purse, Standing(round, SHAPES), Spent(), range(9))
            for purse in (Purse(), wide)
        ]
        assert plans[0] == plans[1]


def test_a_rule_that_sends_nothing_spends_nothing():
    setting = Setting(LocalOnly(rounds=5), wire.FP32(), {}, 0, 1)
    forecast = horizon(setting, Purse(Budget(megabytes=1e-6)), Standing(0, {}), range(4), 5)
    assert (forecast.rounds, forecast.total, forecast.seconds) == (5, Load(), 0.0)


def test_what_is_left_is_of_the_budgets_own_kind():
    spent = Spent({0: Load(300, 100), 1: Load(50, 700)}, 2.5)
    assert Purse().left(spent) == {}
    for budget, left in (
        (Budget(megabytes=0.002), 850),
        (Budget(megabytes=0.002, direction="up"), 1650),
        (Budget(megabytes=0.002, per="client"), 1250),
        (Budget(megabytes=0.002, per="client", direction="up"), 1700),
    ):
        assert Purse(budget).left(spent) == {"comm/budget_left_bytes": left}
    assert Purse(Budget(seconds=4.0)).left(spent) == {"time/budget_left_s": 1.5}


def test_seconds_are_latency_and_bits_of_the_slowest_client():
    slow, fast = Link(1.0, 4.0, 0.5), Link(10.0, 40.0, 0.1)
    purse = Purse(Budget(), {0: slow, 1: fast})
    assert link_seconds(slow, Load(250_000, 500_000)) == pytest.approx(0.5 + 2.0 + 0.5 + 1.0)
    assert link_seconds(slow, Load(0, 500_000)) == pytest.approx(0.5 + 1.0)
    loads = {0: Load(1000, 1000), 1: Load(1000, 1000)}
    assert purse.seconds(loads) == pytest.approx(1.0 + 0.008 + 0.002)
    assert purse.seconds({1: Load(1000, 1000)}) == pytest.approx(0.2 + 0.0008 + 0.0002)
    assert Purse().seconds(loads) == 0.0


def test_links_are_drawn_by_name_in_their_shares():
    links = (Link(1.0, fraction=0.3), Link(2.0, fraction=0.5), Link(3.0, fraction=0.2))
    drawn = draw_links(links, 0, range(10, 20))
    assert [list(drawn.values()).count(link) for link in links] == [3, 5, 2]
    assert drawn == draw_links(links, 0, range(10, 20))
    assert drawn != draw_links(links, 1, range(10, 20))
    assert set(draw_links(links, 0, range(7))) == set(range(7))
    assert draw_links((), 0, range(7)) == {}


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(megabytes=1e-4), "megabytes = 0.0001 (100 bytes, direction both, per total)"),
        (Budget(megabytes=1e-4, per="client", direction="up"), "direction up, per client"),
        (Budget(seconds=1e-3), "seconds = 0.001 admits no round"),
    ],
)
def test_a_budget_below_one_round_is_told_with_what_one_round_needs(budget, said):
    setting = setting_for(clients_per_round=3)
    purse = Purse(budget, draw_links((Link(),), 0, range(9)))
    assert horizon(setting, purse, Standing(0, SHAPES), range(9), 50).rounds == 0
    (fault,) = no_round_error(setting, purse, Standing(0, SHAPES), range(9)).faults
    assert said in fault
    if budget.megabytes:
        enough = float(fault.split("Allow at least ")[1].split(",")[0])
        purse = Purse(replace(budget, megabytes=enough))
        assert horizon(setting, purse, Standing(0, SHAPES), range(9), 50).rounds >= 1


@pytest.mark.parametrize(
    "unreliable",
    [
        Participation(availability=0.6),
        Participation(trace=((0, 1, 2, 3), (0, 1))),
        Participation(dropout=0.4),
        Participation(speed_spread=1.0, deadline=4.0),
    ],
)
def test_no_run_answers_the_budgets_of_clients_of_which_some_spend_theirs_sooner(unreliable):
    """A round of the smaller run has clients left out that the larger one still has."""
    setting = replace(setting_for(), participation=unreliable)

    def fails(round, client):
        return client in unreliable.absent(setting.seed, round, range(4))

    plans = {}
    for megabytes in (0.02, 0.06):
        purse = Purse(Budget(megabytes, per="client"))
        found, _, _ = played(setting, purse, range(4), 60, fails)
        plans[megabytes] = [plan for plan, _, _ in found]
    assert plans[0.02] != plans[0.06][: len(plans[0.02])]
    steady, each = Training(schedule="constant"), Communication(budget=Budget(1.0, per="client"))
    assert not one_run_answers(steady, each, setting.rule, unreliable)
    together = replace(each, budget=Budget(1.0))
    assert one_run_answers(steady, together, setting.rule, unreliable)


def test_no_run_answers_the_budgets_of_clients_of_unequal_ranks():
    steady, each = Training(schedule="constant"), Communication(budget=Budget(1.0, per="client"))
    answers = [
        one_run_answers(steady, each, HetLoRA(ranks=ranks), Participation())
        for ranks in ((), (2, 2), (4, 1))
    ]
    assert answers == [True, True, False]


@pytest.mark.parametrize(
    ("training", "per", "cohort", "answers"),
    [
        (Training(schedule="cosine"), "total", None, False),
        (Training(schedule="constant"), "total", None, True),
        (Training(schedule="cosine", schedule_span="round"), "total", 3, True),
        (Training(schedule="constant"), "client", 3, False),
        (Training(schedule="constant"), "client", None, True),
    ],
)
def test_one_run_answers_all_budgets_only_if_no_horizon_enters_it(training, per, cohort, answers):
    terms = Communication(budget=Budget(megabytes=1.0, per=per))
    setting = setting_for(clients_per_round=cohort)
    assert one_run_answers(training, terms, setting.rule, Participation()) == answers
    forecast = horizon(setting, Purse(Budget(megabytes=0.02)), Standing(0, SHAPES), range(4), 50)
    scheduled = rounds_to_schedule(training, 50, forecast)
    falls = training.schedule == "cosine" and training.schedule_span == "run"
    assert scheduled == (forecast.rounds if falls else 50)
    assert 0 < forecast.rounds < 50


# -- config --------------------------------------------------------------------------------------


def test_directions_take_the_common_codec_or_their_own():
    both = load_config({}, ["communication.codec=bf16"]).communication
    assert (both.uplink, both.downlink) == (wire.BF16(), wire.BF16())
    thin = load_config(
        {}, ["communication.codec={name: top_k, fraction: 0.05, values: int8}"]
    ).communication
    assert (thin.uplink, thin.downlink) == (wire.TopK(0.05, wire.Int8()), wire.Int8())
    own = load_config({}, ["communication.up=int8", "communication.down=fp16"]).communication
    assert (own.uplink, own.downlink) == (wire.Int8(), wire.FP16())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("communication.down=top_k", "'top_k' is not known"),
        ("communication.budget.megabytes=0", "communication.budget.megabytes = 0.0"),
        ("communication.budget.megabytes='1 MB'", "must be a number or null"),
        ("communication.budget.direction=sideways", "one of up, down, both"),
        ("communication.budget.seconds=3", "not allowed without links"),
        ("communication.links=[{fraction: 0.5}]", "sum to 0.5; they must sum to 1"),
        ("communication.links=[{up_mbs: 1}]", "communication.links[0].up_mbs is not a setting"),
        ("communication.links=[{up_mbps: -1}]", "communication.links[0].up_mbps = -1.0"),
        ("communication.links={up_mbps: 1}", "must be a list of mappings"),
        ("communication.max_update_norm=0", "communication.max_update_norm = 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_path(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config({}, [override])
    assert said in caught.value.faults[0]


NO_FEEDBACK = {
    "exchange": ("learner=pfedmoap", "says a client's whole prompt anew"),
    "flora": ("learner=lora", "adapters drawn anew"),
}


@pytest.mark.parametrize("rule", NO_FEEDBACK)
def test_a_codec_that_feeds_back_is_refused_where_updates_do_not_add_up(rule):
    learner, why = NO_FEEDBACK[rule]
    backbone = "transformers" if learner == "learner=lora" else "open_clip"
    pair = [learner, f"backbone={backbone}", f"federation={rule}"]
    for path in ("communication.codec", "communication.up"):
        with pytest.raises(ConfigError) as caught:
            load_config({}, [*pair, f"{path}={{name: top_k, fraction: 0.2}}"])
        (fault,) = caught.value.faults
        assert fault.startswith(f"{path} = top_k is not allowed with federation={rule}: ")
        assert why in fault
        assert f"Use {path}=int8, bf16, fp16 or fp32, or another federation." in fault
        assert load_config({}, [*pair, f"{path}=int8"]).federation.name == rule
    both = ["communication.codec=top_k", "communication.up=fp16"]  # which sends no update in top_k
    assert load_config({}, [*pair, *both]).communication.uplink == wire.FP16()


def test_every_other_rule_goes_with_a_codec_that_feeds_back():
    refused = {kind.name for kind in FEDERATIONS if kind().feedback_fault() is not None}
    assert refused == set(NO_FEEDBACK)
