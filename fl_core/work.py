"""What the clients of a group do in a round: steps, batches and rates, all drawn beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fl_core.checks import check_fields
from fl_core.optim import SGD, Optimizer, Schedule, decay
from fl_core.seeds import generator


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


class Work(NamedTuple):
    """The steps of a group of G clients: S steps of B rows, all drawn beforehand.

    rows: [G, S, B] into the problem's examples; mask: [G, S, B], 0 where a row only fills up;
    active: [G, S], false where a client has no step left; lr: [G, S]; views: [G, S, B], the view
    of each example; clients: [G], their numbers; keys: [G, S], of the draws within each step.
    """

    rows: Tensor
    mask: Tensor
    active: Tensor
    lr: Tensor
    views: Tensor
    clients: Tensor
    keys: Tensor


class Moment(NamedTuple):
    """Where in a run a round stands: ``round`` of ``rounds``, under the run's seed."""

    round: int
    rounds: int
    seed: int


def plan_work(
    training: Training,
    moment: Moment,
    clients: Sequence[int],
    shards: Sequence[Tensor],
    num_views: int = 0,
) -> Work:
    """Draw the batches of a group: each epoch is a fresh permutation of the client's rows [n].

    num_views: of each example; a step takes one of them at random.
    """
    steps = [training.num_steps(len(rows)) for rows in shards]
    num_steps = max(steps, default=0)
    width = min(training.batch_size, max((len(rows) for rows in shards), default=1) or 1)
    rows = torch.zeros(len(shards), num_steps, width, dtype=torch.int64)
    mask = torch.zeros(len(shards), num_steps, width)
    active = torch.zeros(len(shards), num_steps, dtype=torch.bool)
    lr = torch.zeros(len(shards), num_steps, dtype=torch.float64)
    views = torch.zeros_like(rows)
    keys = torch.zeros(len(shards), num_steps, dtype=torch.int64)
    for lane, (client, shard) in enumerate(zip(clients, shards, strict=True)):
        draws = generator(moment.seed, "batches", moment.round, client)
        of_steps = generator(moment.seed, "step keys", moment.round, client)
        keys[lane, : steps[lane]] = torch.randint(2**62, (steps[lane],), generator=of_steps)
        active[lane, : steps[lane]] = True
        if len(shard):
            # The filler is the client's own: nobody else's data can spoil its sums.
            rows[lane] = shard[0]
        if num_views > 1:
            of_views = generator(moment.seed, "views", moment.round, client)
            own = torch.randint(num_views, (steps[lane], width), generator=of_views)
            views[lane, : steps[lane]] = own
        queue: list[Tensor] = []
        for step in range(steps[lane]):
            if not queue:
                order = torch.randperm(len(shard), generator=draws)
                queue = list(torch.split(shard[order], training.batch_size))
            batch = queue.pop(0)
            rows[lane, step, : len(batch)] = batch
            mask[lane, step, : len(batch)] = 1.0
            lr[lane, step] = learning_rate(training, moment, step / steps[lane])
    numbers = torch.tensor(list(clients), dtype=torch.int64)
    return Work(rows, mask, active, lr, views, numbers, keys)


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
    return work._replace(
        rows=work.rows * keep[:, None, None],
        mask=work.mask * keep[:, None, None],
        active=work.active & keep[:, None],
        lr=work.lr * keep[:, None],
    )
