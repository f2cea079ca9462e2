"""Decisions on the communication budget: pure functions from what was spent to what may come.

A round is admitted only if the upper bound of all its messages fits: whole rounds or none, so the
budget is never exceeded and nothing depends on timing. With a budget per client, those who cannot
afford the round are left out before the cohort is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fl_core.errors import ConfigError
from fl_core.federation import Federation
from fl_core.federation.ranks import UnequalRanks
from fl_core.participation import Participation
from fl_core.round import RoundPlan, plan_round
from fl_core.seeds import generator
from fl_core.setting import Load, Setting, Standing, expected_loads
from fl_core.work import Training
from orchestrator.config import Budget, Communication, Link


@dataclass(frozen=True)
class Spent:
    """What rounds have cost so far: bytes of each client's messages, and seconds on the links."""

    loads: Mapping[int, Load] = field(default_factory=dict)
    seconds: float = 0.0

    def plus(self, loads: Mapping[int, Load], seconds: float) -> Spent:
        """The same after one more round."""
        both = {c: _sum((self.loads.get(c, Load()), load)) for c, load in loads.items()}
        return Spent({**self.loads, **both}, self.seconds + seconds)


@dataclass(frozen=True)
class Purse:
    """A budget, and the link that each client has; no links where none are declared."""

    budget: Budget = field(default_factory=Budget)
    links: Mapping[int, Link] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int | None:
        megabytes = self.budget.megabytes
        return None if megabytes is None else round(megabytes * 1e6)

    @property
    def is_limited(self) -> bool:
        return self.num_bytes is not None or self.budget.seconds is not None

    def affords(self, spent: Spent, client: int, load: Load) -> bool:
        """Whether one client can send and receive this much more."""
        if self.num_bytes is None or self.budget.per == "total":
            return True
        both = _sum((spent.loads.get(client, Load()), load))
        return self.counted(both) <= self.num_bytes

    def admits(self, spent: Spent, loads: Mapping[int, Load]) -> bool:
        """Whether a round with these bytes fits into what is left."""
        if not all(self.affords(spent, client, load) for client, load in loads.items()):
            return False
        if self.num_bytes is not None and self.budget.per == "total":
            total = _sum((*spent.loads.values(), *loads.values()))
            if self.counted(total) > self.num_bytes:
                return False
        seconds = self.budget.seconds
        return seconds is None or spent.seconds + self.seconds(loads) <= seconds

    def seconds(self, loads: Mapping[int, Load]) -> float:
        """Seconds that a round's messages take: its slowest client's, download then upload."""
        if not self.links:
            return 0.0
        return max((link_seconds(self.links[c], load) for c, load in loads.items()), default=0.0)

    def left(self, spent: Spent) -> dict[str, float]:
        """What is left, as metrics; per client, of the client that has used most."""
        left: dict[str, float] = {}
        if self.num_bytes is not None:
            loads = list(spent.loads.values())
            groups = [[load] for load in loads] if self.budget.per == "client" else [loads]
            used = max((self.counted(_sum(group)) for group in groups), default=0)
            left["comm/budget_left_bytes"] = float(self.num_bytes - used)
        if self.budget.seconds is not None:
            left["time/budget_left_s"] = self.budget.seconds - spent.seconds
        return left

    def counted(self, load: Load) -> int:
        parts = {"up": load.up, "down": load.down, "both": load.up + load.down}
        return parts[self.budget.direction]


def link_seconds(link: Link, load: Load) -> float:
    """Seconds for one client's messages; what has no bytes is not sent."""
    ways = ((load.down, link.down_mbps), (load.up, link.up_mbps))
    return sum(link.latency_s + num * 8 / (mbps * 1e6) for num, mbps in ways if num)


def draw_links(links: Sequence[Link], seed: int, clients: Sequence[int]) -> dict[int, Link]:
    """The link of each client: shares of a random order, as large as the fractions allow."""
    if not links:
        return {}
    order = torch.randperm(len(clients), generator=generator(seed, "links")).tolist()
    drawn: dict[int, Link] = {}
    begin, share = 0, 0.0
    for link in links:
        share += link.fraction
        end = round(share * len(clients))
        drawn |= {clients[i]: link for i in order[begin:end]}
        begin = end
    return drawn


def next_round(
    setting: Setting, purse: Purse, standing: Standing, spent: Spent, clients: Sequence[int]
) -> RoundPlan | None:
    """The plan of the coming round, or None where the budget does not admit it."""
    if not purse.is_limited:
        return plan_round(setting, standing.round, clients)
    if purse.num_bytes is not None and purse.budget.per == "client":
        loads = expected_loads(setting, standing, clients)
        clients = [client for client in clients if purse.affords(spent, client, loads[client])]
    if not clients:
        return None
    plan = plan_round(setting, standing.round, clients)
    loads = expected_loads(setting, standing, plan.cohort)
    return plan if purse.admits(spent, loads) else None


