"""Scoring a round's models on the executor's slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from safetensors.torch import save

from fl_core.federation.states import as_personal, personal_part
from fl_core.groups import even_groups
from fl_core.learners import Learner
from fl_core.types import Params, ServerState, TensorSpec
from orchestrator.executors import Executor
from orchestrator.experiment import Experiment
from orchestrator.jobs import (
    Block,
    Job,
    OwnPart,
    Rows,
    ScorePersonalJob,
    ScoreReply,
    ScoreSharedJob,
)
from orchestrator.ledger import Ledger
from orchestrator.placement import MakeJob, Placement
from scenarios.evaluate import (
    Exam,
    Metrics,
    compare_with_zero_shot,
    measure,
    measure_reference,
)
from scenarios.majority import measure_majority
from scenarios.protocols import UNSEEN, UnseenClients
from scenarios.scored import AnyScored, chained, nothing_scored, own_metric, scored
from scenarios.targets import Target

BLOCK = 8192
"""Rows scored at once with the shared model; fixed, so that no bit depends on the slots."""

WRITTEN_BLOCK = 256
"""The same where answers are written, which takes far longer."""

OWN_BLOCK = 1024
"""Rows scored at once with each model of a group, where every client scores the same rows."""

WRITERS = 16
"""The most clients whose models write side by side, a quarter of them where these are fewer: so few
texts go through the model at once that training's groups, which fill a core, are too small."""


