"""Local training: the only training loop, over a group of clients at once.

All clients share the frozen backbone and differ in a few kilobytes, so a group of G clients is a
batch dimension: ``train_group`` runs one client's round under ``torch.vmap``. Shards are unequal;
shorter ones sit out the last steps behind a mask. Every random draw is made before, in
``work.plan_work``, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fl_core.errors import ConfigError
from fl_core.federation import Federation, LocalResult, Trained
from fl_core.federation.base import Penalty, Step, TakeStep
from fl_core.federation.states import where, with_scope
from fl_core.learners import HasClassFeatures, Learner
from fl_core.optim import clip_by_norm
from fl_core.reference import Near, Reference, compute_reference
from fl_core.seeds import generator
from fl_core.types import Batch, Params, Scope, TensorSpec
from fl_core.work import Moment, Training, Work


@dataclass(frozen=True)
class Problem:
    """What every client of an experiment has in common.

    ``frozen`` is the learner's prepared part, ``initial`` its tensors before round 0; ``inputs``
    (each [N, ...]) and ``labels`` [N] are the stored features of all examples, which clients
    address by row. ``views`` (each [N, V, ...]): several random views of each example; where there
    are any, a training step reads one of them instead. ``vmap_safe``: whether the backbone runs
    under ``torch.vmap``. ``tasks`` int64 [N] and ``candidates`` bool [T, C]: example i is chosen
    from the classes ``candidates[tasks[i]]``; None: from all. ``responses``: what may answer an
    example, by row, where the model is to write.
    """

    learner: Learner
    frozen: Any
    initial: Params
    inputs: Params
    labels: Tensor
    vmap_safe: bool = True
    views: Params = field(default_factory=dict)
    tasks: Tensor | None = None
    candidates: Tensor | None = None
    responses: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def num_views(self) -> int:
        return next(iter(self.views.values())).shape[1] if self.views else 0

    @property
    def groupable(self) -> bool:
        """Whether a group's clients can share one ``vmap``; else they take turns."""
        return self.learner.groupable and self.vmap_safe

    def batch(
        self,
        rows: Tensor,
        mask: Tensor,
        views: Tensor | None = None,
        key: Tensor | None = None,
        size: Tensor | None = None,
    ) -> Batch:
        """The examples ``rows`` [B]; ``views`` [B]: which view of each, where there are any.

        key: of the random draws of a training step, an int64 scalar; size: see ``Batch``.
        """
        if self.views and views is not None:
            inputs = {kind: values[rows, views] for kind, values in self.views.items()}
        else:
            inputs = {kind: values[rows] for kind, values in self.inputs.items()}
        open_to = None
        if self.tasks is not None and self.candidates is not None:
            open_to = self.candidates[self.tasks[rows]]  # [B, C]
        return Batch(inputs, self.labels[rows], mask, key, open_to, size)


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
    fresh = _fresh_starts(problem, rule, moment, work.clients) if rule.fresh_start else {}
    work = Work(*(t.to(device) for t in work))
    specs = problem.learner.tensors(problem.initial)
    scopes = rule.scopes(specs, moment.round)

    wanted, reference, places = rule.reference(problem.learner, moment.round), None, work.rows
    if wanted is not None:
        model = {name: tensor for name, tensor in broadcast.items() if name in scopes}
        reference, places = compute_reference(problem, model, work, wanted)

    def client_round(state: Params, own: Work, fresh: Params, places: Tensor) -> LocalResult:
        shown = None if reference is None else (reference, places)
        loop = _Loop(problem, training, own, all_active, specs, scopes, moment.round, fresh, shown)
        return rule.local_round(broadcast, state, loop)

    if problem.groupable:
        return torch.vmap(client_round)(states, work, fresh, places)
    lanes = [
        client_round(lane(states, g), Work(*(t[g] for t in work)), lane(fresh, g), places[g])
        for g in range(len(work.rows))
    ]
    stacked = (stack([one[part] for one in lanes]) for part in range(len(LocalResult._fields)))
    return LocalResult(*stacked)


def _fresh_starts(problem: Problem, rule: Federation, moment: Moment, clients: Tensor) -> Params:
    """A first model of its own for each of G clients, [G, ...]."""
    when = [moment.round] if rule.fresh_each_round else []
    draws = (generator(moment.seed, "fresh start", client, *when) for client in clients.tolist())
    starts = stack([problem.learner.init(problem.frozen, draw) for draw in draws])
    return {name: tensor.to(problem.initial[name]) for name, tensor in starts.items()}