@dataclass(frozen=True)
class Forecast:
    """What a run will send if every client answers.

    rounds: those that the budget admits, at most those asked for; first, total: bytes of the first
    round and of all, over all clients; seconds: on the links.
    """

    rounds: int
    first: Load
    total: Load
    seconds: float


def horizon(
    setting: Setting, purse: Purse, standing: Standing, clients: Sequence[int], rounds: int
) -> Forecast:
    """Goes through the rounds with lengths alone: the cohorts are those that the run will draw.

    standing: before the first round. Exact where every client answers and every tensor that is
    not frozen changes in every round; where one stays as it was, the run sends less than is said
    here.
    """
    spent, first = Spent(), Load()
    while standing.round < rounds:
        plan = next_round(setting, purse, standing, spent, clients)
        if plan is None:
            break
        loads = expected_loads(setting, standing, plan.cohort)
        spent = spent.plus(loads, purse.seconds(loads))
        first = first if standing.round else _sum(loads.values())
        standing = _after(setting, standing, plan)
    return Forecast(standing.round, first, _sum(spent.loads.values()), spent.seconds)


def rounds_to_schedule(training: Training, rounds: int, forecast: Forecast) -> int:
    """The rounds over which the learning rate falls: the admitted ones, where it falls over all."""
    return forecast.rounds if _falls_over_run(training) else rounds


def one_run_answers(
    training: Training,
    communication: Communication,
    rule: Federation,
    participation: Participation,
) -> bool:
    """Whether a run's first rounds are the run of every smaller budget.

    Not where the learning rate falls towards the run's end, which the budget sets; nor where a
    budget per client is spent by some sooner than by others, who then go on without them.
    """
    if _falls_over_run(training):
        return False
    return communication.budget.per == "total" or _all_spend_alike(rule, participation)


def no_round_error(
    setting: Setting, purse: Purse, standing: Standing, clients: Sequence[int]
) -> ConfigError:
    """The error for a budget that admits no round at all: what one costs, and what would do."""
    plan = plan_round(setting, 0, clients)
    loads = expected_loads(setting, standing, plan.cohort)
    total, one = _sum(loads.values()), next(iter(loads.values()))
    faults = []
    if purse.num_bytes is not None:
        needed = one if purse.budget.per == "client" else total
        unlimited = replace(purse, budget=replace(purse.budget, seconds=None))
        if not unlimited.admits(Spent(), loads):
            counted = unlimited.counted(needed)
            faults.append(
                f"communication.budget.megabytes = {purse.budget.megabytes:g} "
                f"({purse.num_bytes:,} bytes, direction {purse.budget.direction}, per "
                f"{purse.budget.per}) admits no round: the first needs {counted:,} bytes "
                f"({needed.up:,} up, {needed.down:,} down). Allow at least {counted / 1e6:.6f}, "
                "choose a smaller codec, or draw fewer clients (federation.clients_per_round)."
            )
    seconds = purse.seconds(loads)
    if purse.budget.seconds is not None and seconds > purse.budget.seconds:
        faults.append(
            f"communication.budget.seconds = {purse.budget.seconds:g} admits no round: the first "
            f"takes {seconds:.4g} s on the links ({total.up:,} bytes up, {total.down:,} down). "
            "Allow more, declare faster links, or choose a smaller codec."
        )
    return ConfigError(faults)


def _falls_over_run(training: Training) -> bool:
    """Whether the learning rate follows the end of the run: longer runs then begin otherwise."""
    return training.schedule != "constant" and training.schedule_span == "run"


def _all_spend_alike(rule: Federation, participation: Participation) -> bool:
    """Whether each client sends and receives as much as any other, in every round."""
    are_unequal = isinstance(rule, UnequalRanks) and len(set(rule.ranks)) > 1
    all_answer = replace(participation, speed_spread=0.0) == Participation()
    return rule.clients_per_round is None and all_answer and not are_unequal


def _after(setting: Setting, standing: Standing, plan: RoundPlan) -> Standing:
    """Where lengths stand after a round in which every client answered."""
    done = standing.round + 1
    changed = setting.rule.changes(standing.shapes, setting.specs, standing.round)
    return replace(
        standing,
        round=done,
        changed={**standing.changed, **changed},
        last_seen={**standing.last_seen, **dict.fromkeys(plan.answering, standing.round)},
    )


def _sum(loads: Iterable[Load]) -> Load:
    up, down = 0, 0
    for load in loads:
        up, down = up + load.up, down + load.down
    return Load(up, down)
