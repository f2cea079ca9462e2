"""Local training: the only training loop, over a group of clients at once.

All clients share the frozen backbone and differ in a few kilobytes, so a group of G clients is a
batch dimension: ``train_group`` runs one client's round under ``torch.vmap``. Shards are unequal;
shorter ones sit out the last steps behind a mask. Every random draw is made before, in
``plan_work``, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from fl_core.federation import Federation, LocalResult, Trained
from fl_core.federation.base import Penalty, with_scope
from fl_core.learners import Learner
from fl_core.optim import SGD, Optimizer, Schedule, clip_by_norm, decay
from fl_core.seeds import generator
from fl_core.types import Batch, Params, Scope


@dataclass(frozen=True)
class Training:
    """How a client trains in a round.

    local_epochs: passes over the client's data per round; or local_steps: gradient steps per
    round instead. schedule: how the learning rate falls, over the whole ``run`` or anew within
    each ``round`` (``schedule_span``). max_grad_norm: joint L2 norm at which gradients are
    clipped. Optimiser state is fresh in every round and never leaves its client.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = "cosine"
    schedule_span: Literal["run", "round"] = "run"
    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, local_epochs=">= 1", local_steps=">= 1", batch_size=">= 1", max_grad_norm="> 0"
        )

    def num_steps(self, num_examples: int) -> int:
        """Gradient steps per round of a client with this many examples."""
        if not num_examples:
            return 0
        return self.local_steps or self.local_epochs * math.ceil(num_examples / self.batch_size)


@dataclass(frozen=True)
class Problem:
    """What every client of an experiment has in common.

    ``frozen`` is the learner's prepared part, ``initial`` its tensors before round 0; ``inputs``
    (each [N, ...]) and ``labels`` [N] are the stored features of all examples, which clients
    address by row.
    """

    learner: Learner
    frozen: Any
    initial: Params
    inputs: Params
    labels: Tensor

    def batch(self, rows: Tensor, mask: Tensor) -> Batch:
        return Batch({k: v[rows] for k, v in self.inputs.items()}, self.labels[rows], mask)


class Work(NamedTuple):
    """The steps of a group of G clients: S steps of B rows, all drawn beforehand.

    rows: [G, S, B] into the problem's examples; mask: [G, S, B], 0 where a row only fills up;
    active: [G, S], false where a client has no step left; lr: [G, S].
    """

    rows: Tensor
    mask: Tensor
    active: Tensor
    lr: Tensor


class Moment(NamedTuple):
    """Where in a run a round stands: ``round`` of ``rounds``, under the run's seed."""

    round: int
    rounds: int
    seed: int


def plan_work(
    training: Training, moment: Moment, clients: Sequence[int], shards: Sequence[Tensor]
) -> Work:
    """Draw the batches of a group: each epoch is a fresh permutation of the client's rows [n]."""
    steps = [training.num_steps(len(rows)) for rows in shards]
    num_steps = max(steps, default=0)
    width = min(training.batch_size, max((len(rows) for rows in shards), default=1) or 1)
    rows = torch.zeros(len(shards), num_steps, width, dtype=torch.int64)
    mask = torch.zeros(len(shards), num_steps, width)
    active = torch.zeros(len(shards), num_steps, dtype=torch.bool)
    lr = torch.zeros(len(shards), num_steps, dtype=torch.float64)
    for lane, (client, shard) in enumerate(zip(clients, shards, strict=True)):
        draws = generator(moment.seed, "batches", moment.round, client)
        active[lane, : steps[lane]] = True
        if len(shard):
            rows[lane] = shard[
                0
            ]  # filler is the client's own: nobody else's data can spoil its sums
        queue: list[Tensor] = []
        for step in range(steps[lane]):
            if not queue:
                order = torch.randperm(len(shard), generator=draws)
                queue = list(torch.split(shard[order], training.batch_size))
            batch = queue.pop(0)
            rows[lane, step, : len(batch)] = batch
            mask[lane, step, : len(batch)] = 1.0
            lr[lane, step] = learning_rate(training, moment, step / steps[lane])
    return Work(rows, mask, active, lr)


def learning_rate(training: Training, moment: Moment, done: float) -> float:
    """The rate after the share ``done`` of a client's steps in this round.

    With span ``run`` the last step of the last round is one step short of the schedule's end.
    """
    whole_run = training.schedule_span == "run"
    progress = (moment.round + done) / moment.rounds if whole_run else done
    return training.optimizer.lr * decay(training.schedule, progress)


