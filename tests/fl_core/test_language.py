"""The language backbone and LoRA against transformers and peft themselves, in float64."""

import math

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
    write_model,
)

from fl_core.backbones.language import LanguageModel, load_language, prepare_language
from fl_core.backbones.language_tower import build_tower, reading
from fl_core.backbones.token_rows import PADDING, trimmed
from fl_core.errors import ConfigError, DataError
from fl_core.federation import FedAvg
from fl_core.learners.lora import LoRA
from fl_core.local import stack, train_group
from fl_core.optim import SGD
from fl_core.predict import score, score_group
from fl_core.seeds import generator
from fl_core.types import Batch, Task
from fl_core.work import Moment, Training, plan_work

MODELS = {"bert": BERT, "llama": LLAMA}
LEARNERS = [
    ("bert", LoRA()),
    ("bert", LoRA(head="similarity", top_layers=1, pooling="first")),
    ("llama", LoRA(pooling="last", top_layers=1)),
    ("llama", LoRA(head="label_words")),
]
pairs = pytest.mark.parametrize(
    ("model", "learner"), LEARNERS, ids=lambda p: p if isinstance(p, str) else p.head
)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    return {name: small_language(folder, config) for name, config in MODELS.items()}


def hugging_face(backbone):
    """The same weights, loaded by transformers alone."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if backbone.causal else AutoModel
    model = kind.from_pretrained(
        str(backbone.weights_folder), dtype=torch.float64, attn_implementation="eager"
    )
    return model.eval()


def perturbed(learner, frozen):
    """B is zero at first, and then half of all gradients are too."""
    params = learner.init(frozen, generator(0, "init"))
    draws = generator(0, "B")
    return {
        n: t + 0.3 * torch.randn(t.shape, generator=draws, dtype=t.dtype) if "lora_B" in n else t
        for n, t in params.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_gradient_are_those_of_peft(name, backbones):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    backbone = backbones[name]
    learner = LoRA(rank=3, alpha=12, dropout=0.0)
    frozen = learner.prepare(backbone, Task(CLASSES))
    params = {n: t for n, t in perturbed(learner, frozen).items() if "lora" in n}
    ids = backbone.tokenize(texts_and_labels()[0][:4]).long()
    valid = ids != PADDING
    weights = torch.randn(4, MAX_LENGTH, backbone.width, generator=generator(0, "w")).double()
    weights = weights * valid.unsqueeze(-1)

    def ours(params):
        hidden = frozen.tower(params, ids, *reading(valid, backbone.causal))
        return (hidden * weights).sum(), hidden

    gradient, hidden = torch.func.grad(ours, has_aux=True)(params)

    config = LoraConfig(r=3, lora_alpha=12, target_modules=list(backbone.lora_modules))
    model = get_peft_model(hugging_face(backbone), config).double().eval()
    given = {f"base_model.model.{n}.weight": t.clone() for n, t in params.items()}
    outcome = set_peft_model_state_dict(model, given)
    assert not outcome.unexpected_keys
    body = model.base_model.model
    body = body.model if backbone.causal else body
    for row, own in enumerate(valid):  # one text at a time, without padding
        out = body(ids[row, own][None]).last_hidden_state[0]
        (out * weights[row, own]).sum().backward()
        torch.testing.assert_close(hidden[row, own], out, rtol=1e-10, atol=1e-10)
    theirs = {
        n.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad
        for n, p in model.named_parameters()
        if "lora" in n
    }
    assert theirs.keys() == gradient.keys()
    for path, expected in theirs.items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient[path], expected, rtol=1e-10, atol=1e-10)


def test_adapters_start_as_in_peft(backbones):
    learner = LoRA()
    frozen = learner.prepare(backbones["bert"], Task(CLASSES))
    params = learner.init(frozen, generator(0, "init"))
    specs = learner.tensors(params)
    for name, tensor in params.items():
        if specs[name].role == "lora_A":
            bound = 1 / math.sqrt(16)
            assert 0.8 * bound < tensor.abs().max() <= bound
            assert specs[name].group == name.removesuffix(".lora_A")
            assert specs[name].scale == 2.0
        elif specs[name].role == "lora_B":
            assert not tensor.any()
    assert {s.role for s in specs.values()} == {"lora_A", "lora_B", "classifier"}


@pairs
def test_a_vectorised_group_equals_its_clients_one_by_one(model, learner, backbones):
    problem = language_problem(learner, backbones[model])
    specs, rule = learner.tensors(problem.initial), FedAvg()
    broadcast = rule.init_server(problem.initial, specs, 3).tensors
    training, moment = Training(SGD(lr=0.1), local_epochs=1, batch_size=4), Moment(0, 2, 0)
    shards = [torch.arange(5), torch.arange(5, 12), torch.arange(12, 15)]

    def train(clients):
        work = plan_work(training, moment, clients, [shards[c] for c in clients])
        return train_group(problem, rule, training, broadcast, {}, work, moment)

    assert problem.groupable
    together = train([0, 1, 2])
    for client in range(3):
        alone = train([client])
        for name, value in alone.update.items():
            assert value.any() or "lora_A" in name
            torch.testing.assert_close(
                together.update[name][client], value[0], rtol=1e-10, atol=1e-10
            )


def test_dropout_is_drawn_by_name_and_differs_by_client(backbones):
    def update(client, dropout, seed=0):
        learner = LoRA(dropout=dropout)
        problem = language_problem(learner, backbones["bert"])
        rule, moment = FedAvg(), Moment(0, 1, seed)
        training = Training(SGD(lr=0.1), local_steps=1, batch_size=NUM_EXAMPLES)
        work = plan_work(training, moment, [client], [torch.arange(NUM_EXAMPLES)])
        return train_group(problem, rule, training, problem.initial, {}, work, moment).update

    def differ(ours, others):
        return any(not torch.allclose(ours[n], others[n], atol=1e-12) for n in ours)

    assert not differ(update(0, 0.5), update(0, 0.5))
    assert differ(update(0, 0.5), update(1, 0.5))
    assert differ(update(0, 0.5), update(0, 0.0))
    assert not differ(update(0, 0.0), update(1, 0.0))  # the order of one full batch is no matter


@pytest.mark.parametrize("name", MODELS)
def test_stored_states_below_the_top_layers_change_nothing(name, backbones):
    backbone = backbones[name]
    path = "layer.2." if name == "bert" else "layers.1."
    part = LoRA(top_layers=1, dropout=0.0)
    problem = language_problem(part, backbone)
    whole = LoRA(dropout=0.0).prepare(backbone, Task(CLASSES))
    params = perturbed(part, problem.frozen)
    assert all(path in n for n in params if "lora" in n)
    states = problem.inputs["below_top_1"]
    assert states.shape == (NUM_EXAMPLES, MAX_LENGTH, 16)
    expected = LoRA().logits(params, whole, problem.inputs)
    # States are kept in float32.
    torch.testing.assert_close(
        part.logits(params, problem.frozen, problem.inputs), expected, rtol=1e-6, atol=1e-6
    )


def test_label_words_are_scored_by_their_log_likelihood_per_token(backbones):
    """Each class name behind each text on its own, without padding, through transformers."""
    backbone = backbones["llama"]
    learner = LoRA(head="label_words")
    problem = language_problem(learner, backbone)
    found = learner.logits(problem.initial, problem.frozen, problem.inputs)
    model = hugging_face(backbone)
    tokens = backbone.label_tokens(CLASSES)
    assert [len(row) for row in tokens] == [2, 2, 1, 1]
    for row in range(5):
        prompt = problem.inputs["token_ids"][row]
        prompt = prompt[prompt != PADDING].long()
        for c, label in enumerate(tokens):
            ids = torch.cat([prompt, torch.tensor(label)])
            with torch.no_grad():
                log_p = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
            own = [log_p[len(prompt) - 1 + j, token] for j, token in enumerate(label)]
            torch.testing.assert_close(found[row, c], sum(own) / len(own), rtol=1e-6, atol=1e-6)
    batch = Batch(problem.inputs, problem.labels, torch.ones(NUM_EXAMPLES))
    own = found.gather(1, problem.labels[:, None])
    expected = -own.mean()
    loss = learner.loss(problem.initial, problem.frozen, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_the_side_of_the_padding_does_not_matter_to_a_causal_model(tmp_path):
    scores = []
    for side in ("left", "right"):
        backbone = small_language(tmp_path, LLAMA, padding=side)
        for learner in (LoRA(head="label_words"), LoRA(pooling="last")):
            problem = language_problem(learner, backbone)
            inputs = trimmed(problem.inputs)
            scores.append(learner.logits(problem.initial, problem.frozen, inputs))
    assert problem.inputs["token_ids"][0, -1] == PADDING
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[1], scores[3], rtol=1e-5, atol=1e-6)


def test_similarity_compares_a_text_with_the_bare_class_name(backbones):
    learner = LoRA(head="similarity")
    problem = language_problem(learner, backbones["bert"])
    model = hugging_face(backbones["bert"])

    def state(text):
        ids = backbones["bert"].tokenize([text])
        with torch.no_grad():
            hidden = model(ids[ids != PADDING][None].long()).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)

    text = texts_and_labels()[0][3]
    expected = torch.stack([20 * state(text) @ state(name) for name in CLASSES])
    found = learner.logits({}, problem.frozen, problem.inputs)[3]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# -- preparing and reading -----------------------------------------------------------------------


def test_two_ways_of_reading_share_one_folder_of_weights(tmp_path):
    short = small_language(tmp_path, BERT, max_length=6)
    long = small_language(tmp_path, BERT, max_length=8)
    assert short.folder != long.folder
    assert short.weights_folder == long.weights_folder
    again = small_language(tmp_path, BERT, max_length=6)
    assert again.folder == short.folder
    tied = small_language(tmp_path, LLAMA).info["tied"]
    assert tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_weights_in_bf16_compute_in_bf16_and_train_in_fp32(tmp_path):
    source = write_model(tmp_path / "bert", BERT)
    spec = LanguageModel(model=str(source), pretrained="random", precision="bf16", max_length=10)
    backbone = load_language(prepare_language(spec, tmp_path, {}))
    problem = language_problem(LoRA(), backbone)
    assert backbone.build().encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert {t.dtype for t in problem.initial.values()} == {torch.float32}
    batch = Batch(problem.inputs, problem.labels, torch.ones(NUM_EXAMPLES))
    gradient = torch.func.grad(LoRA().loss)(problem.initial, problem.frozen, batch)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradient.values())


def test_a_long_text_is_refused_or_cut_as_asked(tmp_path):
    text = "w0 w1 w2 w3 w4 w5"
    refusing = small_language(tmp_path, BERT, max_length=5, truncation="error")
    with pytest.raises(DataError, match=r"1 of 2 texts .*max_length = 5 tokens, the longest 8"):
        refusing.tokenize(["w1", text])
    with pytest.raises(DataError, match=r"longest 8 .*24\). Set backbone.max_length=8 or more, or"):
        refusing.tokenize([text])
    with pytest.raises(DataError, match=r"longest 42 .*24\). Set backbone.truncation=end or start"):
        refusing.tokenize(["w1 " * 40])
    end = small_language(tmp_path, BERT, max_length=5, truncation="end").tokenize([text])
    start = small_language(tmp_path, BERT, max_length=5, truncation="start").tokenize([text])
    assert end.tolist() == [[2, 9, 10, 11, 3]]
    assert start.tolist() == [[2, 12, 13, 14, 3]]


def test_a_text_without_a_token_is_refused(tmp_path):
    """A BERT has tokens around it, a causal model may have none at all."""
    assert small_language(tmp_path, BERT).tokenize([""]).ge(0).sum() == 2
    with pytest.raises(DataError, match=r"1 of 2 texts .*no token in model .*leave them out"):
        small_language(tmp_path, LLAMA).tokenize(["w1", ""])


def test_a_label_without_room_after_the_text_is_refused(tmp_path):
    backbone = small_language(tmp_path, LLAMA, max_length=23)
    with pytest.raises(ConfigError, match=r"no room for the label.*'blue green'.*at most 22"):
        LoRA(head="label_words").prepare(backbone, Task(CLASSES))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 30}, r"max_length = 30 .* 24 positions"),
        ({"quantization": "4bit"}, r"quantization = 4bit needs"),
        ({"padding": "left"}, r"padding = left is for causal models"),
        ({"model": "minilm_l6"}, r"(?s)'minilm_l6' is no packaged model.*Did you mean 'minilm'"),
    ],
)
def test_what_a_language_model_cannot_do_is_refused(fields, message, tmp_path):
    source = write_model(tmp_path / "bert", BERT)
    settings = {"model": str(source), "pretrained": "random"} | fields
    with pytest.raises(ConfigError, match=message):
        prepare_language(LanguageModel(**settings), tmp_path, {"minilm": tmp_path})


SHAPE = {name: BERT[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
SHAPE |= {"num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3}
FNET = SHAPE | {"model_type": "fnet", "max_position_embeddings": 24}
LONGFORMER = SHAPE | {"model_type": "longformer", "attention_window": [4] * 3}
BLOOM = {"model_type": "bloom", "vocab_size": BERT["vocab_size"], "hidden_size": 16}
BLOOM |= {"n_layer": 2, "n_head": 2}
MAMBA = {"model_type": "mamba", "vocab_size": BERT["vocab_size"], "hidden_size": 16}
BIG_BIRD = SHAPE | {"model_type": "big_bird", "block_size": 2}
T5 = {"model_type": "t5", "vocab_size": BERT["vocab_size"], "d_model": 16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FNET, r"\(fnet\) cannot read texts of different lengths as one batch.*longer one stands"),
        (LONGFORMER, r"\(longformer\) cannot read texts.*Choose another, such as a BERT"),
        (BLOOM, r"\(bloom\) cannot read texts of different lengths.*Choose another"),
        (MAMBA, r"\(mamba\): its config tells no num_attention_heads"),
        (BIG_BIRD, r"\(big_bird\): its attention is block sparse.*original_full"),
        (T5, r"\(t5\): it has an encoder and a decoder: choose an encoder or a causal model.$"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_that_reads_no_padded_texts_is_refused_before_it_is_stored(
    config, message, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        small_language(tmp_path / "store", config)
    assert not list((tmp_path / "store").rglob("model.safetensors"))


def checkpoint(folder, config, kind):
    """As save_pretrained leaves it, with a tokenizer."""
    from transformers import AutoConfig

    source = write_model(folder, config)
    torch.manual_seed(0)
    kind.from_config(AutoConfig.from_pretrained(str(source))).save_pretrained(str(source))
    return LanguageModel(model=str(source), max_length=MAX_LENGTH)


def test_a_checkpoint_without_a_pooler_is_the_same_model_wherever_it_is_prepared(tmp_path, capfd):
    from transformers import AutoModelForMaskedLM

    spec = checkpoint(tmp_path / "bert", BERT, AutoModelForMaskedLM)
    capfd.readouterr()
    first, second = (
        load_language(prepare_language(spec, tmp_path / name, {})) for name in ("one", "two")
    )
    assert first.weights_hash == second.weights_hash
    assert capfd.readouterr().err == ""


def test_what_a_checkpoint_lacks_is_not_drawn_at_random_and_used(tmp_path):
    from transformers import AutoModel

    untied = LLAMA | {"tie_word_embeddings": False}
    spec = checkpoint(tmp_path / "llama", untied, AutoModel)
    backbone = load_language(prepare_language(spec, tmp_path / "store", {}))
    assert LoRA().prepare(backbone, Task(CLASSES))
    for head in ("label_words", "generation"):
        with pytest.raises(ConfigError, match=rf"head = {head} reads the output layer.*lack"):
            LoRA(head=head, max_new_tokens=4).prepare(backbone, Task(CLASSES))
    spec = checkpoint(tmp_path / "bert", BERT, AutoModel)
    write_model(tmp_path / "bert", BERT | {"num_hidden_layers": 4})
    with pytest.raises(ConfigError, match=r"lack 16 tensors .*such as encoder\.layer\.3\."):
        prepare_language(spec, tmp_path / "store", {})


def test_a_roberta_has_fewer_positions_than_its_table_has_rows(tmp_path):
    """It counts them from behind that of the padding."""
    config = BERT | {"model_type": "roberta", "pad_token_id": 1}
    text = " ".join(["w1"] * 40)
    with pytest.raises(ConfigError, match=r"max_length = 23 .* has 22 positions"):
        small_language(tmp_path / "long", config, max_length=23)
    backbone = small_language(tmp_path, config, max_length=22)
    ids = backbone.tokenize([text])
    assert int((ids >= 0).sum()) == 22
    assert build_tower(backbone, ())({}, ids, *reading(ids >= 0, False)).isfinite().all()


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (LoRA(head="label_words"), "needs a causal model"),
        (LoRA(modules=("q_proj",)), r"no module of the model .* dense, key, query, value"),
        (
            LoRA(modules=("query", "vlaue", "output.dense")),
            r"no adapted layer is called vlaue; .*: dense, query",
        ),
        (LoRA(top_layers=3), r"top_layers = 3 .* 1 to 2"),
    ],
)
def test_what_lora_cannot_do_on_an_encoder_is_refused(learner, message, backbones):
    with pytest.raises(ConfigError, match=message):
        learner.prepare(backbones["bert"], Task(CLASSES))


def test_adapters_may_stand_in_any_linear_layer(backbones):
    tower = build_tower(backbones["bert"], ["intermediate.dense", "output.dense"])
    found = {place.path: (place.d_in, place.d_out) for place in tower.places}
    assert found["encoder.layer.0.intermediate.dense"] == (16, 24)
    assert found["encoder.layer.0.output.dense"] == (24, 16)
    assert found["encoder.layer.0.attention.output.dense"] == (16, 16)


@pairs
def test_scores_do_not_depend_on_which_texts_share_a_batch(model, learner, backbones):
    problem = language_problem(learner, backbones[model])
    rows = torch.arange(NUM_EXAMPLES)
    assert learner.rows_at_once < NUM_EXAMPLES
    logits = learner.logits(problem.initial, problem.frozen, problem.inputs)
    own = torch.log_softmax(logits, dim=-1).gather(1, problem.labels[:, None])[:, 0]
    found = score(problem, problem.initial, rows)
    torch.testing.assert_close(found.nll, -own.float(), rtol=1e-5, atol=1e-5)
    for row in (0, 17):
        alone = score(problem, problem.initial, rows[row : row + 1])
        torch.testing.assert_close(found.nll[row], alone.nll[0], rtol=1e-5, atol=1e-5)


def test_models_of_a_group_score_as_each_does_alone(backbones):
    learner = LoRA()
    problem = language_problem(learner, backbones["bert"])
    models = [{n: t + 0.1 * k for n, t in problem.initial.items()} for k in range(3)]
    rows = [torch.arange(5), torch.arange(5, 7), torch.arange(40)]
    for model, own, scores in zip(
        models, rows, score_group(problem, stack(models), rows), strict=True
    ):
        assert torch.equal(scores.predicted, score(problem, model, own).predicted)
