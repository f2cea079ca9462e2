"""IA3, prompt tuning and prefix-tuning against peft itself, in float64."""

import dataclasses

import pytest
import torch
from language_toys import (
    BERT,
    CLASSES,
    LLAMA,
    MAX_LENGTH,
    NUM_EXAMPLES,
    language_problem,
    small_language,
    texts_and_labels,
)

from fl_core.backbones.language_tower import reading
from fl_core.backbones.token_rows import PADDING, trimmed
from fl_core.errors import ConfigError
from fl_core.federation import FedAvg
from fl_core.learners import IA3, Prefix, PromptTuning
from fl_core.local import train_group
from fl_core.optim import SGD
from fl_core.seeds import generator
from fl_core.types import Batch, Task
from fl_core.work import Moment, Training, plan_work

NUM_TOKENS = 3
KINDS = [IA3(), PromptTuning(num_tokens=NUM_TOKENS), Prefix(num_tokens=NUM_TOKENS)]
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": LLAMA["vocab_size"],
    "initializer_range": 0.3,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 24,
}
MODELS = {"bert": BERT, "llama": LLAMA, "gpt2": GPT2}
kinds = pytest.mark.parametrize("learner", KINDS, ids=lambda learner: learner.name)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    return {name: small_language(folder, config) for name, config in MODELS.items()}


def perturbed(learner, frozen):
    """IA3 starts at one, where a mistaken place of the factor shows less."""
    draws = generator(0, "perturbed")
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=draws, dtype=tensor.dtype)
        for name, tensor in learner.init(frozen, generator(0, "init")).items()
        if "head" not in name
    }


def with_peft(learner, backbone, params):
    """peft's model with the same numbers in it, and what reads its gradient under our names."""
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if backbone.causal else AutoModel
    base = kind.from_pretrained(
        str(backbone.weights_folder), dtype=torch.float64, attn_implementation="eager"
    )
    task = "CAUSAL_LM" if backbone.causal else "FEATURE_EXTRACTION"
    config = {
        "ia3": lambda: IA3Config(task_type=task),
        "prompt_tuning": lambda: PromptTuningConfig(task_type=task, num_virtual_tokens=NUM_TOKENS),
        "prefix": lambda: PrefixTuningConfig(task_type=task, num_virtual_tokens=NUM_TOKENS),
    }[learner.name]()
    model = get_peft_model(base, config).double().eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    places = {}
    for name, parameter in trained.items():
        path = name.removeprefix("base_model.model.").removesuffix(".ia3_l.default")
        own = [n for n in params if n.rpartition(".")[0] == path] or list(params)
        assert learner.name != "ia3" or len(own) == 1
        places[own[0]] = parameter
        with torch.no_grad():
            parameter.copy_(params[own[0]].reshape(parameter.shape))
    assert places.keys() == params.keys()
    return model, lambda: {n: p.grad.reshape(params[n].shape) for n, p in places.items()}


@kinds
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_gradient_are_those_of_peft(name, learner, backbones):
    backbone = backbones[name]
    frozen = learner.prepare(backbone, Task(CLASSES))
    params = perturbed(learner, frozen)
    ids = backbone.tokenize(texts_and_labels()[0][:4]).long()
    valid = ids != PADDING
    assert not valid.all()
    weights = torch.randn(4, MAX_LENGTH, backbone.width, generator=generator(0, "w")).double()
    weights = weights * valid.unsqueeze(-1)

    def ours(params):
        hidden = frozen.tower(params, ids, *reading(valid, backbone.causal))
        return (hidden * weights).sum(), hidden

    gradient, hidden = torch.func.grad(ours, has_aux=True)(params)
    plain = frozen.tower({}, ids, *reading(valid, backbone.causal))
    assert not torch.allclose(plain[valid], hidden[valid], atol=1e-2)
    model, gradients = with_peft(learner, backbone, params)
    for row, own in enumerate(valid):  # one text at a time, without padding
        text = ids[row, own][None]
        asked = {"attention_mask": torch.ones_like(text), "output_hidden_states": True}
        out = model(text, **asked).hidden_states[-1][0, -int(own.sum()) :]
        (out * weights[row, own]).sum().backward()
        torch.testing.assert_close(hidden[row, own], out, rtol=1e-10, atol=1e-10)
    for path, expected in gradients().items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient[path], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bert", "llama"])
@kinds
def test_a_vectorised_group_equals_its_clients_one_by_one(learner, name, backbones):
    if backbones[name].causal:
        learner = dataclasses.replace(learner, head="label_words")
    problem = language_problem(learner, backbones[name])
    rule, training, moment = FedAvg(), Training(SGD(lr=0.1), batch_size=4), Moment(0, 2, 0)
    shards = [torch.arange(5), torch.arange(5, 12), torch.arange(12, 15)]

    def train(clients):
        work = plan_work(training, moment, clients, [shards[c] for c in clients])
        return train_group(problem, rule, training, problem.initial, {}, work, moment)

    assert problem.groupable
    together = train([0, 1, 2])
    for client in range(3):
        for key, value in train([client]).update.items():
            assert value.any()
            torch.testing.assert_close(together.update[key][client], value[0], rtol=1e-9, atol=1e-9)