def blank_lanes(work: Work, lanes: Sequence[int]) -> Work:
    """The same work with some lanes idle: shapes, and so the other lanes' bits, stay."""
    keep = torch.ones(len(work.rows), dtype=torch.bool)
    keep[list(lanes)] = False
    return Work(
        work.rows * keep[:, None, None],
        work.mask * keep[:, None, None],
        work.active & keep[:, None],
        work.lr * keep[:, None],
    )


def train_group(
    problem: Problem,
    rule: Federation,
    training: Training,
    broadcast: Params,
    states: Params,
    work: Work,
    moment: Moment,
) -> LocalResult:
    """One round of a group of G clients.

    broadcast: the shared tensors; states: the clients' private state, stacked to [G, ...].
    Returns updates, new states and metrics, each with the leading client axis [G, ...].
    """
    all_active = work.active.all(dim=0).tolist()
    device = problem.labels.device
    work = Work(*(t.to(device) for t in work))
    specs = problem.learner.tensors(problem.initial)
    scopes = rule.scopes(specs, moment.round)

    def client_round(state: Params, own: Work) -> LocalResult:
        loop = _Loop(problem, training, own, all_active, scopes, moment.round)
        return rule.local_round(broadcast, state, loop)

    if problem.learner.groupable:
        return torch.vmap(client_round)(states, work)
    lanes = [
        client_round({n: t[g] for n, t in states.items()}, Work(*(t[g] for t in work)))
        for g in range(len(work.rows))
    ]
    stacked = (stack([lane[part] for lane in lanes]) for part in range(len(LocalResult._fields)))
    return LocalResult(*stacked)


@dataclass(frozen=True)
class _Loop:
    """One client's local steps, handed to the rule as ``train``."""

    problem: Problem
    training: Training
    work: Work  # one client's: [S, B] and [S]
    all_active: Sequence[bool]
    scopes: Mapping[str, Scope]
    round: int

    def __call__(self, start: Params, penalty: Penalty | None = None) -> Trained:
        fixed = with_scope(start, self.scopes, "frozen")
        params = {name: tensor for name, tensor in start.items() if name not in fixed}
        learner, optimizer = self.problem.learner, self.training.optimizer

        def objective(params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
            loss = learner.loss({**fixed, **params}, self.problem.frozen, batch)
            return (loss + penalty(params) if penalty else loss), loss.detach()

        gradient = torch.func.grad(objective, has_aux=True)
        opt_state = optimizer.init(params)
        total_loss = self.work.lr.new_zeros(())
        for step, nobody_waits in enumerate(self.all_active):
            batch = self.problem.batch(self.work.rows[step], self.work.mask[step])
            grads, loss = gradient(params, batch)
            if self.training.max_grad_norm:
                grads = clip_by_norm(grads, self.training.max_grad_norm)
            active = self.work.active[step]
            new = self._step(params, grads, opt_state, step)
            if nobody_waits:
                params, opt_state = new
            else:
                params, opt_state = (
                    _where(active, new[0], params),
                    _where(active, new[1], opt_state),
                )
            total_loss = total_loss + torch.where(active, loss, 0.0)
        mean_loss = total_loss / self.work.active.sum().clamp(min=1)
        return Trained({**fixed, **params}, {"train/loss": mean_loss})

    def _step(
        self, params: Params, grads: Params, opt_state: Params, step: int
    ) -> tuple[Params, Params]:
        lr = self.work.lr[step].to(next(iter(params.values())).dtype)
        return self.training.optimizer.step(params, grads, opt_state, lr)


def _where(condition: Tensor, new: Params, old: Params) -> Params:
    return {name: torch.where(condition, new[name], old[name]) for name in new}


def stack(lanes: Sequence[Params]) -> Params:
    """Clients' tensors side by side: each [...] becomes [G, ...]."""
    return {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}


def check_pair(learner: Learner, rule: Federation, training: Training) -> None:
    """Refuse a pair of learner and rule that makes no sense, by name."""
    if learner.name == "zero_shot" and rule.name != "fedavg":
        raise ConfigError(
            f"learner=zero_shot trains nothing, so federation={rule.name} has no meaning for it. "
            "Leave the federation out."
        )
