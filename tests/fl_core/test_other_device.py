"""Training and scoring on a device that is not the CPU, told apart without owning one.

Fake tensors have shapes and devices but no values; an operation on two devices raises, as on a GPU.
``lazy`` is a device type that torch always knows. What stands here trains there, or is on the wrong
device; what it computes is for the tests that need a GPU.
"""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from clip_toys import NUM_EXAMPLES, problem_of, small_clip, trained
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from toys import linear_problem, uneven_shards

from fl_core.federation import FEDERATIONS, FedAvg
from fl_core.learners import CoOp
from fl_core.local import stack, train_group
from fl_core.optim import SGD
from fl_core.work import Moment, Training, Work, plan_work

ELSEWHERE = torch.device("lazy", 0)
SIZES = [5, 2]
TRAINING = Training(SGD(lr=0.02), local_steps=1, batch_size=4)
PLAIN = Training(SGD(lr=0.02, momentum=0.0), "constant", local_steps=1, batch_size=4)


class Elsewhere:
    """Values with all their tensors, wherever they stand in them, on the pretended device."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self._done = {}

    def __call__(self, value):
        if id(value) not in self._done:
            self._done[id(value)] = (value, self._moved(value))  # the first keeps its id alive
        return self._done[id(value)][1]

    def _moved(self, value):
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            for part in value.modules():
                for held in (part._parameters, part._buffers):
                    held |= {name: self(t) for name, t in held.items() if t is not None}
            return value
        if isinstance(value, torch.device):
            return ELSEWHERE
        if isinstance(value, Mapping):
            return {name: self(part) for name, part in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self, value))
        if isinstance(value, (tuple, list)):
            return type(value)(map(self, value))
        ours = type(value).__module__.startswith("fl_core")
        if dataclasses.is_dataclass(value) or (ours and hasattr(value, "__dict__")):
            copy = object.__new__(type(value))
            for name, part in vars(value).items():
                object.__setattr__(copy, name, self(part))
            return copy
        return value

    def _tensor(self, tensor):
        if isinstance(tensor, FakeTensor):
            return tensor
        fake = self.mode.from_tensor(tensor.detach().as_subclass(torch.Tensor))
        with self.mode:
            moved = fake.to(ELSEWHERE)
            as_it_was = isinstance(tensor, nn.Parameter)
            return nn.Parameter(moved, requires_grad=False) if as_it_was else moved


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip"))


def train_and_score(problem, rule, monkeypatch):
    """A round of a group, and the logits of a few examples; both end where they began."""
    training = PLAIN if rule.faults(problem.learner, TRAINING) else TRAINING
    shards = uneven_shards(NUM_EXAMPLES, SIZES)
    moment = Moment(0, 4, 0)
    work = plan_work(training, moment, range(len(SIZES)), shards)
    specs = problem.learner.tensors(problem.initial)
    server = rule.init_server(problem.initial, specs, len(SIZES))
    states = stack([rule.init_client(problem.initial, specs) for _ in SIZES])
    there = Elsewhere()
    broadcast, states = there(dict(rule.broadcast(server))), there(states)
    problem, work = there(problem), Work(*map(there, work))
    # Which steps nobody sits out, and the clients' numbers: values that fake tensors do not have.
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [0] * len(self), raising=False)
    with there.mode:
        result = train_group(problem, rule, training, broadcast, states, work, moment)
        inputs = {kind: values[:3] for kind, values in problem.inputs.items()}
        logits = problem.learner.logits(problem.initial, problem.frozen, inputs)
    for part in (*result, {"logits": logits}):
        assert all(tensor.device == ELSEWHERE for tensor in part.values())


@pytest.mark.parametrize("learner", trained(), ids=lambda learner: learner.name)
def test_a_learner_trains_and_scores_on_the_device_of_its_backbone(learner, clip, monkeypatch):
    train_and_score(problem_of(learner, clip), FedAvg(rounds=2), monkeypatch)


def rules_of_coop():
    every = (kind(rounds=2) for kind in FEDERATIONS if kind is not FedAvg)
    return [rule for rule in every if not rule.pooled and not rule.faults(CoOp(), PLAIN)]


@pytest.mark.parametrize("rule", rules_of_coop(), ids=lambda rule: rule.name)
def test_a_rule_trains_on_the_device_of_the_backbone(rule, clip, monkeypatch):
    train_and_score(problem_of(CoOp(), clip), rule, monkeypatch)


def test_a_tensor_that_was_left_behind_is_noticed(monkeypatch):
    problem = linear_problem(NUM_EXAMPLES, dtype=torch.float32)

    class Forgetful(type(problem.learner)):
        def loss(self, params, frozen, batch):
            return super().loss(params | {"bias": torch.zeros(3)}, frozen, batch)

    problem = dataclasses.replace(problem, learner=Forgetful())
    with pytest.raises(RuntimeError, match="same device"):
        train_and_score(problem, FedAvg(rounds=2), monkeypatch)