class Scorer:
    """Scores the shared model, the clients' own models and the references of one experiment."""

    def __init__(
        self,
        experiment: Experiment,
        executor: Executor,
        placement: Placement,
        ledger: Ledger,
        specs: Mapping[str, TensorSpec],
    ) -> None:
        config, self.population = experiment.config, experiment.population
        self.rule, self.learner = config.federation, cast("Learner", config.learner)
        self.headline = config.headline
        self.executor, self.placement, self.ledger = executor, placement, ledger
        self.specs = specs
        self.targets = experiment.targets
        self.newcomer = config.scenario.protocol
        group_size = config.resources.group_size
        assert isinstance(group_size, int)  # resolved before the run
        num = self.population.num_clients
        few = min(WRITERS, -(-num // 4)) if self.headline != "accuracy" else 1
        self.training_groups = even_groups(range(num), group_size)
        self.groups = even_groups(range(num), max(few, group_size))

    def score(self, server: ServerState, fresh_state: Params) -> Metrics:
        """All metrics of the state after a round; client states come from the ledger."""
        shared = self.rule.shared_model(server)
        broadcast = self.rule.broadcast(server)
        start = shared or broadcast
        has_own = self.rule.personal_model(broadcast, fresh_state, self.specs) is not None
        exams = [
            Exam(
                target,
                self._shared(target, shared) if shared is not None else None,
                self._own(target, broadcast, start, fresh_state, has_own),
            )
            for target in self.targets
            if self._suits(target)
        ]
        reference = self.ledger.reference
        own = own_metric(self.headline).replace("eval", "reference/zero_shot", 1)
        zero_shot, headline = reference.client_metrics.get(own), self.headline
        known = list(zero_shot) if zero_shot else None
        measured = measure(self.population, exams, known, headline)
        gains = compare_with_zero_shot(measured.flat, reference.metrics, headline)
        return replace(measured, flat={**measured.flat, **gains})

    def references(self, names: Sequence[str]) -> Metrics:
        """What untrained models reach on every target, and the majority where there are classes."""
        told_apart = self.headline == "accuracy"
        flat = measure_majority(self.population, self.targets) if told_apart else {}
        by_client: dict[str, Sequence[float | None]] = {}
        for name in names:
            exams = [Exam(t, self._shared(t, {}, reference=name)) for t in self.targets]
            measured = measure_reference(self.population, name, exams, self.headline)
            flat.update(measured.flat)
            by_client.update(measured.by_client)
        return Metrics(flat, by_client)

    def _suits(self, target: Target) -> bool:
        return self.learner.transfers or target.classes == self.population.classes

    def _shared(self, target: Target, model: Params, reference: str | None = None) -> AnyScored:
        """The shared model, or a reference, on all rows of a target."""
        candidates = target.row_candidates()
        size = BLOCK if self.headline == "accuracy" else WRITTEN_BLOCK
        starts = range(0, len(target.rows), size)
        blocks = [
            Block(
                index,
                target.rows[start : start + size],
                None if candidates is None else candidates[start : start + size],
            )
            for index, start in enumerate(starts)
        ]

        def make(slot: int, parts: list[int]) -> Job:
            return ScoreSharedJob(target.name, tuple(blocks[i] for i in parts), reference)

        replies = self._run(len(blocks), make, model)
        if not replies:  # clients without a test row, such as the only ones that are unseen
            return nothing_scored(target.rows, self.headline)
        names = replies[0].columns
        return scored(
            target.rows, {n: np.concatenate([r.columns[n] for r in replies]) for n in names}
        )

    def _own(
        self,
        target: Target,
        broadcast: Params,
        start: Params,
        fresh_state: Params,
        has_own: bool,
    ) -> list[AnyScored | None] | None:
        """Every participant's own model on its rows; for newcomers what the protocol gives them.

        start: what newcomers adapt from.
        """
        protocol, clients = self.newcomer, set(self._participants())
        if target.name == UNSEEN and isinstance(protocol, UnseenClients):
            clients = set(self.population.unseen.tolist())
            if protocol.newcomer == "adapt" and (broadcast or fresh_state):
                return self._on_clients(target, start, clients, steps=protocol.adapt_steps)
            if protocol.newcomer == "mean_personal" and has_own:
                mean = self._mean_personal(fresh_state)
                return self._on_clients(target, broadcast, clients, given=mean)
            return None
        return self._on_clients(target, broadcast, clients) if has_own else None

    def _mean_personal(self, fresh_state: Params) -> Params:
        """The mean of the personal tensors of those who have taken part; the first ones before."""
        versions = {
            c: v for c, v in self.ledger.versions_of(self._participants()).items() if v >= 0
        }
        states = list(self.ledger.client_states(versions).values()) or [fresh_state]
        parts = [personal_part(state) for state in states]
        return as_personal(
            {
                name: torch.stack([part[name] for part in parts]).double().mean(0).to(first.dtype)
                for name, first in parts[0].items()
            }
        )

    def _participants(self) -> list[int]:
        unseen = set(self.population.unseen.tolist())
        return [c for c in range(self.population.num_clients) if c not in unseen]

    def _on_clients(
        self,
        target: Target,
        broadcast: Params,
        clients: set[int],
        *,
        steps: int = 0,
        given: Params | None = None,
    ) -> list[AnyScored | None]:
        """The models of ``clients`` on their rows: their own, of a ``given`` state, or what becomes
        of ``broadcast`` in ``steps`` steps.
        """
        groups = self.training_groups if steps else self.groups
        parts, train = self._parts(target, clients, groups), self.population.train

        def make(slot: int, numbers: list[int]) -> Job:
            made = []
            for number in numbers:
                group, rows = parts[number]
                if given is None:
                    fetch, versions = self.ledger.client_states, self.ledger.versions_of(group)
                    call = self.placement.group(number, slot, versions, fetch)
                else:
                    call = self.placement.lend(number, group, given, clients)
                lessons = tuple(train[c] if c in clients else train[c][:0] for c in group)
                candidates = target.own_candidates(group, rows)
                made.append(OwnPart(call, rows, candidates, lessons if steps else ()))
            return ScorePersonalJob(target.name, tuple(made), steps)

        found: dict[int, list[AnyScored]] = {}
        for reply in self._run(len(parts), make, broadcast):
            group, rows = parts[reply.index]
            ends = np.cumsum([len(own) for own in rows])[:-1]
            columns = {n: np.split(values, ends) for n, values in reply.columns.items()}
            for lane, (client, own) in enumerate(zip(group, rows, strict=True)):
                if client in clients:
                    values = {name: parts[lane] for name, parts in columns.items()}
                    found.setdefault(client, []).append(scored(own, values))
        return [
            chained(found[c]) if c in found else None for c in range(self.population.num_clients)
        ]

    def _parts(
        self, target: Target, clients: set[int], groups: Sequence[tuple[int, ...]]
    ) -> list[tuple[tuple[int, ...], tuple[Rows, ...]]]:
        """Groups of clients with the rows of each; rows that all share come in blocks."""
        nothing = np.empty(0, dtype=np.int64)
        parts = []
        for group in groups:
            if not clients.intersection(group):
                continue
            if target.by_client is not None:
                rows = tuple(target.client_rows(c) if c in clients else nothing for c in group)
                parts.append((group, rows))
                continue
            for start in range(0, len(target.rows), OWN_BLOCK):
                block = target.rows[start : start + OWN_BLOCK]
                parts.append((group, tuple(block if c in clients else nothing for c in group)))
        return parts

    def _run(self, num_parts: int, make: MakeJob, model: Params) -> list[ScoreReply]:
        message = save({n: t.contiguous() for n, t in model.items()}) if model else b""
        calls = self.placement.calls(num_parts, make)
        replies = [r for _, answered in self.executor.run(calls, message) for r in answered]
        return sorted((r for r in replies if isinstance(r, ScoreReply)), key=lambda r: r.index)
