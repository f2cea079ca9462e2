"""CoOp against its paper's formula, through open_clip's own modules in float64."""

import dataclasses

import open_clip
import pytest
import torch
from torch.nn import functional as F

from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.learners import CoOp, ZeroShot
from fl_core.seeds import generator
from fl_core.types import Batch, Task

CLASSES = ("cat", "hot dog", "fire engine", "sea animal")
TASK = Task(CLASSES, ("a photo of a {}.", "an icon of a {}."))


@pytest.fixture(scope="module")
def both(tiny_clip, tmp_path_factory):
    """Our CLIP and open_clip's, both in float64."""
    folder = prepare_clip(
        OpenClip(model=f"local-dir:{tiny_clip}"), tmp_path_factory.mktemp("b"), {}
    )
    ours = load_clip(folder)
    ours = dataclasses.replace(ours, text=ours.text.to(dtype=torch.float64))
    theirs = open_clip.create_model(f"local-dir:{tiny_clip}").double().eval()
    return ours, theirs


def batch(dim):
    draws = torch.Generator().manual_seed(1)
    features = torch.randn(12, dim, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, len(CLASSES), (12,), generator=draws)
    return Batch({"features": F.normalize(features, dim=-1)}, labels, torch.ones(12))


def reference_loss(model, context, prompts, data):
    """Equation 2 of CoOp: whole rows of 24 tokens through open_clip's transformer."""
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=24)(prompts)
    x = model.token_embedding(tokens)
    m = context.shape[-2]
    context = context.expand(len(prompts), -1, -1)
    x = torch.cat([x[:, :1], context, x[:, 1 + m :]], dim=1) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    x = x[torch.arange(len(prompts)), tokens.argmax(dim=-1)] @ model.text_projection
    logits = model.logit_scale.exp() * data.inputs["features"] @ F.normalize(x, dim=-1).T
    return F.cross_entropy(logits, data.labels)


@pytest.mark.parametrize("class_specific", [False, True])
def test_loss_and_gradient_are_those_of_the_paper(both, class_specific):
    ours, theirs = both
    learner = CoOp(num_tokens=3, class_specific=class_specific)
    frozen = learner.prepare(ours, TASK)
    params = learner.init(frozen, generator(5, "init"))
    if class_specific:  # one context per class must be able to differ
        draws = torch.Generator().manual_seed(2)
        shape = params["context"].shape
        params = {"context": 0.02 * torch.randn(shape, generator=draws, dtype=torch.float64)}
    data = batch(ours.embed_dim)
    gradient, loss = torch.func.grad_and_value(learner.loss)(params, frozen, data)
    context = params["context"].clone().requires_grad_()
    expected = reference_loss(theirs, context, [f"X X X {c}." for c in CLASSES], data)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    scale = context.grad.abs().max()
    assert (gradient["context"] - context.grad).abs().max() / scale < 1e-9


def test_a_context_is_drawn_from_a_normal_of_002(both):
    learner = CoOp(num_tokens=16)
    frozen = learner.prepare(both[0], TASK)
    context = learner.init(frozen, generator(0, "init"))["context"]
    assert context.shape == (16, 32)
    assert context.std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(context.mean().item()) < 0.003


def test_words_start_the_context_and_the_start_is_then_the_zero_shot_prompt(both):
    ours, _ = both
    learner = CoOp(num_tokens=4, init_text="a photo of a")
    frozen = learner.prepare(ours, TASK)
    params = learner.init(frozen, generator(0, "init"))
    assert params["context"].shape == (4, 32)
    data = batch(ours.embed_dim)
    reference = ZeroShot()
    zero_shot = reference.logits({}, reference.prepare(ours, TASK), data.inputs)
    start = learner.logits(params, frozen, data.inputs)
    torch.testing.assert_close(start, zero_shot.double(), rtol=1e-6, atol=1e-6)


def test_an_ensemble_averages_normalised_features_over_templates(both):
    ours, theirs = both
    frozen = ZeroShot(ensemble=True).prepare(ours, TASK)
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=24)
    features = [
        F.normalize(theirs.encode_text(tokenizer([t.format(c) for c in CLASSES])), dim=-1)
        for t in TASK.templates
    ]
    expected = F.normalize(torch.stack(features).mean(dim=0), dim=-1)
    torch.testing.assert_close(frozen.class_features, expected.detach(), rtol=1e-7, atol=1e-7)


def test_masked_rows_do_not_count(both):
    ours, _ = both
    learner = CoOp(num_tokens=3)
    frozen = learner.prepare(ours, TASK)
    params = learner.init(frozen, generator(5, "init"))
    data = batch(ours.embed_dim)
    masked = data._replace(mask=torch.tensor([1.0] * 7 + [0.0] * 5))
    short = Batch({"features": data.inputs["features"][:7]}, data.labels[:7], torch.ones(7))
    ours_loss, expected = (learner.loss(params, frozen, b) for b in (masked, short))
    assert ours_loss.item() == pytest.approx(expected.item(), rel=1e-12)
