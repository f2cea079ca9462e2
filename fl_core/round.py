"""One communication round, from the server's side. Start reading here.

A round is: draw a cohort, broadcast what it has to know, let every client train, aggregate the
updates in client order, step the server. How clients are executed is not this file's business:
``execute`` may run them in this process, or on the actors of a cluster, and may hand groups back in
any order; the result has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fl_core import wire
from fl_core.aggregation import Partial
from fl_core.diagnostics import Diagnosis
from fl_core.distillation import Refine, Refined
from fl_core.errors import MessageError
from fl_core.federation import Federation
from fl_core.groups import even_groups
from fl_core.participation import Participation
from fl_core.receive import Announced, in_client_order, receive
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
    """Who takes part: the clients that answer, sorted, in consecutive groups trained together.

    absent: those of the cohort that get the broadcast and do not answer, and why.
    """

    round: int
    groups: tuple[tuple[int, ...], ...]
    absent: Mapping[int, str] = field(default_factory=dict)

    @property
    def cohort(self) -> list[int]:
        """All clients that were drawn, sorted."""
        return sorted([*self.answering, *self.absent])

    @property
    def answering(self) -> list[int]:
        return [client for group in self.groups for client in group]


class Load(NamedTuple):
    """Bytes of one client's messages, headers included."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes of one round over all clients: whole messages, and tensor values without headers.

    What arrived and was refused counts among ``up_bytes``, and not as payload.
    """

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
    loads: Mapping[int, Load] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round.

    up: codec of the updates; specs: scope and role of the learner's tensors; group_size: how many
    clients at most are trained together; down: codec of the broadcast, None for the one that ``up``
    implies; max_update_norm: L2 norm over all tensors of an update above which it is dropped.
    participation: who can be drawn, and who answers.
    """

    rule: Federation
    up: wire.Codec
    specs: Mapping[str, TensorSpec]
    seed: int
    group_size: int
    down: wire.WholeCodec | None = None
    max_update_norm: float | None = None
    participation: Participation = field(default_factory=Participation)

    @property
    def downlink(self) -> wire.WholeCodec:
        return wire.for_broadcast(self.up) if self.down is None else self.down

    def update_shapes(self, round: int, shapes: wire.Shapes) -> dict[str, tuple[int, ...]]:
        """What an update of this round holds, from the shapes of the broadcast."""
        names = self.rule.update_names(self.rule.scopes(self.specs, round))
        return {name: shapes[name] for name in sorted(names)}

    def announced(self, shapes: wire.Shapes) -> Announced:
        """What an update with tensors of these shapes may be as a message."""
        return Announced(self.up, shapes, self.max_update_norm)

    def part(self, client: int, shapes: wire.Shapes) -> wire.Shapes:
        """What of these tensors travels between the server and this client."""
        return self.rule.part_of(client, shapes, self.specs)


@dataclass(frozen=True)
class Standing:
    """All that the lengths of a round's messages depend on.

    shapes: of the broadcast. changed: after how many rounds each tensor last changed. last_seen:
    the round in which each client last took part; it knows what has not changed since.
    """

    round: int
    shapes: wire.Shapes
    changed: Mapping[str, int] = field(default_factory=dict)
    last_seen: Mapping[int, int] = field(default_factory=dict)

    def news(self, client: int) -> frozenset[str]:
        """The tensors of the broadcast that have changed since the client last took part."""
        last = self.last_seen.get(client, -1)
        return frozenset(name for name in self.shapes if self.changed.get(name, 0) > last)


Execute = Callable[[RoundPlan, bytes], Iterable[tuple[int, Sequence[Outcome]]]]
"""Runs a plan's groups on a broadcast; yields (index of the group, its clients' outcomes)."""


def plan_round(setting: Setting, round: int, clients: Sequence[int]) -> RoundPlan:
    """Draw the cohort of a round from ``clients`` and cut those that answer into groups."""
    taking_part = setting.participation
    clients = taking_part.available(setting.seed, round, clients)
    wanted = min(setting.rule.clients_per_round or len(clients), len(clients))
    if wanted < len(clients):
        draws = generator(setting.seed, "cohort", round)
        order = torch.randperm(len(clients), generator=draws)
        cohort = sorted(clients[i] for i in order[:wanted].tolist())
    else:
        cohort = sorted(clients)
    absent = taking_part.absent(setting.seed, round, cohort)
    answering = [client for client in cohort if client not in absent]
    return RoundPlan(round, even_groups(answering, setting.group_size), absent)


def expected_loads(setting: Setting, standing: Standing, clients: Iterable[int]) -> dict[int, Load]:
    """The bytes that each client's messages of a round would have.

    Exact where the client answers; where it fails, an upper bound.
    """
    if not setting.rule.communicates:
        return dict.fromkeys(clients, Load())
    whole = setting.update_shapes(standing.round, standing.shapes)
    lengths: dict[object, int] = {}

    def length(codec: wire.Codec, shapes: wire.Shapes) -> int:
        key = codec, tuple(shapes.items())
        if key not in lengths:
            lengths[key] = wire.message_bytes(codec, shapes)
        return lengths[key]

    loads = {}
    for client in clients:
        news = {name: standing.shapes[name] for name in sorted(standing.news(client))}
        up = length(setting.up, setting.part(client, whole))
        loads[client] = Load(up, length(setting.downlink, setting.part(client, news)))
    return loads


