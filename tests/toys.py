"""Small things that several tests need: a learner whose gradient can be written down by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_core import wire
from fl_core.federation import Federation
from fl_core.learners.base import masked_cross_entropy
from fl_core.local import Problem, stack, train_group
from fl_core.round import RoundPlan
from fl_core.types import Batch, ClientResult, Outcome, Params, TensorSpec
from fl_core.work import Moment, Training, plan_work


@dataclass(frozen=True)
class Linear:
    """Softmax regression: logits = x W + b, with a personal bias where asked for."""

    inputs: ClassVar = ("features",)
    groupable: ClassVar = True
    rows_at_once: ClassVar = 8192
    transfers: ClassVar = False
    name: str = "linear"
    width: int = 6
    num_classes: int = 3
    personal_bias: bool = False

    @property
    def two_parts(self) -> bool:
        return self.personal_bias

    def prepare(self, backbone: Any, task: Any) -> None:
        return None

    def init(self, frozen: None, generator: torch.Generator) -> Params:
        shape = (self.width, self.num_classes)
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1
        return {"weight": weight, "bias": torch.zeros(self.num_classes, dtype=torch.float64)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        bias = TensorSpec("personal" if self.personal_bias else "shared")
        return {"weight": TensorSpec(), "bias": bias}

    def loss(self, params: Params, frozen: None, batch: Batch) -> Tensor:
        return masked_cross_entropy(self.logits(params, frozen, batch.inputs), batch)

    def logits(self, params: Params, frozen: None, inputs: Params) -> Tensor:
        logits = inputs["features"] @ params["weight"]
        return logits + params["bias"] if "bias" in params else logits


class LinearWithFeatures(Linear):
    """The same for rules that compare class features: the normalised columns of its matrix."""

    def features(self, params: Params, frozen: None) -> Tensor:
        return torch.nn.functional.normalize(params["weight"].mT, dim=-1)  # [C, D]


def linear_problem(
    num_examples: int = 60, seed: int = 0, dtype: torch.dtype = torch.float64, **fields: Any
) -> Problem:
    """Gaussian features with labels that a linear model can half explain."""
    learner = Linear(**fields)
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(num_examples, learner.width, generator=draws, dtype=torch.float64)
    truth = torch.randn(learner.width, learner.num_classes, generator=draws, dtype=torch.float64)
    noise = torch.randn(num_examples, learner.num_classes, generator=draws, dtype=torch.float64)
    labels = (features @ truth + noise).argmax(dim=1)
    initial = {n: t.to(dtype) for n, t in learner.init(None, draws).items()}
    return Problem(learner, None, initial, {"features": features.to(dtype)}, labels)


def uneven_shards(num_examples: int, sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive rows, cut to these sizes."""
    rows = torch.arange(num_examples)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@dataclass(frozen=True)
class Bench:
    """Runs the clients of a plan in this process; keeps what was sent, for tests that read it."""

    problem: Problem
    rule: Federation
    training: Training
    shards: Sequence[Tensor]
    codec: wire.Codec
    states: dict[int, Params]
    sent: dict[tuple[int, int], bytes]
    seed: int = 0
    reverse: bool = False

    def execute(self, plan: RoundPlan, message: bytes) -> Iterator[tuple[int, list[Outcome]]]:
        groups = list(enumerate(plan.groups))
        for index, clients in reversed(groups) if self.reverse else groups:
            yield index, self.train(plan.round, clients, message)

    def train(self, round: int, clients: Sequence[int], message: bytes) -> list[Outcome]:
        specs = self.problem.learner.tensors(self.problem.initial)
        server = self.rule.init_server(self.problem.initial, specs, len(self.shards))
        shapes = {n: tuple(t.shape) for n, t in self.rule.broadcast(server).items()}
        broadcast = wire.decode(wire.for_broadcast(self.codec), message, shapes, "server")
        tensors = (*self.problem.inputs.values(), *self.problem.initial.values())
        dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        broadcast = {n: t.to(dtype) for n, t in broadcast.items()}
        moment = Moment(round, self.rule.rounds, self.seed)
        shards = [self.shards[c] for c in clients]
        work = plan_work(self.training, moment, clients, shards)
        fresh = self.rule.init_client(self.problem.initial, specs)
        held = [wire.split_residual(self.states.get(c, fresh)) for c in clients]
        states = stack([own for own, _ in held])
        result = train_group(
            self.problem, self.rule, self.training, broadcast, states, work, moment
        )
        outcomes: list[Outcome] = []
        for lane, client in enumerate(clients):
            update = {n: t[lane] for n, t in result.update.items()}
            draws = wire.named_draws(self.seed, round, client)
            part = self.rule.part_of(client, wire.shapes_of(update), specs)
            message, left = wire.encode_with_feedback(
                self.codec, update, held[lane][1], draws, part
            )
            self.sent[round, client] = message
            self.states[client] = {n: t[lane] for n, t in result.state.items()} | left
            metrics = {n: float(t[lane]) for n, t in result.metrics.items()}
            outcomes.append(
                ClientResult(client, message, len(shards[lane]), self.states[client], metrics)
            )
        return outcomes
