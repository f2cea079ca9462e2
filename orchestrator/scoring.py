"""Scoring a round's models on the executor's slots."""

from __future__ import annotations

import numpy as np
from safetensors.torch import save

from fl_core.types import Params, ServerState
from orchestrator.executors import Executor
from orchestrator.experiment import Experiment
from orchestrator.jobs import Job, ScorePersonalJob, ScoreReply, ScoreSharedJob
from orchestrator.ledger import Ledger
from orchestrator.placement import MakeJob, Placement
from scenarios.evaluate import Metrics, Scored, client_rows, measure, rows_to_score

BLOCK = 8192
"""Rows scored at once with the shared model; fixed, so that no bit depends on the slots."""


class Scorer:
    """Scores the shared model and the clients' own models of one experiment."""

    def __init__(
        self, experiment: Experiment, executor: Executor, placement: Placement, ledger: Ledger
    ) -> None:
        self.population, self.rule = experiment.population, experiment.config.federation
        self.executor, self.placement, self.ledger = executor, placement, ledger
        group_size = experiment.config.resources.group_size
        assert isinstance(group_size, int)  # resolved before the run
        clients = range(self.population.num_clients)
        self.groups = [clients[i : i + group_size] for i in range(0, len(clients), group_size)]
        rows = rows_to_score(self.population)
        self.blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]

    def score(self, server: ServerState, fresh_state: Params) -> Metrics:
        """All metrics of the state after a round; client states come from the ledger."""
        shared = self.rule.shared_model(server)
        broadcast = self.rule.broadcast(server)
        has_own = self.rule.personal_model(broadcast, fresh_state) is not None
        return measure(
            self.population,
            self._shared(shared) if shared is not None else None,
            self._own(broadcast) if has_own else None,
        )

    def _shared(self, model: Params) -> Scored:
        def make(slot: int, parts: list[int], cold: bool) -> Job:
            return ScoreSharedJob(tuple((i, self.blocks[i]) for i in parts))

        replies = self._run(len(self.blocks), make, model)
        return Scored(
            np.concatenate(self.blocks),
            np.concatenate([reply.predicted for reply in replies]),
            np.concatenate([reply.nll for reply in replies]),
        )

    def _own(self, broadcast: Params) -> list[Scored]:
        rows = [[client_rows(self.population, c) for c in group] for group in self.groups]

        def make(slot: int, parts: list[int], cold: bool) -> Job:
            if cold:
                self.placement.forget(slot)
            calls = (
                self.placement.group(
                    i, slot, self.ledger.versions_of(self.groups[i]), self.ledger.client_states
                )
                for i in parts
            )
            return ScorePersonalJob(tuple((call, tuple(rows[call.index])) for call in calls))

        scored = []
        for reply in self._run(len(self.groups), make, broadcast):
            ends = np.cumsum([len(own) for own in rows[reply.index]])[:-1]
            parts = zip(np.split(reply.predicted, ends), np.split(reply.nll, ends), strict=True)
            for own, (predicted, nll) in zip(rows[reply.index], parts, strict=True):
                scored.append(Scored(own, predicted, nll))
        return scored

    def _run(self, num_parts: int, make: MakeJob, model: Params) -> list[ScoreReply]:
        message = save({n: t.contiguous() for n, t in model.items()}) if model else b""
        calls = self.placement.calls(num_parts, make)
        replies = [r for _, answered in self.executor.run(calls, message) for r in answered]
        return sorted((r for r in replies if isinstance(r, ScoreReply)), key=lambda r: r.index)