def run_round(
    setting: Setting,
    server: ServerState,
    plan: RoundPlan,
    last_seen: Mapping[int, int],
    execute: Execute,
    *,
    refine: Refine | None = None,
) -> RoundResult:
    """One round from ``server``.

    last_seen: the round in which each client last took part; it already knows what has not
    changed since. A client whose message cannot be used is dropped and recorded, like one that
    failed; the round goes on with the others, and leaves the state as it is if nobody is left.
    refine: what the server trains itself, for rules that do (``fl_core.server_training``).
    """
    broadcast = setting.rule.broadcast(server)
    standing = Standing(plan.round, wire.shapes_of(broadcast), server.changed, last_seen)
    sent = _broadcasts(setting, standing, broadcast)
    whole = setting.update_shapes(plan.round, standing.shapes)
    aggregator, partial = setting.rule.aggregator(server, setting.specs), Partial()
    diagnosis = Diagnosis(server.tensors, setting.specs)
    accepted: list[ClientResult] = []
    failures = [ClientFailure(client, reason) for client, reason in plan.absent.items()]
    arrived: dict[int, int] = {}
    for outcome in in_client_order(execute(plan, sent(frozenset(broadcast), standing.shapes))):
        if isinstance(outcome, ClientFailure):
            failures.append(outcome)
            continue
        announced = setting.announced(setting.part(outcome.client, whole))
        arrived[outcome.client], update = receive(plan.round, outcome, announced)
        if isinstance(update, MessageError):
            failures.append(ClientFailure(outcome.client, str(update)))
            continue
        partial = aggregator.add(partial, update, outcome.num_examples)
        diagnosis.add(update, outcome.num_examples)
        accepted.append(outcome)
    parts = {client: setting.part(client, standing.shapes) for client in plan.cohort}
    down = {client: sent(standing.news(client), shapes) for client, shapes in parts.items()}
    refined = _refined(setting.rule, server, aggregator.finish(partial), refine)
    counted = setting.rule.communicates
    return RoundResult(
        server=_next_state(setting, server, refined.update),
        accepted=tuple(result.client for result in accepted),
        failures=tuple(failures),
        states={result.client: result.state for result in accepted if result.state},
        traffic=_traffic(arrived, down, accepted) if counted else Traffic(),
        loads={c: Load(arrived.get(c, 0), len(m)) if counted else Load() for c, m in down.items()},
        metrics=_weighted_means(accepted) | diagnosis.metrics() | dict(refined.metrics),
    )


def _broadcasts(
    setting: Setting, standing: Standing, broadcast: Params
) -> Callable[[frozenset[str], wire.Shapes], bytes]:
    """The message of some tensors of the broadcast in a client's shapes; each is made once.

    Draws are named by when a tensor last changed: whoever got it then holds the same values.
    """
    made: dict[object, bytes] = {}

    def draws(name: str) -> torch.Generator:
        return generator(setting.seed, "codec", "server", standing.changed.get(name, 0), name)

    def message(names: frozenset[str], shapes: wire.Shapes) -> bytes:
        wanted = {name: shape for name, shape in shapes.items() if name in names}
        key = tuple(wanted.items())
        if key not in made:
            made[key] = wire.encode(setting.downlink, wire.cut(broadcast, wanted), draws)
        return made[key]

    return message


def _refined(
    rule: Federation, server: ServerState, update: Params, refine: Refine | None
) -> Refined:
    """The aggregate after what the server trains itself, where the rule asks for that."""
    if not update or rule.server_training() is None:
        return Refined(update, {})
    if refine is None:
        raise ValueError(f"federation={rule.name} trains on the server: run_round needs a refine")
    return refine(server, update)


def _next_state(setting: Setting, server: ServerState, update: Params) -> ServerState:
    done = server.round + 1
    if not update:
        return replace(server, round=done)
    rule = setting.rule
    stepped = rule.server_step(server, update)
    dates = rule.changes(stepped.tensors, setting.specs, server.round)
    changed = {
        name: dates.get(name, done)
        for name, tensor in stepped.tensors.items()
        if name not in server.tensors or not torch.equal(tensor, server.tensors[name])
    }
    return replace(stepped, round=done, changed={**server.changed, **changed})


def _traffic(
    arrived: Mapping[int, int], down: Mapping[int, bytes], accepted: Sequence[ClientResult]
) -> Traffic:
    """Count the messages: down to every client of the cohort, up from those whose came in."""
    return Traffic(
        up_bytes=sum(arrived.values()),
        down_bytes=sum(len(message) for message in down.values()),
        up_payload_bytes=sum(wire.payload_bytes(result.message) for result in accepted),
        down_payload_bytes=sum(wire.payload_bytes(message) for message in down.values()),
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
