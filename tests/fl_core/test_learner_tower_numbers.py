"""Learners with prompts inside the towers or a network that writes them, against their formulas.

The towers are given (their own tests compare them with open_clip); float64 throughout.
"""

from math import erf

import numpy as np
import pytest
import torch
from clip_toys import CLASSES, in_float64, problem_of, small_clip
from torch.nn import functional as F

from fl_core.errors import ConfigError
from fl_core.learners import VPT, FedTPG, KgCoOp, PromptSRC, ZeroShot
from fl_core.types import Task

B = 7


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return in_float64(small_clip(tmp_path_factory.mktemp("clip")))


def batch_of(problem, num_filler=2):
    rows = torch.cat([torch.arange(B), torch.zeros(num_filler, dtype=torch.int64)])
    return problem.batch(rows, torch.cat([torch.ones(B), torch.zeros(num_filler)]))


def away_from(params, size=0.3):
    draws = torch.Generator().manual_seed(5)
    noise = {n: torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in params.items()}
    return {name: tensor + size * noise[name] for name, tensor in params.items()}


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def loss_of(problem, params, num_filler=2):
    return float(problem.learner.loss(params, problem.frozen, batch_of(problem, num_filler)))


def gradient(problem, params):
    batch = batch_of(problem)
    return torch.func.grad(lambda p: problem.learner.loss(p, problem.frozen, batch))(params)


def image_features(clip, problem, prompts):
    tokens = problem.inputs["tokens"][:B]
    f = clip.vision_tower().encode(tokens, prompts[0], prompts[1:])
    return F.normalize(f, dim=-1).numpy()


def class_weights(clip, context, deep=None):
    layout = clip.prompt_layout(CLASSES, num_tokens=len(context))
    return F.normalize(clip.text.encode(layout, context, deep), dim=-1).numpy()


def test_vpt_is_cross_entropy_of_prompted_images_against_the_template(clip):
    problem = problem_of(VPT(num_tokens=3, depth=2), clip)
    params = away_from(problem.initial)
    assert params["prompts"].shape == (2, 3, 48)
    f, y = image_features(clip, problem, params["prompts"]), problem.labels[:B].numpy()
    w = ZeroShot().prepare(clip, Task(CLASSES)).class_features.numpy()
    expected = -log_softmax(clip.scale * f @ w.T)[np.arange(B), y].mean()
    assert loss_of(problem, params) == pytest.approx(expected, rel=1e-10)
    found = gradient(problem, params)["prompts"]
    assert all(layer.any() for layer in found)


def test_a_shallow_vpt_lets_its_prompts_pass_through_all_layers(clip):
    problem = problem_of(VPT(num_tokens=3, depth=1), clip)
    params = away_from(problem.initial)
    tokens = problem.inputs["tokens"][:B]
    f = F.normalize(clip.vision_tower().encode(tokens, params["prompts"][0]), dim=-1)
    w = ZeroShot().prepare(clip, Task(CLASSES)).class_features
    found = problem.learner.logits(params, problem.frozen, {"tokens": tokens})
    torch.testing.assert_close(found, clip.scale * f @ w.mT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [VPT, PromptSRC])
def test_more_prompted_layers_than_the_tower_has_are_refused(clip, kind):
    with pytest.raises(ConfigError, match=r"depth = 3 .* 2"):
        kind(depth=3).prepare(clip, Task(CLASSES))


TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "one {} more")


@pytest.mark.parametrize("kl_mean", ["examples", "elements"])
def test_promptsrc_holds_both_features_and_the_prediction_near_the_frozen_model(clip, kl_mean):
    learner = PromptSRC(depth=2, text_weight=3.0, image_weight=2.0, kl_weight=0.7, kl_mean=kl_mean)
    problem = problem_of(learner, clip)
    frozen = learner.prepare(clip, Task(CLASSES, TEMPLATES))
    params, y = away_from(problem.initial), problem.labels[:B].numpy()
    w = class_weights(clip, params["context"], params["deep"])
    f = image_features(clip, problem, params["vision"])
    every = [ZeroShot().prepare(clip, Task(CLASSES, (t,))).class_features for t in TEMPLATES]
    w_zs = F.normalize(torch.stack(every).mean(dim=0), dim=-1).numpy()
    f_zs = problem.inputs["features"][:B].numpy()
    log_p, log_q = log_softmax(clip.scale * f @ w.T), log_softmax(clip.scale * f_zs @ w_zs.T)
    kl = (np.exp(log_q) * (log_q - log_p)).sum() / B
    expected = -log_p[np.arange(B), y].mean()
    expected += 3.0 * np.abs(w - w_zs).mean() + 2.0 * np.abs(f - f_zs).mean()
    expected += 0.7 * (kl if kl_mean == "examples" else kl / len(CLASSES))
    found = float(learner.loss(params, frozen, batch_of(problem)))
    assert found == pytest.approx(expected, rel=1e-10)


