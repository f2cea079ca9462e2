"""Scoring in a client actor: rows with the shared model, and clients' rows with their own ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fl_core.federation import LocalOnly
from fl_core.federation.states import as_personal, personal_part
from fl_core.local import Problem, stack, train_group
from fl_core.per_input import CENTRE, Fit
from fl_core.predict import AnyScores, score, score_group
from fl_core.seeds import derive
from fl_core.types import Params, Scope, TensorSpec
from fl_core.wire import split_residual
from fl_core.work import Moment, plan_work
from orchestrator.held import Held
from orchestrator.jobs import Block, GroupCall, OwnPart, ScorePersonalJob, ScoreReply


@dataclass(frozen=True, kw_only=True)
class Adapting(LocalOnly):
    """Training of a newcomer alone; ``resting``: what is in the shared model but not trained."""

    resting: tuple[str, ...] = ()

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return super().scopes(specs, round) | dict.fromkeys(self.resting, "frozen")


def score_block(held: Held, problem: Problem, params: Params, block: Block) -> ScoreReply:
    """One model on the rows of a block."""
    rows = held.tensor(block.rows)
    candidates = None if block.candidates is None else held.tensor(block.candidates)
    return _reply(block.index, [score(problem, params, rows, candidates)])


def score_own(held: Held, job: ScorePersonalJob, part: OwnPart, broadcast: Params) -> ScoreReply:
    """The clients of a group, each with its own model, or one adapted for it, on its own rows.

    broadcast: what the server sends; to clients that adapt it is the shared model.
    """
    clients = part.call.clients
    fit: Fit | None = None
    if job.adapt_steps:
        models = _adapted(held, part, broadcast, job.adapt_steps)
    else:
        models = stack([_own_model(held, part.call, g, broadcast) for g in range(len(clients))])
        fit = held.per_input.fit(held.specs) if held.per_input else None
    rows = [torch.from_numpy(np.array(client_rows)) for client_rows in part.rows]
    candidates = None if part.candidates is None else held.tensor(part.candidates)
    scores = score_group(held.problem_of(job.target), models, rows, candidates, fit=fit)
    return _reply(part.call.index, scores)


def _own_model(held: Held, call: GroupCall, lane: int, broadcast: Params) -> Params:
    own, _ = split_residual(held.state(call, lane))
    model = held.configured.rule.personal_model(broadcast, own, held.specs)
    if held.per_input is not None and model is not None:
        return model | {CENTRE: held.centre(call.clients[lane])}
    return broadcast if model is None else model


def _adapted(held: Held, part: OwnPart, shared: Params, num_steps: int) -> Params:
    """The model ``shared`` after ``num_steps`` steps on the rows of each client, [G, ...]."""
    setup = held.configured
    training = replace(setup.training, local_steps=num_steps)
    start = {n: shared.get(n, t) for n, t in held.problem.initial.items()}
    scopes = setup.rule.scopes(held.specs, 0)
    resting = {n: t for n, t in shared.items() if n not in start and n in scopes}
    rule = Adapting(rounds=1, resting=tuple(resting))
    moment = Moment(0, 1, derive(setup.seed, "adapt"))
    shards = [torch.from_numpy(np.array(rows)) for rows in part.adapt_on]
    work = plan_work(training, moment, part.call.clients, shards)
    states = stack([as_personal(start) for _ in shards])
    result = train_group(held.problem, rule, training, resting, states, work, moment)
    fixed = {name: tensor.expand(len(shards), *tensor.shape) for name, tensor in resting.items()}
    return fixed | personal_part(result.state)


def _reply(index: int, scores: Sequence[AnyScores]) -> ScoreReply:
    together = (torch.cat(part).cpu() for part in zip(*scores, strict=True))
    columns = dict(zip(scores[0]._fields, together, strict=True))
    if "predicted" in columns:
        columns["predicted"] = columns["predicted"].to(torch.int32)
    return ScoreReply(index, {name: column.numpy() for name, column in columns.items()})
