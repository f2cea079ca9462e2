"""One communication round, from the server's side. Start reading here.

A round is: draw a cohort, broadcast what it has to know, let every client train, aggregate the
updates in client order, step the server. How clients are executed is not this file's business:
``execute`` may run them in this process, or on the actors of a cluster, and may hand groups back in
any order; the result has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fl_core import wire
from fl_core.aggregation import Partial
from fl_core.errors import MessageError
from fl_core.federation import Federation
from fl_core.seeds import generator
from fl_core.types import (
    ClientFailure,
    ClientResult,
    Outcome,
    Params,
    ServerState,
    TensorSpec,
)


@dataclass(frozen=True)
class RoundPlan:
    """Who takes part: the cohort, sorted, in consecutive groups that are trained together."""

    round: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def cohort(self) -> list[int]:
        return [client for group in self.groups for client in group]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one round over all clients: whole messages, and tensor values without headers."""

    up_bytes: int = 0
    down_bytes: int = 0
    up_payload_bytes: int = 0
    down_payload_bytes: int = 0


@dataclass(frozen=True)
class RoundResult:
    """The server's next state, who was accepted, and what it cost. Nothing is kept elsewhere."""

    server: ServerState
    accepted: tuple[int, ...]
    failures: tuple[ClientFailure, ...]
    states: Mapping[int, Params] = field(default_factory=dict)
    traffic: Traffic = Traffic()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round.

    specs: scope and role of the learner's tensors; group_size: clients that are trained together.
    """

    rule: Federation
    codec: wire.Codec
    specs: Mapping[str, TensorSpec]
    seed: int
    group_size: int


Execute = Callable[[RoundPlan, bytes], Iterable[tuple[int, Sequence[Outcome]]]]
"""Runs a plan's groups on a broadcast; yields (index of the group, its clients' outcomes)."""


def plan_round(setting: Setting, round: int, clients: Sequence[int]) -> RoundPlan:
    """Draw the cohort of a round from ``clients`` and cut it into groups."""
    wanted = min(setting.rule.clients_per_round or len(clients), len(clients))
    if wanted < len(clients):
        draws = generator(setting.seed, "cohort", round)
        order = torch.randperm(len(clients), generator=draws)
        cohort = sorted(clients[i] for i in order[:wanted].tolist())
    else:
        cohort = sorted(clients)
    size = setting.group_size
    groups = (tuple(cohort[i : i + size]) for i in range(0, len(cohort), size))
    return RoundPlan(round, tuple(groups))


def run_round(
    setting: Setting,
    server: ServerState,
    plan: RoundPlan,
    last_seen: Mapping[int, int],
    execute: Execute,
) -> RoundResult:
    """One round from ``server``.

    last_seen: the round in which each client last took part; it already knows what has not
    changed since. A client whose message cannot be used is dropped and recorded, like one that
    failed; the round goes on with the others, and leaves the state as it is if nobody is left.
    """
    rule, codec = setting.rule, setting.codec
    broadcast = rule.broadcast(server)
    message = wire.encode(codec, broadcast)
    names = rule.update_names(rule.scopes(setting.specs, plan.round))
    expected = {name: tuple(broadcast[name].shape) for name in names}
    aggregator, partial = rule.aggregator(), Partial()
    accepted: list[ClientResult] = []
    failures: list[ClientFailure] = []
    for outcome in _in_client_order(execute(plan, message)):
        if isinstance(outcome, ClientFailure):
            failures.append(outcome)
            continue
        try:
            update = wire.decode(codec, outcome.message, expected, _sender(plan, outcome))
        except MessageError as error:
            failures.append(ClientFailure(outcome.client, str(error)))
            continue
        partial = aggregator.add(partial, update, outcome.num_examples)
        accepted.append(outcome)
    return RoundResult(
        server=_next_state(rule, server, aggregator.finish(partial)),
        accepted=tuple(result.client for result in accepted),
        failures=tuple(failures),
        states={result.client: result.state for result in accepted if result.state},
        traffic=_traffic(
            setting, server, message, _news(broadcast, server, plan, last_seen), accepted
        ),
        metrics=_weighted_means(accepted),
    )


def _in_client_order(groups: Iterable[tuple[int, Sequence[Outcome]]]) -> Iterator[Outcome]:
    """Outcomes by group index, each as soon as all before it are there."""
    waiting: dict[int, Sequence[Outcome]] = {}
    due = 0
    for index, outcomes in groups:
        waiting[index] = outcomes
        while due in waiting:
            yield from waiting.pop(due)
            due += 1


def _sender(plan: RoundPlan, result: ClientResult) -> str:
    return f"round {plan.round}, client {result.client}"


def _next_state(rule: Federation, server: ServerState, update: Params) -> ServerState:
    if not update:
        return replace(server, round=server.round + 1)
    stepped = rule.server_step(server, update)
    changed = {
        name: server.round + 1
        for name, tensor in stepped.tensors.items()
        if name not in server.tensors or not torch.equal(tensor, server.tensors[name])
    }
    return replace(stepped, round=server.round + 1, changed={**server.changed, **changed})


def _news(
    broadcast: Params, server: ServerState, plan: RoundPlan, last_seen: Mapping[int, int]
) -> list[frozenset[str]]:
    """For each client of the cohort, the tensors that have changed since it last took part."""
    changed = [(name, server.changed.get(name, 0)) for name in broadcast]
    seen = [last_seen.get(client, -1) for client in plan.cohort]
    return [frozenset(name for name, when in changed if when > last) for last in seen]


def _traffic(
    setting: Setting,
    server: ServerState,
    message: wire.Message,
    news: Sequence[frozenset[str]],
    accepted: Sequence[ClientResult],
) -> Traffic:
    """Count the messages: down to every client of the cohort, up from those who were accepted."""
    if not setting.rule.communicates:
        return Traffic()
    broadcast = setting.rule.broadcast(server)
    messages = {frozenset(broadcast): message}
    for names in set(news) - messages.keys():
        messages[names] = wire.encode(setting.codec, {n: broadcast[n] for n in sorted(names)})
    return Traffic(
        up_bytes=sum(len(result.message) for result in accepted),
        down_bytes=sum(len(messages[names]) for names in news),
        up_payload_bytes=sum(wire.payload_bytes(result.message) for result in accepted),
        down_payload_bytes=sum(wire.payload_bytes(messages[names]) for names in news),
    )


def _weighted_means(results: Sequence[ClientResult]) -> dict[str, float]:
    """Mean over clients of each metric, weighted by number of examples, in client order."""
    total = sum(result.num_examples for result in results)
    if not total:
        return {}
    names = sorted({name for result in results for name in result.metrics})
    return {
        name: sum(r.metrics.get(name, 0.0) * r.num_examples for r in results) / total
        for name in names
    }