@kinds
def test_label_words_are_scored_by_peft_with_the_same_log_likelihood(learner, backbones):
    backbone = backbones["llama"]
    learner = dataclasses.replace(learner, head="label_words")
    problem = language_problem(learner, backbone)
    params = perturbed(learner, problem.frozen)
    found = learner.logits(params, problem.frozen, problem.inputs)
    model, _ = with_peft(learner, backbone, params)
    for row in range(3):
        prompt = problem.inputs["token_ids"][row]
        prompt = prompt[prompt != PADDING].long()
        for c, label in enumerate(backbone.label_tokens(CLASSES)):
            ids = torch.cat([prompt, torch.tensor(label)])[None]
            with torch.no_grad():
                out = model(ids, attention_mask=torch.ones_like(ids)).logits[0]
            log_p = torch.log_softmax(out[-len(label) - 1 : -1], dim=-1)
            expected = log_p[torch.arange(len(label)), torch.tensor(label)].mean()
            torch.testing.assert_close(found[row, c], expected, rtol=1e-9, atol=1e-9)
    batch = Batch(problem.inputs, problem.labels, torch.ones(NUM_EXAMPLES))
    loss = learner.loss(params, problem.frozen, batch)
    expected = -found.gather(1, problem.labels[:, None]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@kinds
def test_padding_does_not_change_the_scores_of_a_text(learner, side, tmp_path):
    backbone = small_language(tmp_path, LLAMA, padding=side)
    for head, pooling in (("label_words", "mean"), ("similarity", "mean")):
        own = dataclasses.replace(learner, head=head, pooling=pooling)
        problem = language_problem(own, backbone)
        params = perturbed(own, problem.frozen)
        whole = own.logits(params, problem.frozen, problem.inputs)
        for row in range(3):
            alone = trimmed({n: t[row : row + 1] for n, t in problem.inputs.items()})
            assert alone["token_ids"].shape[1] < MAX_LENGTH
            one = own.logits(params, problem.frozen, alone)
            torch.testing.assert_close(whole[row], one[0], rtol=1e-9, atol=1e-9)


def test_ia3_in_the_top_layers_reads_stored_states(backbones):
    part = IA3(top_layers=1)
    problem = language_problem(part, backbones["bert"])
    whole = IA3().prepare(backbones["bert"], Task(CLASSES))
    params = perturbed(part, problem.frozen)
    assert len(params) == 4
    assert all(name.startswith("encoder.layer.2.") for name in params)
    params |= {n: t for n, t in problem.initial.items() if "head" in n}
    torch.testing.assert_close(
        part.logits(params, problem.frozen, problem.inputs),
        IA3().logits(params, whole, problem.inputs),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_prompt_starts_at_embeddings_of_words_and_a_prefix_at_its_std(backbones):
    backbone, learner = backbones["bert"], PromptTuning(num_tokens=5)
    frozen = learner.prepare(backbone, Task(CLASSES))
    words = frozen.tower.words()
    for row in learner.init(frozen, generator(0, "init"))["prompt"]:
        assert (words == row).all(dim=1).any()
    normal = PromptTuning(num_tokens=200, start="normal").init(frozen, generator(0, "init"))
    assert 0.9 < normal["prompt"].std() < 1.1
    frozen = Prefix().prepare(backbone, Task(CLASSES))
    assert 0.4 < Prefix(std=0.5).init(frozen, generator(0, "init"))["prefix"].std() < 0.6


@pytest.mark.parametrize(
    ("model", "learner", "message"),
    [
        ("bert", PromptTuning(num_tokens=15), r"no room: the model has 24 .* at most 9"),
        ("llama", Prefix(num_tokens=13, head="label_words"), r"and 2 of the label.* at most 9"),
        ("bert", IA3(modules=("q_proj",)), r"no module of the model has such a name"),
        ("bert", IA3(modules=("key", "vlaue")), r"no adapted layer is called vlaue; .*: key"),
        ("bert", IA3(feedforward=("fc2",)), r"feedforward = fc2 is not among modules = "),
    ],
)
def test_what_has_no_room_or_no_place_is_refused(model, learner, message, backbones):
    with pytest.raises(ConfigError, match=message):
        learner.prepare(backbones[model], Task(CLASSES))


def test_a_model_without_keys_and_values_of_the_past_takes_no_prefix(tmp_path):
    small = {"model_type": "distilbert", "vocab_size": LLAMA["vocab_size"], "dim": 16}
    small |= {"n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 24}
    backbone = small_language(tmp_path, small)
    with pytest.raises(ConfigError, match=r"DistilBertModel takes none.*prompt_tuning"):
        Prefix().prepare(backbone, Task(CLASSES))
    assert PromptTuning(num_tokens=2).prepare(backbone, Task(CLASSES))


def test_a_prefix_has_the_heads_that_a_model_keeps(tmp_path):
    """A Falcon has one head of keys and values, which its config does not tell as others do."""
    small = {"model_type": "falcon", "vocab_size": LLAMA["vocab_size"], "hidden_size": 16}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    learner = Prefix(num_tokens=3)
    problem = language_problem(learner, small_language(tmp_path, small))
    assert problem.initial["prefix"].shape == (3, 4, 1, 8)
    batch = Batch(problem.inputs, problem.labels, torch.ones(NUM_EXAMPLES))
    gradient = torch.func.grad(learner.loss)(problem.initial, problem.frozen, batch)
    assert gradient["prefix"].abs().max() > 0


def test_rescaled_inputs_are_among_the_adapted_modules():
    with pytest.raises(ConfigError, match=r"feedforward = fc2 is not among modules = k_proj"):
        IA3(modules=("k_proj",), feedforward=("fc2",))
    with pytest.raises(ConfigError, match="top_layers is not allowed with head = label_words"):
        IA3(top_layers=1, head="label_words")
