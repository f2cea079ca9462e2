"""The coordinator: drives the rounds of one experiment, and commits one after the other.

A plain class. On Ray it lives in an actor of its own, so that a dead driver or a dead coordinator
costs nothing but the round that was under way.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from safetensors.torch import load

from fl_core.errors import FedarenaError
from fl_core.local import check_pair
from fl_core.round import OpenRound, RoundPlan, RoundResult, start_round
from fl_core.setting import Standing
from fl_core.types import ClientResult, Outcome, ServerState
from fl_core.wire import shapes_of
from orchestrator.budget import Spent, next_round
from orchestrator.checkpoint import Counts, RoundRecord, RunStore
from orchestrator.events import Committed, Event, Started
from orchestrator.executors import Executor
from orchestrator.experiment import Experiment, compute_features
from orchestrator.jobs import GroupReply, Job, Reply, TrainJob
from orchestrator.ledger import Ledger, heard_of
from orchestrator.memory import peak_bytes
from orchestrator.placement import Placement
from orchestrator.plan import outline
from orchestrator.privacy import mechanism_of, privacy_metrics
from orchestrator.refining import check_public, refine_on
from orchestrator.scoring import Scorer
from scenarios.evaluate import Metrics


class Uncommitted(NamedTuple):
    """What will be the record of a round; confusion: see ``RunStore.commit``."""

    record: RoundRecord
    confusion: Counts | None = None


class Coordinator:
    """Owns the server state of one experiment; the executor owns where clients run."""

    def __init__(self, experiment: Experiment, executor: Executor, store: RunStore) -> None:
        config = experiment.config
        check_pair(config.learner, config.federation, config.training)
        self.experiment, self.executor, self.store = experiment, executor, store
        check_public(config.federation, experiment.population.public)
        self.refine = refine_on(executor, experiment.population.public)
        self.outline = outline(experiment)
        self.setting, self.evaluation = self.outline.setting, config.evaluation
        self.rule = self.setting.rule
        self.num_examples = experiment.training_population.num_examples.tolist()
        self.ledger = Ledger(store)
        self.placement = Placement(executor.num_slots)
        self._actor_peak = 0
        self.last_seen: Mapping[int, int] = {}
        self.coming: RoundPlan | None = None
        specs = self.setting.specs
        self.scorer = Scorer(experiment, executor, self.placement, self.ledger, specs)

    def run(self) -> Iterator[Event]:
        """Go through all rounds that are not committed yet; yields what happens."""
        yield from compute_features(self.experiment, self.executor)
        server = self._begin()
        yield self._started(server)
        if not self.ledger.num_records:
            first = self._record(RoundResult(server, (), ()), {}, self._references())
            yield self._commit(first, server)
        underway = self._start(server)
        while underway is not None:
            began = time.perf_counter()
            result = underway.finish(self.refine)
            if underway.plan.groups and not result.accepted:
                raise FedarenaError(_nobody_left(underway.plan, result))
            server = result.server
            made = self._record(result, {"time/round_s": time.perf_counter() - began})
            # Clients train on while the record of what they trained before reaches the disk.
            underway = self._start(server)
            yield self._commit(made, server)

    def _begin(self) -> ServerState:
        """Make the actors ready. Returns the last committed state, or the initial one."""
        self.executor.configure(replace(self.experiment.setup(), rule=self.rule))
        self.fresh_state = self.rule.init_client(self.outline.initial, self.setting.specs)
        server = self.ledger.recover() or self.outline.server
        self.last_seen = self.ledger.last_seen
        self.coming = self._next_round(server, self.ledger.spent)
        return server

    def _next_round(self, server: ServerState, spent: Spent) -> RoundPlan | None:
        """The plan of the coming round; None where the run ends before it."""
        if server.round >= self.outline.max_rounds:
            return None
        shapes = shapes_of(self.rule.broadcast(server))
        standing = Standing(server.round, shapes, server.changed, self.last_seen)
        return next_round(self.setting, self.outline.purse, standing, spent, self.outline.clients)

    def _start(self, server: ServerState) -> OpenRound | None:
        """Send the coming round's work out; None where the run ends here."""
        if self.coming is None:
            return None
        return start_round(self.setting, server, self.coming, self.last_seen, self._execute)

    def _execute(self, plan: RoundPlan, message: bytes) -> Iterator[tuple[int, Sequence[Outcome]]]:
        """Give a plan's groups to the slots, one call per slot."""

        def make(slot: int, parts: list[int]) -> Job:
            states, versions = self.ledger.client_states, self.ledger.versions_of
            groups = [(i, versions(plan.groups[i])) for i in parts]
            calls = (self.placement.group(i, slot, group, states) for i, group in groups)
            return TrainJob(plan.round, tuple(calls))

        calls = self.placement.calls(len(plan.groups), make)
        return self._outcomes(plan, self.executor.run(calls, message))

    def _outcomes(
        self, plan: RoundPlan, replies: Iterable[tuple[int, list[Reply]]]
    ) -> Iterator[tuple[int, Sequence[Outcome]]]:
        for slot, groups in replies:
            for reply in groups:
                assert isinstance(reply, GroupReply)  # a TrainJob is answered by nothing else
                self._actor_peak = max(self._actor_peak, reply.peak_bytes)
                if reply.states:
                    self.placement.note(slot, plan.groups[reply.index], plan.round)
                yield reply.index, _with_states(reply)

    def _references(self) -> Metrics:
        """What untrained models reach, to compare every round with; measured before the first."""
        if not self.evaluation.references:
            return Metrics()
        references = self.scorer.references(tuple(self.experiment.references))
        self.ledger.reference = RoundRecord(
            -1, 0, metrics=references.flat, client_metrics=references.by_client
        )
        return references

    def _record(
        self, result: RoundResult, times: dict[str, float], references: Metrics | None = None
    ) -> Uncommitted:
        """What a round did, with the scores of its model where these are due.

        references: what is measured once and kept with the first record.
        """
        server = result.server
        self.ledger.stage(server.round - 1, result.states)
        metrics = {**result.metrics, **times, **self._account(result), **self._health(result)}
        record = RoundRecord(
            round=server.round - 1,
            time_ms=0,
            accepted=result.accepted,
            failures={str(f.client): f.reason for f in result.failures},
            loads={str(client): load for client, load in result.loads.items()},
            metrics=metrics,
        )
        made = Uncommitted(record)
        if self._is_due(server.round):
            made = self._scored(record, server)
        if references is not None:
            record = replace(
                made.record,
                metrics={**made.record.metrics, **references.flat},
                client_metrics={**made.record.client_metrics, **references.by_client},
            )
            made = made._replace(record=record)
        return made

    def _scored(self, record: RoundRecord, server: ServerState) -> Uncommitted:
        """A record with the scores of the round's model."""
        began = time.perf_counter()
        scores = self.scorer.score(server, self.fresh_state)
        took = {"time/eval_s": time.perf_counter() - began}
        record = replace(
            record,
            metrics={**record.metrics, **scores.flat, **took},
            client_metrics=scores.by_client,
            validation=scores.validation.value if scores.validation else None,
        )
        return Uncommitted(record, scores.confusion)

    def _health(self, result: RoundResult) -> dict[str, float]:
        """What a round spent of privacy and of memory, and how many clients failed."""
        metrics: dict[str, float] = {}
        if mechanism_of(self.experiment.config) is not None:
            rounds = self.ledger.rounds_with(heard_of(result.accepted, result.loads))
            metrics |= privacy_metrics(self.experiment.config, self.num_examples, rounds)
        metrics["clients/failed"] = float(len(result.failures))
        metrics["memory/coordinator_peak_bytes"] = float(peak_bytes())
        if self._actor_peak:
            metrics["memory/actor_peak_bytes"] = float(self._actor_peak)
        return metrics

    def _commit(self, made: Uncommitted, server: ServerState) -> Committed:
        """Make a round durable."""
        record = replace(made.record, time_ms=time.time_ns() // 1_000_000)
        written = self.ledger.commit(record, server, made.confusion)
        return Committed(self.store.folder.name, written)

    def _account(self, result: RoundResult) -> dict[str, float]:
        """What a round cost and what that leaves; decides on the round that comes next."""
        purse, round = self.outline.purse, result.server.round - 1
        seconds = purse.seconds(result.loads)
        spent = self.ledger.spent
        if purse.is_limited:  # else nothing depends on it, and it grows with the population
            spent = spent.plus(result.loads, seconds)
        self.last_seen = ChainMap(dict.fromkeys(result.accepted, round), self.ledger.last_seen)
        self.coming = self._next_round(result.server, spent)
        metrics = {f"comm/{name}": float(value) for name, value in vars(result.traffic).items()}
        if purse.links:
            metrics["time/link_s"] = seconds
        return metrics | purse.left(spent)

    def _is_due(self, num_rounds: int) -> bool:
        """Whether the state after so many rounds is scored: now and then, and at the end."""
        every = self.evaluation.every
        return self.coming is None or (every > 0 and num_rounds % every == 0)

    def _started(self, server: ServerState) -> Started:
        population, broadcast = self.experiment.population, self.rule.broadcast(server)
        facts: dict[str, str | int | float] = {
            "num_actors": self.executor.num_slots,
            "num_clients": population.num_clients,
            "num_train": int(self.experiment.training_population.num_examples.sum()),
            "num_test": len(population.global_test),
            "population_hash": population.hash,
            "backbone_hash": self.experiment.backbone.weights_hash,
            "shared_floats": sum(tensor.numel() for tensor in broadcast.values()),
        }
        folder = self.store.folder
        rounds = self.outline.expected_rounds
        return Started(folder.name, folder, rounds, server.round, facts)


def _with_states(reply: GroupReply) -> list[Outcome]:
    """Outcomes with each client's new private state, cut out of the group's message."""
    if not reply.states:
        return list(reply.outcomes)
    stacked = load(reply.states)
    return [
        replace(outcome, state={name: tensor[lane] for name, tensor in stacked.items()})
        if isinstance(outcome, ClientResult)
        else outcome
        for lane, outcome in enumerate(reply.outcomes)
    ]


def _nobody_left(plan: RoundPlan, result: RoundResult) -> str:
    reasons = "\n".join(f"  client {f.client}: {f.reason}" for f in result.failures[:5])
    return (
        f"round {plan.round}: every client of the cohort failed, so the run stops. The rounds "
        f"before it are kept; after a change, go on with `fedarena resume`.\n{reasons}"
    )
