"""FedDPA's weight per input against NumPy, on stored features and on texts, alone and in groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from language_toys import BERT, LLAMA, language_problem, small_language, texts_and_labels
from lora_toys import SIZES, facts, in_numpy, lora_problem, train
from toys import uneven_shards

from fl_core.backbones.token_rows import LAST_TOKEN
from fl_core.federation import FEDERATIONS, FedDPAF, FedDPAT
from fl_core.federation.states import as_personal
from fl_core.learners import LoRA
from fl_core.local import stack
from fl_core.per_input import CENTRE, centre_of, reference_draws
from fl_core.predict import score_group
from fl_core.seeds import generator

SCALE = 1.5


def weights_by_hand(features, references, largest):
    """a of each input [n], one cosine at a time."""
    found = []
    for x in features:
        cosines = [x @ r / np.linalg.norm(x) / np.linalg.norm(r) for r in references]
        found.append(max(0.0, largest * np.mean(cosines)))
    return np.array(found)


def logits_by_hand(x, weights, theta, phi, frozen):
    """W x + (1 - a) B_t A_t x + a B_p A_p x in both layers, input by input."""
    rows = []
    for one, a in zip(x, weights, strict=True):
        hidden = one
        for layer in (1, 2):
            out = frozen[layer - 1] @ hidden
            for share, model in ((1 - a, theta), (a, phi)):
                out = out + share * SCALE * model[f"B{layer}"] @ (model[f"A{layer}"] @ hidden)
            hidden = np.tanh(out) if layer == 1 else out
        rows.append(hidden + (1 - a) * theta["bias"] + a * phi["bias"])
    return np.array(rows)


def nll_by_hand(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels]


def models_of(rule, problem, server, states, shards):
    """What each client predicts with, as an actor puts it together."""
    specs, wanted = problem.learner.tensors(problem.initial), rule.per_input(problem.learner)
    found = []
    for client, shard in enumerate(shards):
        centre = centre_of(problem, wanted, shard, reference_draws(0, client))
        model = rule.personal_model(server, states[client], specs)
        found.append(model | {CENTRE: centre})
    return found, wanted.fit(specs)


@pytest.mark.parametrize("kind", [FedDPAF, FedDPAT])
def test_the_weight_of_the_personal_adapter_is_the_inputs_mean_cosine_to_the_clients_own(kind):
    rule = kind(rounds=2, max_weight=0.8, num_references=3)
    servers, _, bench = train(rule)
    problem = bench.problem
    theta, (_, data, frozen) = servers[-1].tensors, facts(problem)
    shards = uneven_shards(sum(SIZES), SIZES)
    models, fit = models_of(rule, problem, theta, bench.states, shards)
    every = torch.arange(sum(SIZES))
    scores = score_group(problem, stack(models), [every] * 3, fit=fit)
    x, labels = problem.inputs["features"].numpy(), problem.labels.numpy()
    seen = set()
    for client in range(3):
        order = torch.randperm(SIZES[client], generator=reference_draws(0, client))
        own = data[client][0][order[:3].numpy()]
        weights = weights_by_hand(x, own, 0.8)
        seen |= set(np.round(weights, 6).tolist())
        phi = in_numpy({n.removeprefix("personal."): t for n, t in bench.states[client].items()})
        logits = logits_by_hand(x, weights, in_numpy(theta), phi, frozen)
        assert scores[client].predicted.tolist() == logits.argmax(axis=1).tolist()
        np.testing.assert_allclose(scores[client].nll, nll_by_hand(logits, labels), rtol=2e-6)
    assert len(seen) > 20
    assert 0.0 in seen


def test_a_client_without_an_example_and_an_input_unlike_all_use_the_shared_adapter_alone():
    rule = FedDPAF(rounds=1)
    servers, _, bench = train(rule)
    problem, theta = bench.problem, servers[-1].tensors
    wanted, specs = rule.per_input(problem.learner), problem.learner.tensors(problem.initial)
    model = rule.personal_model(theta, bench.states[0], specs)
    nobody = centre_of(problem, wanted, torch.arange(0), torch.Generator())
    x = problem.inputs["features"]
    for centre, row in ((nobody, 3), (-x[5] / x[5].norm(), 5)):
        fitted = wanted.model(model | {CENTRE: centre}, x[row], specs)
        ours = problem.learner.logits(fitted, problem.frozen, {"features": x[row : row + 1]})
        theirs = problem.learner.logits(theta, problem.frozen, {"features": x[row : row + 1]})
        torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-9, atol=1e-12)


def test_references_are_the_clients_own_and_stay_over_rounds():
    problem = lora_problem()
    wanted = FedDPAF(num_references=4).per_input(problem.learner)
    shard = torch.arange(10, 20)
    centre = centre_of(problem, wanted, shard, reference_draws(3, 7))
    assert torch.equal(centre, centre_of(problem, wanted, shard, reference_draws(3, 7)))
    changed = {"features": problem.inputs["features"].clone()}
    changed["features"][:10] = 99.0
    changed["features"][20:] = 99.0
    same = centre_of(replace(problem, inputs=changed), wanted, shard, reference_draws(3, 7))
    assert torch.equal(centre, same)
    assert not torch.equal(centre, centre_of(problem, wanted, shard, reference_draws(3, 8)))


def test_only_feddpa_with_weights_per_input_asks_for_them():
    learner = lora_problem().learner
    asking = [kind.name for kind in FEDERATIONS if kind().per_input(learner) is not None]
    assert asking == ["feddpa_f", "feddpa_t"]
    assert FedDPAF(weighting="constant").per_input(learner) is None
    assert FedDPAF().per_input(learner).kind == "features"
    assert FedDPAF().per_input(LoRA()).kind == LAST_TOKEN


@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["encoder", "causal"])
def test_the_stored_state_of_a_text_is_that_of_its_last_token(config, tmp_path):
    backbone = small_language(tmp_path, config)
    texts, _ = texts_and_labels()
    found = backbone.encoder(LAST_TOKEN)(texts)
    module = backbone.build()
    body = module.base_model if backbone.causal else module
    for text, ours in list(zip(texts, found, strict=True))[:7]:
        ids = [i for i in backbone.tokenize([text])[0].tolist() if i >= 0]
        with torch.no_grad():
            states = body(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(ours, states[0, -1].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "head"),
    [(BERT, "classifier"), (BERT, "similarity"), (LLAMA, "label_words"), (LLAMA, "classifier")],
)
def test_texts_are_scored_each_with_its_own_mixture(config, head, tmp_path):
    """In one pass, as alone with the adapters of its own weight."""
    backbone = small_language(tmp_path, config)
    learner, rule = LoRA(head=head, rank=2, dropout=0.0), FedDPAT()
    problem = language_problem(learner, backbone)
    texts, _ = texts_and_labels()
    state = backbone.encoder(LAST_TOKEN)(texts).double()
    problem = replace(problem, inputs=problem.inputs | {LAST_TOKEN: state})
    draws = generator(0, "test")

    def moved():
        return {
            n: t + 0.3 * torch.randn(t.shape, generator=draws, dtype=torch.float64)
            for n, t in problem.initial.items()
        }

    theta, states = moved(), [as_personal(moved()) for _ in range(2)]
    shards = [torch.arange(6), torch.arange(6, 9)]
    models, fit = models_of(rule, problem, theta, states, shards)
    rows = [torch.arange(40), torch.arange(11, 30)]
    together = score_group(problem, stack(models), rows, fit=fit)
    specs = learner.tensors(problem.initial)
    for client, (model, own, scores) in enumerate(zip(models, rows, together, strict=True)):
        order = torch.randperm(len(shards[client]), generator=reference_draws(0, client))[:5]
        near = state[shards[client][order]].numpy()
        weights = weights_by_hand(state.numpy(), near, 0.5)
        assert len(set(np.round(weights, 9).tolist())) > 10
        for place, row in enumerate(own.tolist()):
            plain = rule.__class__(weighting="constant", mix=float(weights[row]))
            params = plain.personal_model(theta, states[client], specs)
            inputs = {kind: values[row : row + 1] for kind, values in problem.inputs.items()}
            logits = learner.logits(params, problem.frozen, inputs)
            nll = torch.nn.functional.cross_entropy(logits, problem.labels[row : row + 1])
            assert float(scores.nll[place]) == pytest.approx(float(nll), rel=1e-5)
            assert int(scores.predicted[place]) == int(logits.argmax())
        assert model[CENTRE].shape == state[0].shape