@dataclass(frozen=True)
class _Loop:
    """One client's local steps, handed to the rule as ``train``."""

    problem: Problem
    training: Training
    work: Work  # one client's: [S, B] and [S]
    all_active: Sequence[bool]
    specs: Mapping[str, TensorSpec]
    scopes: Mapping[str, Scope]
    round: int
    fresh: Params
    shown: tuple[Reference, Tensor] | None  # and where the examples stand in it, [S, B]

    @property
    def has_reference(self) -> bool:
        return self.shown is not None

    @property
    def client(self) -> Tensor:
        return self.work.clients

    @property
    def num_steps(self) -> Tensor:
        return self.work.active.sum()

    @property
    def lr(self) -> Tensor:
        return self.work.lr[0] if len(self.work.lr) else self.work.lr.new_ones(())

    def features(self, params: Params) -> Tensor:
        learner = self.problem.learner
        if not isinstance(learner, HasClassFeatures):
            raise ConfigError(f"learner={learner.name} has no class features.")
        return learner.features(params, self.problem.frozen)

    def __call__(
        self,
        start: Params,
        penalty: Penalty | None = None,
        step: TakeStep | None = None,
        near: Near | None = None,
    ) -> Trained:
        fixed = with_scope(start, self.scopes, "frozen")
        params = {name: tensor for name, tensor in start.items() if name not in fixed}
        optimizer = self.training.optimizer

        def objective(batch: Batch, index: int, params: Params) -> tuple[Tensor, Tensor]:
            loss, told = self._loss({**fixed, **params}, batch, index, near)
            return (loss + penalty(params) if penalty else loss), told.detach()

        opt_state = optimizer.init(params)
        total = self.work.lr.new_zeros(2 if near else 1)
        carried = params if step else {}
        for index, nobody_waits in enumerate(self.all_active):
            work = self.work
            parts = work.rows, work.mask, work.views, work.keys, work.sizes
            batch = self.problem.batch(*(part[index] for part in parts))
            gradient = torch.func.grad(partial(objective, batch, index), has_aux=True)
            taken = step(params, carried, gradient) if step else Step(*gradient(params))
            grads, loss = taken.gradient, taken.loss
            if self.training.max_grad_norm:
                grads = clip_by_norm(grads, self.training.max_grad_norm)
            active = work.active[index]
            (new, state), kept = self._step(params, grads, opt_state, index), taken.carried
            if not nobody_waits:
                new, state = where(active, new, params), where(active, state, opt_state)
                kept = where(active, kept, carried)
            params, opt_state, carried = new, state, kept
            total = total + torch.where(active, loss, 0.0)
        means = total / self.work.active.sum().clamp(min=1)
        told = dict(zip(("train/loss", "train/feature_distance"), means.unbind(), strict=False))
        return Trained({**fixed, **params}, told, carried)

    def _loss(
        self, params: Params, batch: Batch, index: int, near: Near | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a step, and what is told of it: the learner's own part, and the distance."""
        if near is None:
            loss = self.problem.learner.loss(params, self.problem.frozen, batch)
            return loss, loss.unsqueeze(0)
        assert self.shown is not None  # a rule gives ``near`` only where there is a reference
        reference, places = self.shown
        loss, distance = reference.loss_and_distance(
            self.problem, params, batch, places[index], near
        )
        return loss + near.weight * distance, torch.stack([loss, distance])

    def _step(
        self, params: Params, grads: Params, opt_state: Params, step: int
    ) -> tuple[Params, Params]:
        lr = self.work.lr[step].to(next(iter(params.values())).dtype)
        return self.training.optimizer.step(params, grads, opt_state, lr)


def stack(lanes: Sequence[Params]) -> Params:
    """Clients' tensors side by side: each [...] becomes [G, ...]."""
    return {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}


def lane(stacked: Params, index: int) -> Params:
    """One client's tensors among those of a group."""
    return {name: tensor[index] for name, tensor in stacked.items()}


def check_pair(learner: Learner, rule: Federation, training: Training) -> None:
    """Refuse a pair of learner and rule that makes no sense, by name, with every reason."""
    faults = rule.faults(learner, training)
    if learner.name == "zero_shot" and rule.name != "fedavg":
        faults.append(
            f"learner=zero_shot trains nothing, so federation={rule.name} has no meaning for it. "
            "Leave the federation out."
        )
    if faults:
        raise ConfigError(faults)
