"""Towers in half precision: they are frozen, and what is trained on them stays in fp32."""

from dataclasses import replace

import pytest
import torch
from clip_toys import CLASSES, problem_of, trained, write_clip

from fl_core.backbones.chunks import ChunkedTower
from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.token_rows import TOKEN_IDS
from fl_core.federation import FedAvg
from fl_core.learners import DPFPL, CoOp, FedCLIP, LoraClip, ZeroShot
from fl_core.local import stack, train_group
from fl_core.optim import SGD, AdamW
from fl_core.predict import score
from fl_core.seeds import generator
from fl_core.types import Task
from fl_core.work import Moment, Training, plan_work

ON_IMAGES = [learner for learner in trained() if TOKEN_IDS not in learner.inputs]
QUIET = {
    DPFPL: DPFPL(num_tokens=4, rank=2, clip=1e3, shared_noise=0.0, personal_noise=0.0),
    LoraClip: LoraClip(alpha=8.0, dropout=0.0),
    FedCLIP: FedCLIP(objective="cross_entropy"),
}
"""Without draws, whose share in a gradient does not depend on the precision."""
PRECISIONS = ["bf16", "fp16"]
LIMIT = {"bf16": 0.1, "fp16": 0.01}
"""On the relative error of an update, of 8 and of 11 significant bits."""


def clip_of(folder, precision, text=None):
    (folder / "model").mkdir(exist_ok=True)
    source = write_clip(folder / "model", text)
    spec = OpenClip(model=f"local-dir:{source}", precision=precision)
    return load_clip(prepare_clip(spec, folder, {}))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return {precision: clip_of(folder, precision) for precision in ("fp32", *PRECISIONS)}


def on(clip, exact):
    """The same problem on other towers; stored inputs are fp32, however they were computed."""
    frozen = exact.learner.prepare(clip, Task(CLASSES))
    initial = exact.learner.init(frozen, generator(0, "init"))
    return replace(exact, frozen=frozen, initial=initial, vmap_safe=clip.groupable)


def update_of(problem, optimizer, num_steps=1):
    """From a broadcast in fp32, as it arrives."""
    rule, moment = FedAvg(), Moment(0, 4, 0)
    training = Training(optimizer, "constant", local_steps=num_steps, batch_size=8)
    specs = problem.learner.tensors(problem.initial)
    broadcast = rule.init_server(problem.initial, specs, 2).tensors
    states = stack([rule.init_client(problem.initial, specs)] * 2)
    work = plan_work(training, moment, [0, 1], [torch.arange(8), torch.arange(8, 20)])
    return train_group(problem, rule, training, broadcast, states, work, moment)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("learner", ON_IMAGES, ids=lambda learner: learner.name)
def test_a_step_on_half_precise_towers_is_nearly_that_on_whole_ones(learner, precision, clips):
    exact = problem_of(QUIET.get(type(learner), learner), clips["fp32"])
    rough = on(clips[precision], exact)
    assert {tensor.dtype for tensor in rough.initial.values()} == {torch.float32}
    plain = SGD(lr=1.0, momentum=0.0, weight_decay=0.0)
    draws = torch.Generator().manual_seed(5)
    start = {n: t + 0.02 * torch.randn(t.shape, generator=draws) for n, t in rough.initial.items()}
    exact, rough = (replace(problem, initial=start) for problem in (exact, rough))
    wanted, found = (update_of(problem, plain) for problem in (exact, rough))
    for name, tensor in wanted.update.items():
        ours = found.update[name]
        assert ours.dtype == torch.float32
        assert (ours - tensor).norm() < LIMIT[precision] * tensor.norm(), name
    assert found.metrics["train/loss"].isfinite().all()


@pytest.mark.parametrize("learner", [*ON_IMAGES, ZeroShot()], ids=lambda learner: learner.name)
def test_scores_on_half_precise_towers_are_nearly_those_on_whole_ones(learner, clips):
    exact = problem_of(learner, clips["fp32"])
    rows = torch.arange(20)
    wanted = score(exact, exact.initial, rows)
    for precision in PRECISIONS:
        rough = on(clips[precision], exact)
        found = score(rough, exact.initial, rows)
        torch.testing.assert_close(found.nll, wanted.nll, rtol=0.1, atol=0.2)


def test_adams_moments_of_small_gradients_are_kept(clips):
    """In bf16 1 - 0.999 is 0, and every step would be."""
    exact = problem_of(CoOp(num_tokens=4), clips["fp32"])
    rough = on(clips["bf16"], exact)
    update = update_of(rough, AdamW(lr=1e-3), num_steps=3).update["context"]
    assert 5e-4 < update.abs().median() < 5e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_towers_of_open_clips_own_modules_and_chunks_of_classes_do_the_same(precision, tmp_path):
    learner = CoOp(num_tokens=4)
    for text in (None, {"scale_attn": True}):
        (tmp_path / str(text)).mkdir()
        whole, half = (clip_of(tmp_path / str(text), p, text) for p in ("fp32", precision))
        assert whole.groupable == (text is None)
        half = replace(half, text=ChunkedTower(half.text, 2))
        exact = problem_of(learner, whole)
        rough = replace(on(half, exact), initial=exact.initial)
        plain = SGD(lr=1.0, momentum=0.0, weight_decay=0.0)
        wanted, found = (update_of(p, plain).update["context"] for p in (exact, rough))
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < LIMIT[precision] * wanted.norm()
