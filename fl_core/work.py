"""What the clients of a group do in a round: steps, batches and rates, all drawn beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
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
    clipped. Optimiser state is fresh in every round and never leaves its client. sampling: batches
    are cut from a ``permutation`` of the data, or hold each example with probability batch_size /
    its number of examples (``poisson``), as many steps as with permutations. classes_at_once: the
    prompts of so many classes are computed at a time, and again for the gradient: with many
    classes that needs far less memory, and about half as much time more; None is all.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = "cosine"
    schedule_span: Literal["run", "round"] = "run"
    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    max_grad_norm: float | None = None
    sampling: Literal["permutation", "poisson"] = "permutation"
    classes_at_once: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            local_epochs=">= 1",
            local_steps=">= 1",
            batch_size=">= 1",
            max_grad_norm="> 0",
            classes_at_once=">= 1",
        )

    def num_steps(self, num_examples: int) -> int:
        """Gradient steps per round of a client with this many examples."""
        if not num_examples:
            return 0
        return self.local_steps or self.local_epochs * math.ceil(num_examples / self.batch_size)

    def turns(self, num_examples: int) -> tuple[int, float]:
        """How often an example may be in a batch of a round, and how likely it is each time."""
        steps = self.num_steps(num_examples)
        if self.sampling == "poisson":
            return steps, min(1.0, self.batch_size / max(num_examples, 1))
        return math.ceil(steps / max(1, math.ceil(num_examples / self.batch_size))), 1.0

    def divisor(self, num_drawn: int, num_examples: int) -> int:
        """What sums over a batch are divided by: with Poisson sampling the size to expect, since
        the number drawn would tell who is among them."""
        return min(self.batch_size, num_examples) if self.sampling == "poisson" else num_drawn


Places = npt.NDArray[np.int64]
"""Of the examples of a step among those of a client."""


class Work(NamedTuple):
    """The steps of a group of G clients: S steps of B rows, all drawn beforehand.

    rows: [G, S, B] into the problem's examples; mask: [G, S, B], 0 where a row only fills up;
    active: [G, S], false where a client has no step left; lr: [G, S]; views: [G, S, B], the view
    of each example; clients: [G], their numbers; keys: [G, S], of the draws within each step;
    sizes: [G, S], by what private sums over a batch are divided.
    """

    rows: Tensor
    mask: Tensor
    active: Tensor
    lr: Tensor
    views: Tensor
    clients: Tensor
    keys: Tensor
    sizes: Tensor


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
    """Draw the batches of a group: each epoch is a fresh permutation of the client's rows [n], or
    with Poisson sampling each step is a draw of its own.

    num_views: of each example; a step takes one of them at random.
    """
    chosen = [
        _choose(training, generator(moment.seed, "batches", moment.round, client), len(shard))
        for client, shard in zip(clients, shards, strict=True)
    ]
    num_steps = max(map(len, chosen), default=0)
    width = max((len(places) for own in chosen for places in own), default=1) or 1
    of_steps, of_rows = (len(shards), num_steps), (len(shards), num_steps, width)
    # Filled in NumPy: to set a few values in a tensor costs twenty times as much.
    rows, views = np.zeros(of_rows, np.int64), np.zeros(of_rows, np.int64)
    mask, sizes = np.zeros(of_rows, np.float32), np.zeros(of_steps, np.float32)
    active, keys = np.zeros(of_steps, np.bool_), np.zeros(of_steps, np.int64)
    lr = np.zeros(of_steps, np.float64)
    for lane, (client, shard, own) in enumerate(zip(clients, shards, chosen, strict=True)):
        draws = generator(moment.seed, "step keys", moment.round, client)
        keys[lane, : len(own)] = torch.randint(2**62, (len(own),), generator=draws).numpy()
        active[lane, : len(own)] = True
        held = shard.numpy()
        if len(held):
            # The filler is the client's own: nobody else's data can spoil its sums.
            rows[lane] = held[0]
        if num_views > 1:
            draws = generator(moment.seed, "views", moment.round, client)
            drawn = _draw_views(training, draws, own, num_views)
            views[lane, : len(own), : drawn.shape[1]] = drawn.numpy()
        for step, places in enumerate(own):
            rows[lane, step, : len(places)] = held[places]
            mask[lane, step, : len(places)] = 1.0
            sizes[lane, step] = training.divisor(len(places), len(held))
            lr[lane, step] = learning_rate(training, moment, step / len(own))
    planned = rows, mask, active, lr, views, np.array(clients, np.int64), keys, sizes
    return Work(*map(torch.from_numpy, planned))


def _choose(training: Training, draws: torch.Generator, num_examples: int) -> list[Places]:
    """The places of each step's examples among a client's own."""
    num_steps = training.num_steps(num_examples)
    if training.sampling == "poisson":
        share = training.turns(num_examples)[1]
        drawn = (
            torch.rand(num_examples, generator=draws, dtype=torch.float64) for _ in range(num_steps)
        )
        return [np.flatnonzero(values.numpy() < share) for values in drawn]
    chosen: list[Places] = []
    while len(chosen) < num_steps:
        order = torch.randperm(num_examples, generator=draws).numpy()
        chosen += (
            order[i : i + training.batch_size] for i in range(0, len(order), training.batch_size)
        )
    return chosen[:num_steps]


def _draw_views(
    training: Training, draws: torch.Generator, chosen: Sequence[Places], num_views: int
) -> Tensor:
    """Which view of each example, [S, the client's widest batch].

    On the width of a group's batches its other clients decide, so no draw depends on it.
    """
    width = max(map(len, chosen), default=0)
    if training.sampling == "permutation":
        return torch.randint(num_views, (len(chosen), width), generator=draws)
    views = torch.zeros(len(chosen), width, dtype=torch.int64)
    for step, places in enumerate(chosen):
        views[step, : len(places)] = torch.randint(num_views, (len(places),), generator=draws)
    return views


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
