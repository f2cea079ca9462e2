"""What holds for every learner and every rule. A new one joins by standing in its union."""

import dataclasses
import json

import pytest
import torch
from toys import Bench, uneven_shards

from fl_core import wire
from fl_core.backbones.clip import OpenClip, load_clip, prepare_clip
from fl_core.errors import ConfigError
from fl_core.federation import FEDERATIONS, Centralised, FedAvg, FedProx
from fl_core.learners import LEARNERS, ZeroShot
from fl_core.local import Moment, Problem, Training, check_pair, plan_work, stack, train_group
from fl_core.optim import SGD
from fl_core.predict import score, score_group
from fl_core.round import Setting, plan_round, run_round
from fl_core.seeds import generator
from fl_core.types import Task

SIZES = [11, 4, 8, 17]
CLASSES = ("cat", "hot dog", "fire engine", "sea animal", "fish")
TRAINING = Training(SGD(lr=0.05), local_epochs=2, batch_size=4)
NEUTRAL = [FedProx(rounds=2, mu=0.0)]
"""Rules at the setting that makes them FedAvg."""


@pytest.fixture(scope="module")
def clip(tiny_clip, tmp_path_factory):
    folder = prepare_clip(
        OpenClip(model=f"local-dir:{tiny_clip}"), tmp_path_factory.mktemp("b"), {}
    )
    return load_clip(folder)


@pytest.fixture(scope="module")
def clip64(clip):
    return dataclasses.replace(clip, text=clip.text.to(dtype=torch.float64))


def trained():
    return [learner for learner in LEARNERS if learner is not ZeroShot]


def problem_of(learner, clip):
    """Forty examples whose features lean towards the text feature of their class."""
    draws = torch.Generator().manual_seed(0)
    zero_shot = ZeroShot().prepare(clip, Task(CLASSES)).class_features
    labels = torch.randint(0, len(CLASSES), (sum(SIZES),), generator=draws)
    noise = torch.randn(len(labels), zero_shot.shape[1], generator=draws).to(zero_shot)
    features = torch.nn.functional.normalize(zero_shot[labels] + 0.1 * noise, dim=-1)
    frozen = learner.prepare(clip, Task(CLASSES))
    initial = learner.init(frozen, generator(0, "init"))
    return Problem(learner, frozen, initial, {"features": features}, labels.to(clip.text.device))


def run(problem, rule, rounds=2, group_size=2, seed=0, reverse=False):
    specs = problem.learner.tensors(problem.initial)
    shards = uneven_shards(sum(SIZES), SIZES)
    if rule.pooled:
        shards = [torch.arange(sum(SIZES))]
    bench = Bench(problem, rule, TRAINING, shards, wire.FP32(), {}, {}, seed, reverse)
    setting = Setting(rule, wire.FP32(), specs, seed, group_size)
    server, results = rule.init_server(problem.initial, specs), []
    for round in range(rounds):
        plan = plan_round(setting, round, range(len(shards)))
        results.append(run_round(setting, server, plan, {}, bench.execute))
        server = results[-1].server
    return results, bench


def all_tensors(results, bench):
    server = results[-1].server.tensors
    clients = {f"{c}/{n}": t for c, state in bench.states.items() for n, t in state.items()}
    return {**server, **clients}


pairs = pytest.mark.parametrize(
    ("learner", "rule"),
    [(kind(), rule(rounds=2)) for kind in trained() for rule in FEDERATIONS],
    ids=lambda part: part.name,
)


@pairs
def test_same_seed_same_bits(learner, rule, clip):
    first = all_tensors(*run(problem_of(learner, clip), rule))
    again = all_tensors(*run(problem_of(learner, clip), rule))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pairs
def test_another_seed_other_bits(learner, rule, clip):
    first = all_tensors(*run(problem_of(learner, clip), rule))
    other = all_tensors(*run(problem_of(learner, clip), rule, seed=1))
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pairs
def test_completion_order_is_irrelevant(learner, rule, clip):
    forward = all_tensors(*run(problem_of(learner, clip), rule, group_size=1))
    backward = all_tensors(*run(problem_of(learner, clip), rule, group_size=1, reverse=True))
    assert all(torch.equal(forward[name], backward[name]) for name in forward)


@pairs
def test_what_is_sent_has_the_names_and_shapes_of_shared_tensors_only(learner, rule, clip):
    problem = problem_of(learner, clip)
    _, bench = run(problem, rule)
    scopes = rule.scopes(learner.tensors(problem.initial), 0)
    shared = {n: list(problem.initial[n].shape) for n, s in scopes.items() if s == "shared"}
    for message in bench.sent.values():
        header = message[8 : 8 + int.from_bytes(message[:8], "little")] or b"{}"
        found = {name: facts["shape"] for name, facts in json.loads(header).items()}
        assert {n: s for n, s in found.items() if n in problem.initial} == shared


@pairs
def test_the_bytes_of_an_update_are_its_shared_tensors_and_a_header(learner, rule, clip):
    problem = problem_of(learner, clip)
    _, bench = run(problem, rule)
    scopes = rule.scopes(learner.tensors(problem.initial), 0)
    floats = sum(problem.initial[n].numel() for n, s in scopes.items() if s == "shared")
    assert {wire.payload_bytes(message) for message in bench.sent.values()} == {4 * floats}


@pairs
def test_the_loss_falls(learner, rule, clip):
    results, _ = run(problem_of(learner, clip), type(rule)(rounds=6), rounds=6)
    losses = [result.metrics["train/loss"] for result in results]
    assert losses[-1] < losses[0]