def test_promptsrc_without_its_terms_is_cross_entropy_with_prompts_in_both_towers(clip):
    learner = PromptSRC(depth=2, text_weight=0.0, image_weight=0.0, kl_weight=0.0)
    problem = problem_of(learner, clip)
    params, y = away_from(problem.initial), problem.labels[:B].numpy()
    w = class_weights(clip, params["context"], params["deep"])
    f = image_features(clip, problem, params["vision"])
    expected = -log_softmax(clip.scale * f @ w.T)[np.arange(B), y].mean()
    assert loss_of(problem, params) == pytest.approx(expected, rel=1e-10)
    found = gradient(problem, params)
    assert set(found) == {"context", "deep", "vision"}
    assert all(tensor.any() for tensor in found.values())


def norm(x, weight, bias):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def written_context(p, names, heads):
    """Cross-attention head by head and query by query, then GEGLU."""
    q, kv = norm(p["query"], *p["norm_query"]) @ p["to_q"].T, norm(names, *p["norm_names"])
    k, v = np.split(kv @ p["to_kv"].T, 2, axis=1)
    size = q.shape[1] // heads
    mixed = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for m in range(len(q)):
            scores = np.array([q[m, part] @ k[c, part] / np.sqrt(size) for c in range(len(names))])
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed[m, part] = weights @ v[:, part]
    hidden = p["query"] + mixed @ p["out"].T + p["out_bias"]
    up = norm(hidden, *p["norm_hidden"]) @ p["up"].T + p["up_bias"]
    value, gate = np.split(up, 2, axis=1)
    gelu = gate * 0.5 * (1 + np.vectorize(erf)(gate / np.sqrt(2)))
    return hidden + (value * gelu) @ p["down"].T + p["down_bias"]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_fedtpg_writes_its_prompt_from_the_bare_class_names(clip, weight):
    problem = problem_of(FedTPG(num_tokens=3, heads=4, weight=weight), clip)
    params = away_from(problem.initial, 0.1)
    names = F.normalize(clip.text.encode_tokens(clip.tokenize(list(CLASSES))), dim=-1).numpy()
    context = written_context({n: t.numpy() for n, t in params.items()}, names, 4)
    w = class_weights(clip, torch.from_numpy(context))
    f, y = problem.inputs["features"][:B].numpy(), problem.labels[:B].numpy()
    expected = -log_softmax(clip.scale * f @ w.T)[np.arange(B), y].mean()
    zs = ZeroShot().prepare(clip, Task(CLASSES)).class_features.numpy()
    expected += weight * ((w - zs) ** 2).sum(axis=1).mean()
    assert loss_of(problem, params) == pytest.approx(expected, rel=1e-9)
    assert all(tensor.any() for tensor in gradient(problem, params).values())


def test_fedtpg_writes_another_prompt_for_other_names(clip):
    problem = problem_of(FedTPG(num_tokens=3), clip)
    learner, others = problem.learner, Task(("boat", "house"))
    frozen = learner.prepare(clip, others)
    ours = learner.context(problem.initial, problem.frozen.names)
    theirs = learner.context(problem.initial, frozen.names)
    assert ours.shape == theirs.shape == (3, 32)
    assert not torch.allclose(ours, theirs)
    assert learner.features(problem.initial, frozen).shape == (2, clip.embed_dim)


def test_fedtpg_whose_network_adds_nothing_is_kgcoop_on_its_queries(clip):
    problem = problem_of(FedTPG(num_tokens=3, weight=2.0), clip)
    silent = {"out", "out_bias", "down", "down_bias"}
    params = {n: torch.zeros_like(t) if n in silent else t for n, t in problem.initial.items()}
    plain = problem_of(KgCoOp(num_tokens=3, init_text=None, weight=2.0), clip)
    expected = loss_of(plain, {"context": params["query"]})
    assert loss_of(problem, params) == pytest.approx(expected, rel=1e-10)


def test_fedtpg_refuses_heads_that_do_not_divide_the_width(clip):
    with pytest.raises(ConfigError, match=r"heads = 5 .* 32"):
        FedTPG(heads=5).prepare(clip, Task(CLASSES))


@pytest.mark.parametrize(
    "learner", [VPT(depth=2), PromptSRC(depth=2), FedTPG()], ids=lambda k: k.name
)
def test_rows_that_fill_up_a_batch_change_no_loss(clip, learner):
    problem = problem_of(learner, clip)
    full = loss_of(problem, problem.initial, 0)
    assert loss_of(problem, problem.initial, 3) == pytest.approx(full, rel=1e-10)
