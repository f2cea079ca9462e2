"""pFedMoAP with its exchange, and BPL, against the formulas in plain float64 NumPy."""

import numpy as np
import pytest
import torch
from clip_toys import CLASSES, NUM_EXAMPLES, in_float64, problem_of, small_clip
from torch.nn import functional as F
from toys import Bench, uneven_shards

from fl_core import wire
from fl_core.draws import normal
from fl_core.errors import ConfigError
from fl_core.federation import Exchange, FedAvg
from fl_core.learners import BPL, CoCoOp, CoOp, PFedMoAP
from fl_core.learners.bpl import SCORING_KEY
from fl_core.local import check_pair
from fl_core.optim import SGD
from fl_core.round import plan_round, run_round
from fl_core.setting import Setting
from fl_core.work import Training

B = 7
KEY = torch.tensor(1234567)
GATED = PFedMoAP(num_tokens=4, gate_width=8, heads=2, local_weight=0.3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return in_float64(small_clip(tmp_path_factory.mktemp("clip")))


def batch_of(problem, num_filler=2):
    rows = torch.cat([torch.arange(B), torch.zeros(num_filler, dtype=torch.int64)])
    mask = torch.cat([torch.ones(B), torch.zeros(num_filler)])
    return problem.batch(rows, mask, None, KEY)


def away_from(params, size=0.3):
    draws = torch.Generator().manual_seed(5)
    return {
        n: t + size * torch.randn(t.shape, generator=draws, dtype=t.dtype)
        for n, t in params.items()
    }


def class_weights(clip, context):
    layout = clip.prompt_layout(CLASSES, num_tokens=len(context))
    return F.normalize(clip.text.encode(layout, context), dim=-1).detach().numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def examples(problem):
    return problem.inputs["features"][:B].numpy(), problem.labels[:B].numpy()


def gradient(problem, params):
    batch = batch_of(problem)
    return torch.func.grad(lambda p: problem.learner.loss(p, problem.frozen, batch))(params)


# -- pFedMoAP ------------------------------------------------------------------------------------


def by_hand(clip, params, f, experts=()):
    """Example by example, class by class, head by head."""
    own = class_weights(clip, params["context"])
    known = np.stack([own, *(class_weights(clip, context) for context in experts)])  # [K, C, D]
    pool = np.kron(np.eye(8), np.full((4, 1), 0.25))  # 32 entries to means of four
    gate = {n: t.numpy() for n, t in params.items() if n not in ("context", "experts.context")}
    logits = np.zeros((len(f), len(CLASSES)))
    for i, x in enumerate(f @ pool):
        q = gate["query"] @ x + gate["query_bias"]
        for c in range(len(CLASSES)):
            k = known[:, c] @ pool @ gate["key"].T + gate["key_bias"]
            v = known[:, c] @ pool @ gate["value"].T + gate["value_bias"]
            heads = []
            for part in (slice(0, 4), slice(4, 8)):
                share = softmax(k[:, part] @ q[part] / 2.0)
                heads.append(share @ v[:, part])
            m = gate["output"] @ np.concatenate(heads) + gate["output_bias"]
            logits[i, c] = 0.3 * f[i] @ own[c] + unit(x) @ unit(m)
    return clip.scale * logits


@pytest.mark.parametrize("num_experts", [0, 3])
def test_pfedmoap_adds_attention_over_experts_to_the_local_logits(clip, num_experts):
    problem = problem_of(GATED, clip)
    params, (f, _) = away_from(problem.initial), examples(problem)
    experts = [params["context"] * (0.5 + k) for k in range(num_experts)]
    if experts:
        params["experts.context"] = torch.stack(experts)
    ours = problem.learner.logits(params, problem.frozen, {"features": problem.inputs["features"]})
    np.testing.assert_allclose(ours[:B], by_hand(clip, params, f, experts), rtol=1e-9)


def test_pfedmoap_sends_no_gradient_to_its_experts(clip):
    problem = problem_of(GATED, clip)
    params = away_from(problem.initial)
    params["experts.context"] = torch.stack([params["context"] * 0.5])
    assert not gradient(problem, params)["experts.context"].any()


def test_pfedmoap_with_a_silent_gate_is_coop(clip):
    ours = problem_of(PFedMoAP(num_tokens=4, gate_width=8, heads=2, local_weight=1.0), clip)
    coop = problem_of(CoOp(num_tokens=4), clip)
    assert torch.equal(ours.initial["context"], coop.initial["context"])
    silent = {n: t if n == "context" else torch.zeros_like(t) for n, t in ours.initial.items()}
    mine, plain = gradient(ours, silent), gradient(coop, coop.initial)
    torch.testing.assert_close(mine["context"], plain["context"], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("field", [{"gate_width": 12, "heads": 8}, {"gate_width": 24, "heads": 8}])
def test_pfedmoap_refuses_a_gate_that_does_not_divide(clip, field):
    with pytest.raises(ConfigError, match="gate_width = "):
        problem_of(PFedMoAP(**field), clip)


# -- the exchange of prompts ---------------------------------------------------------------------


def rounds(clip, rule, num_rounds):
    problem = problem_of(GATED, clip)
    specs = problem.learner.tensors(problem.initial)
    shards = uneven_shards(NUM_EXAMPLES, [11, 4, 8, 17])
    training = Training(SGD(lr=0.02), local_steps=1, batch_size=6)
    bench = Bench(problem, rule, training, shards, wire.FP32(), {}, {})
    setting = Setting(rule, wire.FP32(), specs, 0, 2)
    server, results = rule.init_server(problem.initial, specs, 4), []
    seen = {}
    for round in range(num_rounds):
        plan = plan_round(setting, round, range(4))
        results.append(run_round(setting, server, plan, seen, bench.execute))
        server = results[-1].server
        seen = dict.fromkeys(plan.cohort, round)
    return problem, results, bench


def test_the_pool_holds_what_clients_sent_and_none_of_it_is_averaged(clip):
    problem, results, bench = rounds(clip, Exchange(rounds=2, num_experts=3, pool_size=4), 2)
    pool = results[-1].server.tensors["exchange.context"]
    own = [bench.states[client]["personal.context"] for client in range(4)]
    torch.testing.assert_close(pool, torch.stack(own).to(pool), rtol=1e-5, atol=1e-6)
    assert torch.equal(results[-1].server.tensors["context"], problem.initial["context"])


def test_a_client_takes_the_nearest_of_the_pool_and_not_its_own(clip):
    rule = Exchange(rounds=2, num_experts=2, pool_size=4)
    _, results, bench = rounds(clip, rule, 2)
    server = results[-1].server
    pool = server.tensors["exchange.context"]
    for client in range(4):
        model = rule.personal_model(rule.broadcast(server), bench.states[client], {})
        mine = bench.states[client]["personal.context"]
        assert torch.equal(model["context"], mine)
        others = [k for k in range(4) if k != client]
        others.sort(key=lambda k: float((pool[k] - mine).norm()))
        assert torch.equal(model["experts.context"], pool[others[:2]])


def test_where_a_cohort_is_larger_than_the_pool_its_members_take_turns(clip):
    _, results, bench = rounds(clip, Exchange(rounds=3, num_experts=3, pool_size=3), 2)
    pool = results[-1].server.tensors["exchange.context"]
    own = [bench.states[client]["personal.context"] for client in (3, 0, 1)]
    torch.testing.assert_close(pool, torch.stack(own).to(pool), rtol=1e-5, atol=1e-6)


def test_every_expert_is_counted_in_the_bytes_of_the_broadcast(clip):
    floats = 4 * 32  # of a prompt
    _, results, _ = rounds(clip, Exchange(rounds=2, num_experts=2, pool_size=5), 2)
    assert results[0].traffic.down_payload_bytes == 4 * 4 * (1 + 5) * floats
    assert results[1].traffic.down_payload_bytes == 4 * 4 * 5 * floats
    assert results[1].traffic.up_payload_bytes == 4 * 4 * floats


def test_learners_that_read_no_experts_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"federation=exchange .* learner=coop"):
        check_pair(CoOp(), Exchange(), Training())
    check_pair(PFedMoAP(), Exchange(), Training())
    check_pair(PFedMoAP(), FedAvg(), Training())
    with pytest.raises(ConfigError, match=r"num_experts = 5 .* pool_size = 4"):
        Exchange(num_experts=5, pool_size=4)


# -- BPL -----------------------------------------------------------------------------------------

BAYES = BPL(num_samples=3, reduction=8, prior_std=0.4, kl_weight=0.2)


def moments(params, f):
    hidden = np.maximum(f @ params["weight_1"].numpy().T + params["bias_1"].numpy(), 0)
    both = hidden @ params["weight_2"].numpy().T + params["bias_2"].numpy()
    return both[:, :32], both[:, 32:]


def log_softmax(x):
    return np.log(softmax(x))


def test_bpl_is_the_mean_cross_entropy_of_its_samples_plus_the_divergence(clip):
    problem = problem_of(BAYES, clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    mean, log_std = moments(params, f)
    noise = normal(KEY, "residual", B + 2, 3, 32).numpy()
    losses, divergence = np.zeros((B, 3)), np.zeros(B)
    for i in range(B):
        for k in range(3):
            r = 0.4 * (mean[i] + np.exp(log_std[i]) * noise[i, k])
            w = class_weights(clip, params["context"] + torch.from_numpy(r))
            losses[i, k] = -log_softmax(clip.scale * w @ f[i])[y[i]]
        # KL between N(m, s²) and the prior N(0, 0.4²), with m = 0.4 mean and s = 0.4 exp(log_std)
        m, s = 0.4 * mean[i], 0.4 * np.exp(log_std[i])
        divergence[i] = (np.log(0.4 / s) + (s**2 + m**2) / (2 * 0.4**2) - 0.5).sum()
    ours = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(ours) == pytest.approx(losses.mean() + 0.2 * divergence.mean(), rel=1e-9)


def test_bpl_predicts_with_the_mean_probability_of_its_samples(clip):
    problem = problem_of(BAYES, clip)
    params, (f, _) = away_from(problem.initial), examples(problem)
    mean, log_std = moments(params, f)
    noise = normal(torch.tensor(SCORING_KEY), "residual", 3, 32).numpy()
    p = np.zeros((B, len(CLASSES)))
    for i in range(B):
        for k in range(3):
            r = 0.4 * (mean[i] + np.exp(log_std[i]) * noise[k])
            w = class_weights(clip, params["context"] + torch.from_numpy(r))
            p[i] += softmax(clip.scale * w @ f[i]) / 3
    ours = problem.learner.logits(params, problem.frozen, {"features": torch.from_numpy(f)})
    np.testing.assert_allclose(ours, np.log(p), rtol=1e-8)


def test_bpl_without_a_condition_draws_one_residual_for_all_images(clip):
    learner = BPL(num_samples=2, conditional=False, prior_std=0.4, kl_weight=0.2)
    problem = problem_of(learner, clip)
    params, (f, y) = away_from(problem.initial), examples(problem)
    mean, log_std = params["moments"].numpy()[:32], params["moments"].numpy()[32:]
    noise = normal(KEY, "residual", 2, 32).numpy()
    losses = []
    for k in range(2):
        r = 0.4 * (mean + np.exp(log_std) * noise[k])
        w = class_weights(clip, params["context"] + torch.from_numpy(r))
        losses.append(-log_softmax(clip.scale * f @ w.T)[np.arange(B), y].mean())
    divergence = (np.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum() / 2
    ours = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(ours) == pytest.approx(np.mean(losses) + 0.2 * divergence, rel=1e-9)


def test_bpl_without_a_prior_and_without_divergence_is_coop(clip):
    coop = problem_of(CoOp(num_tokens=4, init_text="a photo of a"), clip)
    for conditional in (True, False):
        ours = problem_of(BPL(prior_std=0.0, kl_weight=0.0, conditional=conditional), clip)
        mine = gradient(ours, away_from(ours.initial))
        plain = gradient(coop, {"context": away_from(ours.initial)["context"]})
        torch.testing.assert_close(mine["context"], plain["context"], rtol=1e-10, atol=1e-13)


def test_bpl_without_deviation_is_cocoop(clip):
    ours = problem_of(BPL(reduction=8, kl_weight=0.0), clip)
    cocoop = problem_of(CoCoOp(reduction=8), clip)
    params = away_from(cocoop.initial)
    quiet = {"weight_2": torch.zeros_like(params["weight_2"])}
    quiet["bias_2"] = torch.full_like(params["bias_2"], -60.0)
    both = {n: torch.cat([params[n], quiet[n]]) for n in quiet}
    loss = ours.learner.loss(params | both, ours.frozen, batch_of(ours))
    torch.testing.assert_close(
        loss, cocoop.learner.loss(params, cocoop.frozen, batch_of(cocoop)), rtol=1e-10, atol=0
    )