@pairs
def test_inputs_are_not_mutated(learner, rule, clip):
    problem = problem_of(learner, clip)
    before = {n: t.clone() for n, t in problem.initial.items()}
    features = problem.inputs["features"].clone()
    run(problem, rule)
    assert all(torch.equal(problem.initial[n], t) for n, t in before.items())
    assert torch.equal(problem.inputs["features"], features)


@pairs
def test_a_vectorised_group_equals_its_clients_one_by_one(learner, rule, clip64):
    problem = problem_of(learner, clip64)
    specs = learner.tensors(problem.initial)
    server = rule.init_server(problem.initial, specs)
    fresh = rule.init_client(problem.initial, specs)
    shards, moment = uneven_shards(sum(SIZES), SIZES), Moment(1, 4, 0)

    def train(clients):
        work = plan_work(TRAINING, moment, clients, [shards[c] for c in clients])
        states, broadcast = stack([fresh for _ in clients]), rule.broadcast(server)
        return train_group(problem, rule, TRAINING, broadcast, states, work, moment)

    together = train(range(len(SIZES)))
    for client in range(len(SIZES)):
        alone = train([client])
        for part in ("update", "state", "metrics"):
            for name, value in getattr(alone, part).items():
                ours = getattr(together, part)[name][client]
                scale = value[0].abs().max().clamp(min=1e-300)
                assert (ours - value[0]).abs().max() / scale <= 1e-10


@pytest.mark.parametrize("kind", trained())
def test_one_fp32_gradient_in_a_group_is_that_of_the_client_alone(kind, clip):
    """With plain SGD at rate 1 the update of one step is minus the gradient."""
    problem, rule = problem_of(kind(), clip), FedAvg()
    one_step = Training(SGD(1.0, momentum=0.0, weight_decay=0.0), "constant", local_steps=1)
    shards, moment = uneven_shards(sum(SIZES), SIZES), Moment(0, 1, 0)

    def step(clients):
        work = plan_work(one_step, moment, clients, [shards[c] for c in clients])
        return train_group(problem, rule, one_step, problem.initial, {}, work, moment).update

    together = step(range(len(SIZES)))
    for client in range(len(SIZES)):
        for name, alone in step([client]).items():
            difference = (together[name][client] - alone[0]).norm() / alone[0].norm()
            assert difference <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", trained())
def test_a_gpu_trains_what_the_cpu_trains_within_1e_3(kind, tiny_clip, tmp_path):
    folder = prepare_clip(OpenClip(model=f"local-dir:{tiny_clip}"), tmp_path, {})
    updates = []
    for device in ("cpu", "cuda"):
        problem = problem_of(kind(), load_clip(folder, device))
        shards, moment = uneven_shards(sum(SIZES), SIZES), Moment(0, 4, 0)
        work = plan_work(TRAINING, moment, range(len(SIZES)), shards)
        result = train_group(problem, FedAvg(), TRAINING, problem.initial, {}, work, moment)
        updates.append({name: tensor.cpu() for name, tensor in result.update.items()})
    for name, on_cpu in updates[0].items():
        assert (updates[1][name] - on_cpu).norm() / on_cpu.norm() <= 1e-3


@pytest.mark.parametrize("rule", NEUTRAL, ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", trained())
def test_a_rule_at_its_neutral_setting_is_fedavg(kind, rule, clip):
    ours = all_tensors(*run(problem_of(kind(), clip), rule))
    fedavg = all_tensors(*run(problem_of(kind(), clip), FedAvg(rounds=2)))
    assert all(torch.equal(ours[name], fedavg[name]) for name in fedavg)


@pytest.mark.parametrize("kind", trained())
def test_one_client_that_holds_everything_is_centralised_training(kind, clip):
    problem = problem_of(kind(), clip)
    central = all_tensors(*run(problem, Centralised(rounds=2)))
    rule, specs = FedAvg(rounds=2), problem.learner.tensors(problem.initial)
    bench = Bench(problem, rule, TRAINING, [torch.arange(sum(SIZES))], wire.FP32(), {}, {})
    setting = Setting(rule, wire.FP32(), specs, 0, 1)
    server = rule.init_server(problem.initial, specs)
    for round in range(2):
        plan = plan_round(setting, round, [0])
        server = run_round(setting, server, plan, {}, bench.execute).server
    for name, tensor in server.tensors.items():
        assert torch.equal(tensor, central[name])


@pytest.mark.parametrize("kind", LEARNERS)
def test_scores_in_a_group_are_the_scores_one_by_one(kind, clip64):
    problem = problem_of(kind(), clip64)
    rows = uneven_shards(sum(SIZES), SIZES)
    models = [{n: t + 0.1 * k for n, t in problem.initial.items()} for k in range(len(SIZES))]
    if not problem.initial:
        pytest.skip("nothing to stack: this learner has one model for all")
    grouped = score_group(problem, stack(models), rows)
    for model, own, scores in zip(models, rows, grouped, strict=True):
        alone = score(problem, model, own)
        assert torch.equal(scores.predicted, alone.predicted)
        torch.testing.assert_close(scores.nll, alone.nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [*LEARNERS, *FEDERATIONS, Training])
def test_every_config_class_is_frozen_and_refuses_unknown_keys(kind):
    assert kind.__pydantic_config__ == {"extra": "forbid"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().name = "other"


def test_a_pair_that_makes_no_sense_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"learner=zero_shot .* federation=fedprox"):
        check_pair(ZeroShot(), FedProx(), Training())
