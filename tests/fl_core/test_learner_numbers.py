"""Each learner against its paper's formula, in plain float64 apart from the code under test.

The text tower is given (its own tests compare it with open_clip); what a paper adds on top of
class features, image features and patches is worked here example by example.
"""

import numpy as np
import pytest
import torch
from clip_toys import CLASSES, in_float64, problem_of, small_clip
from torch.nn import functional as F

from fl_core.errors import ConfigError
from fl_core.learners import (
    ClipAdapter,
    CoCoOp,
    CoOp,
    FedCLIP,
    FedOTP,
    FedPGP,
    KgCoOp,
    Plot,
    ProDA,
    ProGrad,
    PromptFolio,
    ZeroShot,
)
from fl_core.learners.transport import transport_plan
from fl_core.types import Batch, Task

B = 7


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return in_float64(small_clip(tmp_path_factory.mktemp("clip")))


def batch_of(problem, num_filler=2):
    """Seven examples and two rows that only fill up."""
    rows = torch.cat([torch.arange(B), torch.zeros(num_filler, dtype=torch.int64)])
    mask = torch.cat([torch.ones(B), torch.zeros(num_filler)])
    return problem.batch(rows, mask)


def away_from(params, size=0.3):
    """Parameters that are not those of the start, so that no term vanishes."""
    draws = torch.Generator().manual_seed(5)
    noise = {
        n: size * torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in params.items()
    }
    return {name: tensor + noise[name] for name, tensor in params.items()}


def class_weights(clip, context, classes=CLASSES, position="end"):
    """Normalised class features [C, D] as a NumPy array."""
    layout = clip.prompt_layout(classes, num_tokens=len(context), position=position)
    return F.normalize(clip.text.encode(layout, context), dim=-1).detach().numpy()


def cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


def examples(problem, kind="features"):
    return problem.inputs[kind][:B].numpy(), problem.labels[:B].numpy()


def reference(clip):
    return ZeroShot().prepare(clip, Task(CLASSES)).class_features.numpy()


