"""Training tells an example from the classes of its own task only; numbers are NumPy's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from language_toys import BERT, language_problem, small_language
from toys import linear_problem

from fl_core.federation import FedAvg
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.lora import LoRA
from fl_core.local import train_group
from fl_core.optim import SGD
from fl_core.types import Batch, Params
from fl_core.work import Moment, Training, plan_work

CLASSES = ("one", "two", "three", "four", "five")
TASKS = np.array([[True, True, False, False, True], [False, True, True, True, False]])


def tasks_of(labels: torch.Tensor) -> torch.Tensor:
    """A task of each example that has its label: the second where there is a choice."""
    return torch.as_tensor(TASKS[1][labels.numpy()].astype(np.int64))


def with_tasks(problem):
    return replace(problem, tasks=tasks_of(problem.labels), candidates=torch.as_tensor(TASKS))


def by_hand(logits, labels, mask, tasks):
    """Mean over the examples of log(sum over the task's classes of e^z_c) - z_label."""
    losses = [
        np.log(np.exp(z[TASKS[task]]).sum()) - z[label]
        for z, label, kept, task in zip(logits, labels, mask, tasks, strict=True)
        if kept
    ]
    return np.mean(losses)


@pytest.fixture(scope="module")
def text_problem(tmp_path_factory):
    backbone = small_language(tmp_path_factory.mktemp("model"), BERT)
    learner = LoRA(rank=2, head="similarity", dropout=0.0)
    return with_tasks(language_problem(learner, backbone, CLASSES))


def test_the_loss_of_lora_is_the_cross_entropy_over_the_classes_of_each_texts_task(text_problem):
    problem = text_problem
    rows, mask = torch.arange(8), torch.tensor([1.0] * 6 + [0.0] * 2)
    draws = torch.Generator().manual_seed(1)
    params = {
        n: t + 0.3 * torch.randn(t.shape, generator=draws, dtype=t.dtype)
        for n, t in problem.initial.items()
    }
    loss = problem.learner.loss(params, problem.frozen, problem.batch(rows, mask))
    inputs = {kind: values[rows] for kind, values in problem.inputs.items()}
    logits = problem.learner.logits(params, problem.frozen, inputs)
    assert logits.dtype == torch.float64
    facts = logits.numpy(), problem.labels[rows].numpy(), mask.numpy(), problem.tasks[rows].numpy()
    assert float(loss) == pytest.approx(by_hand(*facts), rel=1e-10)
    everything = replace(problem, tasks=None, candidates=None).batch(rows, mask)
    assert float(problem.learner.loss(params, problem.frozen, everything)) > float(loss) + 0.1


def test_a_class_that_is_no_candidate_has_no_gradient():
    logits = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    labels, tasks = torch.tensor([0, 3]), torch.tensor([0, 1])
    batch = Batch({}, labels, torch.ones(2), candidates=torch.as_tensor(TASKS)[tasks])
    masked_cross_entropy(logits, batch).backward()
    expected = np.where(TASKS, 1 / 3, 0.0)
    expected[[0, 1], labels.numpy()] -= 1
    np.testing.assert_allclose(logits.grad.numpy(), expected / 2, atol=1e-15)


def test_a_label_that_an_attacker_moved_out_of_its_task_still_has_a_finite_loss():
    logits = torch.zeros(1, 5, dtype=torch.float64)
    batch = Batch({}, torch.tensor([2]), torch.ones(1), candidates=torch.as_tensor(TASKS)[:1])
    assert float(masked_cross_entropy(logits, batch)) == pytest.approx(np.log(4))


def train(problem, shards) -> Params:
    training = Training(SGD(lr=0.1), local_steps=3, batch_size=8)
    moment = Moment(0, 1, 0)
    work = plan_work(training, moment, range(len(shards)), shards)
    return train_group(problem, FedAvg(), training, problem.initial, {}, work, moment).update


def test_a_group_trains_among_candidates_as_its_clients_alone():
    problem = linear_problem(num_classes=5)
    problem = with_tasks(problem)
    shards = list(torch.split(torch.arange(60), [10, 20, 30]))
    together = train(problem, shards)
    one_by_one = train(replace(problem, vmap_safe=False), shards)
    for name, values in together.items():
        torch.testing.assert_close(values, one_by_one[name], rtol=0, atol=1e-12)
    plain = train(replace(problem, tasks=None, candidates=None), shards)
    assert any(not torch.equal(plain[name], values) for name, values in together.items())