@pytest.mark.parametrize(("distance", "factor"), [("squared", 1.0), ("cosine", 0.5)])
def test_kgcoop_adds_the_mean_squared_distance_to_the_template(clip, distance, factor):
    problem = problem_of(KgCoOp(weight=3.0, distance=distance), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    w, zs = class_weights(clip, params["context"]), reference(clip)
    expected = cross_entropy(clip.scale * f @ w.T, y)
    expected += factor * 3.0 * ((w - zs) ** 2).sum(axis=1).mean()
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(expected, rel=1e-10)
    assert factor * 3.0 * ((w - zs) ** 2).sum(axis=1).mean() == pytest.approx(
        2 * factor * 3.0 * (1 - (w * zs).sum(axis=1)).mean(), rel=1e-9
    )


def gradient(problem, params, batch):
    return torch.func.grad(lambda p: problem.learner.loss(p, problem.frozen, batch))(params)


@pytest.mark.parametrize(
    "neutral",
    [
        KgCoOp(weight=0.0),
        ProGrad(strength=0.0, num_tokens=4, init_text="a photo of a"),
    ],
    ids=lambda learner: learner.name,
)
def test_a_method_on_one_context_is_coop_at_its_neutral_setting(clip, neutral):
    coop = problem_of(CoOp(num_tokens=4, init_text="a photo of a"), clip)
    ours = problem_of(neutral, clip)
    assert torch.equal(ours.initial["context"], coop.initial["context"])
    params, batch = away_from(coop.initial), batch_of(coop)
    mine, plain = gradient(ours, params, batch), gradient(coop, params, batch)
    torch.testing.assert_close(mine["context"], plain["context"], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(
        ours.learner.loss(params, ours.frozen, batch),
        coop.learner.loss(params, coop.frozen, batch),
        rtol=1e-12,
        atol=0,
    )


def test_fedpgp_without_rank_and_contrast_is_coop(clip):
    ours = problem_of(FedPGP(rank=0, mu=0.0), clip)
    coop = problem_of(CoOp(), clip)
    assert set(ours.initial) == {"sigma"}
    assert not ours.learner.two_parts
    assert torch.equal(ours.initial["sigma"], coop.initial["context"])
    batch = batch_of(coop)
    mine = gradient(ours, ours.initial, batch)["sigma"]
    torch.testing.assert_close(mine, gradient(coop, coop.initial, batch)["context"])


def test_promptfolio_with_fraction_0_is_coop_and_leaves_its_own_prompt_alone(clip):
    ours, coop = problem_of(PromptFolio(fraction=0.0), clip), problem_of(CoOp(), clip)
    params, batch = away_from(ours.initial), batch_of(ours)
    mine = gradient(ours, params, batch)
    plain = gradient(coop, {"context": params["context"]}, batch)
    torch.testing.assert_close(mine["context"], plain["context"])
    assert not mine["own_context"].any()


def test_promptfolio_mixes_normalised_class_features(clip):
    problem = problem_of(PromptFolio(fraction=0.3), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    w = 0.7 * class_weights(clip, params["context"])
    w = w + 0.3 * class_weights(clip, params["own_context"])
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(cross_entropy(clip.scale * f @ w.T, y), rel=1e-10)
    shared = problem.learner.logits({"context": params["context"]}, problem.frozen, problem.inputs)
    np.testing.assert_allclose(
        shared[:B].detach(),
        clip.scale * f @ class_weights(clip, params["context"]).T,
        rtol=1e-9,
        atol=1e-9,
    )


def test_fedpgp_contrasts_the_shared_prompt_with_template_and_personal_prompt(clip):
    problem = problem_of(FedPGP(rank=3, mu=0.7, tau=0.4), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    w_sigma = class_weights(clip, params["sigma"])
    w_p = class_weights(clip, params["sigma"] + params["left"] @ params["right"])
    near = np.exp((reference(clip) * w_sigma).sum(axis=1) / 0.4)
    far = np.exp((w_sigma * w_p).sum(axis=1) / 0.4)
    expected = cross_entropy(clip.scale * f @ w_p.T, y) + 0.7 * -np.log(near / (near + far)).mean()
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(expected, rel=1e-10)


def test_fedpgp_gives_a_gradient_to_all_three_parts(clip):
    """The contrast is part of the graph; no term is a plain number."""
    problem = problem_of(FedPGP(rank=3), clip)
    found = gradient(problem, problem.initial, batch_of(problem))
    assert all(tensor.any() for tensor in found.values())
    silent = problem_of(FedPGP(rank=3, mu=0.0), clip)
    other = gradient(silent, silent.initial, batch_of(silent))
    assert not torch.allclose(found["sigma"], other["sigma"])


def plain_sinkhorn(cost, eps, a, b, iterations, capped):
    """Scaling in float64 on one matrix [L, P], without logarithms."""
    k, v = np.exp(-cost / eps), np.ones(cost.shape[1])
    for _ in range(iterations):
        u = a / (k @ v)
        u = np.minimum(u, 1.0) if capped else u
        v = b / (k.T @ u)
    return u[:, None] * k * v[None, :]


def test_a_plan_is_that_of_plain_scaling_and_has_the_marginals():
    cost = torch.rand(3, 5, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plans = transport_plan(cost, 0.1, 200, 0.0).numpy()
    expected = plain_sinkhorn(cost[1, 3].numpy(), 0.1, 1 / 6, 1 / 2, 200, capped=False)
    np.testing.assert_allclose(plans[1, 3], expected, rtol=1e-9)
    np.testing.assert_allclose(plans.sum(axis=-1), 1 / 6, rtol=1e-9)
    np.testing.assert_allclose(plans.sum(axis=-2), 1 / 2, rtol=1e-9)


def test_an_unbalanced_plan_moves_its_mass_and_overdraws_no_patch():
    cost = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plans = transport_plan(cost, 0.1, 500, 0.0, mass=0.8).numpy()
    expected = plain_sinkhorn(cost[2].numpy(), 0.1, 1 / 6, 0.4, 500, capped=True)
    np.testing.assert_allclose(plans[2], expected, rtol=1e-9)
    np.testing.assert_allclose(plans.sum(axis=-2), 0.4, rtol=1e-9)


def test_a_plan_stops_by_itself_whatever_else_is_in_the_batch():
    draws = torch.Generator().manual_seed(0)
    cost = torch.rand(6, 8, 3, generator=draws, dtype=torch.float64)
    cost[0] *= 1e-3  # is done at once, the others later
    together = transport_plan(cost, 0.05, 100, 0.01)
    for i in range(len(cost)):
        assert torch.equal(together[i], transport_plan(cost[i], 0.05, 100, 0.01))
    assert not torch.equal(together[1:], transport_plan(cost[1:], 0.05, 100, 0.0))


def test_a_plan_is_the_one_of_the_iteration_that_moved_less_than_the_tolerance():
    draws = torch.Generator().manual_seed(1)
    cost = torch.rand(5, 8, 3, generator=draws, dtype=torch.float64)
    plans, counts = transport_plan(cost, 0.05, 100, 0.02).numpy(), set()
    for i in range(5):
        before, count = np.zeros(8), 0
        while True:
            count += 1
            plan = plain_sinkhorn(cost[i].numpy(), 0.05, 1 / 8, 1 / 3, count, capped=False)
            rows = plan.sum(axis=1)
            if np.abs(rows - before).sum() < 0.02:
                break
            before = rows
        counts.add(count)
        np.testing.assert_allclose(plans[i], plan, rtol=1e-9)
    assert len(counts) > 1


def test_a_plan_of_a_small_eps_is_finite_in_fp32():
    cost = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0)) * 2
    plan = transport_plan(cost, 0.002, 100, 0.01)
    assert plan.isfinite().all()
    assert plan.sum(dim=(-2, -1)).sub(1).abs().max() < 1e-4


def test_plot_weighs_similarities_by_the_plan_and_lets_no_gradient_through_it(clip):
    learner = Plot(num_prompts=3, num_tokens=4, tolerance=0.0)
    problem = problem_of(learner, clip)
    params, (g, y) = away_from(problem.initial), examples(problem, "patches")
    w = np.stack([class_weights(clip, context) for context in params["context"]])  # [P, C, D]
    logits = np.zeros((B, len(CLASSES)))
    for b in range(B):
        for c in range(len(CLASSES)):
            similarity = g[b] @ w[:, c].T  # [L, P]
            plan = plain_sinkhorn(1 - similarity, 0.1, 1 / 4, 1 / 3, 100, capped=False)
            logits[b, c] = clip.scale * (plan * similarity).sum()
    batch = batch_of(problem)
    found = learner.logits(params, problem.frozen, batch.inputs)[:B].detach()
    np.testing.assert_allclose(found, logits, rtol=1e-9)
    loss = learner.loss(params, problem.frozen, batch)
    assert float(loss) == pytest.approx(cross_entropy(logits, y), rel=1e-10)


def test_the_gradient_of_plot_is_that_at_a_constant_plan(clip):
    learner = Plot(num_prompts=2, num_tokens=4)
    problem = problem_of(learner, clip)
    params, batch = away_from(problem.initial), batch_of(problem)
    patches = batch.inputs["patches"]
    layout = clip.prompt_layout(CLASSES, num_tokens=4)

    def weights(contexts):
        return torch.stack([F.normalize(clip.text.encode(layout, c), dim=-1) for c in contexts])

    def similarity(contexts):
        return torch.einsum("bld,pcd->bclp", patches, weights(contexts))

    plan = transport_plan(1 - similarity(params["context"]), 0.1, 100, 0.01)

    def loss(contexts):
        logits = clip.scale * (plan * similarity(contexts)).sum(dim=(-2, -1))
        return F.cross_entropy(logits[:B], batch.labels[:B])

    expected = torch.func.grad(loss)(params["context"])
    found = gradient(problem, params, batch)["context"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_plot_with_one_prompt_is_coop_on_the_mean_of_the_patches(clip):
    problem = problem_of(Plot(num_prompts=1, num_tokens=16), clip)
    params, (g, _) = away_from(problem.initial), examples(problem, "patches")
    w = class_weights(clip, params["context"][0])
    found = problem.learner.logits(params, problem.frozen, {"patches": torch.from_numpy(g)})
    np.testing.assert_allclose(found.detach(), clip.scale * g.mean(axis=1) @ w.T, rtol=1e-9)


def test_fedotp_shares_the_patches_between_its_two_prompts(clip):
    problem = problem_of(FedOTP(num_tokens=4, gamma=0.7, eps=0.05, tolerance=0.0), clip)
    params, (g, _) = away_from(problem.initial), examples(problem, "patches")

    def expected(contexts):
        w = np.stack([class_weights(clip, context) for context in contexts])
        logits = np.zeros((B, len(CLASSES)))
        for b in range(B):
            for c in range(len(CLASSES)):
                similarity, share = g[b] @ w[:, c].T, 0.7 / len(w)
                plan = plain_sinkhorn(1 - similarity, 0.05, 1 / 4, share, 100, capped=True)
                logits[b, c] = clip.scale * (plan * similarity).sum()
        return logits

    inputs = {"patches": torch.from_numpy(g)}
    both = problem.learner.logits(params, problem.frozen, inputs).detach()
    np.testing.assert_allclose(both, expected([params["context"], params["own_context"]]), 1e-8)
    alone = problem.learner.logits({"context": params["context"]}, problem.frozen, inputs).detach()
    np.testing.assert_allclose(alone, expected([params["context"]]), rtol=1e-8)


def prograd_gradients(clip, problem, params, batch, temperature):
    """Gradients of the two losses, each by itself."""
    layout = clip.prompt_layout(CLASSES, num_tokens=len(params["context"]))
    f, y = batch.inputs["features"][:B], batch.labels[:B]
    zero_shot = clip.scale * f @ torch.from_numpy(reference(clip)).mT

    def logits(context):
        return clip.scale * f @ F.normalize(clip.text.encode(layout, context), dim=-1).mT

    def ce(context):
        return F.cross_entropy(logits(context), y)

    def kl(context):
        p = F.log_softmax(logits(context) / temperature, dim=-1)
        q = F.softmax(zero_shot / temperature, dim=-1)
        return temperature**2 * F.kl_div(p, q, reduction="batchmean")

    return torch.func.grad(ce)(params["context"]), torch.func.grad(kl)(params["context"])


def test_prograd_takes_the_conflicting_part_out_of_the_gradient(clip):
    learner = ProGrad(strength=0.8, temperature=1.3, num_tokens=4)
    problem = problem_of(learner, clip)
    conflicts = 0
    for seed in range(6):
        draws = torch.Generator().manual_seed(seed)
        noise = torch.randn(problem.initial["context"].shape, generator=draws, dtype=torch.float64)
        params = {"context": problem.initial["context"] + 0.2 * noise}
        shuffled = torch.randint(0, len(CLASSES), (B + 2,), generator=draws)
        batch = batch_of(problem)._replace(labels=shuffled)
        g_ce, g_kl = prograd_gradients(clip, problem, params, batch, 1.3)
        dot = (g_ce * g_kl).sum()
        conflicts += int(dot < 0)
        expected = g_ce - 0.8 * dot / (g_kl**2).sum() * g_kl if dot < 0 else g_ce
        found = gradient(problem, params, batch)["context"]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    assert 0 < conflicts < 6


def test_prograd_with_full_strength_never_steps_against_zero_shot(clip):
    problem = problem_of(ProGrad(num_tokens=4), clip)
    for seed in range(4):
        draws = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, len(CLASSES), (B + 2,), generator=draws)
        batch, params = batch_of(problem)._replace(labels=labels), away_from(problem.initial, 0.2)
        _, g_kl = prograd_gradients(clip, problem, params, batch, 1.0)
        found = gradient(problem, params, batch)["context"]
        assert float((found * g_kl).sum()) >= -1e-10


def test_cocoop_shifts_every_token_by_the_same_function_of_the_image(clip):
    problem = problem_of(CoCoOp(num_tokens=3, init_text=None, reduction=8), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    p = {name: tensor.numpy() for name, tensor in params.items()}
    logits = np.zeros((B, len(CLASSES)))
    for b in range(B):
        hidden = np.maximum(p["weight_1"] @ f[b] + p["bias_1"], 0)
        shift = p["weight_2"] @ hidden + p["bias_2"]
        w = class_weights(clip, params["context"] + torch.from_numpy(shift))
        logits[b] = clip.scale * w @ f[b]
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(cross_entropy(logits, y), rel=1e-10)


def test_clip_adapter_mixes_the_adapted_feature_with_the_frozen_one(clip):
    problem = problem_of(ClipAdapter(alpha=0.3), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    down, up = params["down"].numpy(), params["up"].numpy()
    mixed = 0.3 * np.maximum(up @ np.maximum(down @ f.T, 0), 0).T + 0.7 * f
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    expected = cross_entropy(clip.scale * mixed @ reference(clip).T, y)
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(expected, rel=1e-10)


def test_clip_adapter_at_alpha_0_is_zero_shot(clip):
    problem, zero_shot = problem_of(ClipAdapter(alpha=0.0), clip), problem_of(ZeroShot(), clip)
    mine = problem.learner.logits(problem.initial, problem.frozen, problem.inputs)
    frozen = zero_shot.learner.logits({}, zero_shot.frozen, problem.inputs)
    torch.testing.assert_close(mine, frozen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_fedclip_gates_the_image_feature(clip, objective):
    problem = problem_of(FedCLIP(objective=objective), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    p, zs = {name: tensor.numpy() for name, tensor in params.items()}, reference(clip)
    inner = np.tanh(f @ p["weight_1"].T + p["bias_1"]) @ p["weight_2"].T + p["bias_2"]
    gate = np.exp(inner) / np.exp(inner).sum(axis=1, keepdims=True)
    gated = gate * f / np.linalg.norm(gate * f, axis=1, keepdims=True)
    if objective == "cross_entropy":
        expected = cross_entropy(clip.scale * gated @ zs.T, y)
    else:
        pairs = clip.scale * gated @ zs[y].T
        expected = (cross_entropy(pairs, range(B)) + cross_entropy(pairs.T, range(B))) / 2
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(expected, rel=1e-10)


def proda_weights(clip, contexts):
    """Class features [P, C, D]: a quarter in front, a quarter in the middle, half at the end."""
    quarter = len(contexts) // 4
    positions = ["front"] * quarter + ["middle"] * quarter
    positions += ["end"] * (len(contexts) - 2 * quarter)
    parts = zip(contexts, positions, strict=True)
    return np.stack([class_weights(clip, context, position=at) for context, at in parts])


def test_proda_bounds_the_expected_loss_of_a_gaussian_over_class_weights(clip):
    problem = problem_of(ProDA(num_prompts=5, num_tokens=4, spread=0.2), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    w, s = proda_weights(clip, params["context"]), clip.scale
    mean = w.mean(axis=0)
    logits = np.zeros((B, len(CLASSES)))
    for b in range(B):
        for k in range(len(CLASSES)):
            cov = {}
            for i, j in ((y[b], y[b]), (k, k), (y[b], k)):
                per_dim = ((w[:, i] - mean[i]) * (w[:, j] - mean[j])).mean(axis=0)
                cov[i, j] = (f[b] ** 2 * per_dim).sum()
            spread = cov[y[b], y[b]] + cov[k, k] - 2 * cov[y[b], k]
            logits[b, k] = s * f[b] @ mean[k] + s**2 / 2 * spread
    bare = np.stack([class_weights(clip, c, ("",))[0] for c in params["context"]])
    overlap = np.mean([abs(bare[i] @ bare[j]) for i in range(5) for j in range(5) if i != j])
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(cross_entropy(logits, y) + 0.2 * overlap, rel=1e-9)
    predicted = problem.learner.logits(params, problem.frozen, problem.inputs)[:B].detach()
    np.testing.assert_allclose(predicted, s * f @ mean.T, rtol=1e-9)


def test_a_step_of_proda_draws_its_batch_of_prompts_from_every_place(clip):
    """8 prompts: 2 in front, 2 in the middle, 4 at the end; a batch of 4 has 1, 1 and 2 of them."""
    drawing = problem_of(ProDA(num_prompts=8, num_tokens=4, prompt_batch=4), clip)
    whole = problem_of(ProDA(num_prompts=4, num_tokens=4), clip)
    params, seen = away_from(drawing.initial), set()
    for key in range(12):
        batch = batch_of(drawing)._replace(key=torch.tensor(key))
        ours = torch.func.grad(lambda p, b=batch: drawing.learner.loss(p, drawing.frozen, b))(
            params
        )["context"]
        chosen = [i for i in range(8) if ours[i].any()]
        assert [sum(i in place for i in chosen) for place in ((0, 1), (2, 3), (4, 5, 6, 7))] == [
            1,
            1,
            2,
        ]
        alone = {"context": params["context"][chosen]}
        expected = gradient(whole, alone, batch_of(whole))["context"]
        torch.testing.assert_close(ours[chosen], expected, rtol=1e-9, atol=1e-12)
        seen.update(chosen)
    assert seen == set(range(8))


def test_proda_with_a_prompt_batch_of_all_draws_none(clip):
    parts = [
        problem_of(ProDA(num_prompts=4, num_tokens=4, prompt_batch=b), clip) for b in (4, None)
    ]
    batch = batch_of(parts[0])._replace(key=torch.tensor(3))
    losses = [p.learner.loss(away_from(p.initial), p.frozen, batch) for p in parts]
    assert torch.equal(*losses)


@pytest.mark.parametrize(("num_prompts", "prompt_batch"), [(4, 3), (8, 3), (8, 2), (32, 1)])
def test_proda_refuses_a_batch_in_which_some_prompts_would_have_no_turn(num_prompts, prompt_batch):
    with pytest.raises(ConfigError, match=f"prompt_batch = {prompt_batch}"):
        ProDA(num_prompts=num_prompts, prompt_batch=prompt_batch)
    ProDA(num_prompts=3, prompt_batch=prompt_batch)  # all at the end


def test_the_loss_of_proda_is_above_the_expected_cross_entropy(clip):
    """The bound itself, by drawing class weights from the Gaussian that it is about."""
    problem = problem_of(ProDA(num_prompts=6, num_tokens=4, spread=0.0), clip)
    params, (f, y) = away_from(problem.initial, 0.02), examples(problem)
    w = proda_weights(clip, params["context"])
    mean, draws = w.mean(axis=0), np.random.default_rng(0)
    losses = []
    for _ in range(400):  # coefficients over the prompts: their covariance is that of the prompts
        drawn = (
            mean + np.einsum("pd,pcd->cd", draws.normal(size=(6, w.shape[2])), w - mean) / 6**0.5
        )
        losses.append(cross_entropy(clip.scale * f @ drawn.T, y))
    bound = float(problem.learner.loss(params, problem.frozen, batch_of(problem)))
    assert np.mean(losses) - 3 * np.std(losses) / 20 < bound


def test_proda_with_one_prompt_is_coop(clip):
    ours, coop = problem_of(ProDA(num_prompts=1), clip), problem_of(CoOp(), clip)
    assert torch.equal(ours.initial["context"][0], coop.initial["context"])
    batch = batch_of(ours)
    mine = gradient(ours, ours.initial, batch)["context"][0]
    torch.testing.assert_close(mine, gradient(coop, coop.initial, batch)["context"])


def test_proda_with_several_prompts_is_not_coop_on_their_mean(clip):
    problem = problem_of(ProDA(num_prompts=4, num_tokens=4, spread=0.0), clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    mean = proda_weights(clip, params["context"]).mean(axis=0)
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) > cross_entropy(clip.scale * f @ mean.T, y) + 1e-3


def test_rows_that_fill_up_a_batch_change_no_loss(clip):
    for learner in (KgCoOp(), FedPGP(), FedCLIP(), ProDA(num_prompts=4, num_tokens=4)):
        problem = problem_of(learner, clip)
        full, padded = batch_of(problem, 0), batch_of(problem, 3)
        assert isinstance(padded, Batch)
        alone = learner.loss(problem.initial, problem.frozen, full)
        torch.testing.assert_close(learner.loss(problem.initial, problem.frozen, padded), alone)
