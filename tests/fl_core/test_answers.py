"""Answers in a model's own words: written as transformers writes them, scored by hand."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from language_toys import BERT, CLASSES, LLAMA, MAX_LENGTH, WORDS, small_language, texts_and_labels

from fl_core.answers import score_answers
from fl_core.backbones.language_answers import following, response_ids
from fl_core.backbones.language_tower import reading
from fl_core.backbones.language_writing import begin, greedy
from fl_core.backbones.token_rows import PADDING, trimmed
from fl_core.errors import ConfigError, DataError
from fl_core.federation import FedAvg
from fl_core.learners import IA3, LoRA, Prefix, PromptTuning
from fl_core.local import Problem, train_group
from fl_core.optim import SGD
from fl_core.predict import score_group
from fl_core.seeds import generator
from fl_core.text_metrics import TextTally, exact_match, normal_form, rouge
from fl_core.types import Batch, Task
from fl_core.work import Moment, Training, plan_work

MOST = 8
END = WORDS.index("[SEP]")
TEXTS = texts_and_labels()[0][:6]
RESPONSES = ["cat", "hot dog", "fire engine sea", "cat", "sea", "hot dog"]
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": len(WORDS),
    "initializer_range": 0.5,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 24,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return small_language(tmp_path_factory.mktemp("language"), LLAMA)


def written_learner(kind=LoRA, **fields):
    return kind(head="generation", max_new_tokens=MOST, **fields)


def moved(learner, frozen, seed=0):
    """Away from where adapters change nothing."""
    draws = generator(seed, "moved")
    params = learner.init(frozen, generator(0, "init"))
    return {
        n: t + 0.5 * torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in params.items()
    }


def problem_of(learner, backbone):
    inputs = {"token_ids": backbone.tokenize(TEXTS)}
    inputs[f"response_ids_{MOST}"] = response_ids(backbone, RESPONSES, MOST)
    frozen = learner.prepare(backbone, Task(CLASSES))
    initial = learner.init(frozen, generator(0, "init"))
    responses = {row: (text,) for row, text in enumerate(RESPONSES)}
    labels = torch.zeros(len(TEXTS), dtype=torch.int64)
    return Problem(learner, frozen, initial, inputs, labels, responses=responses)


def hugging_face(backbone):
    from transformers import AutoModelForCausalLM

    folder = str(backbone.weights_folder)
    # Not eager: transformers' own mask overflows in float64 where a padding row sees nothing.
    kinds = {"dtype": torch.float64, "attn_implementation": "sdpa"}
    return AutoModelForCausalLM.from_pretrained(folder, **kinds).eval()


def generated(model, ids, end):
    """By transformers' own loop; PADDING behind the end."""
    there = ids != PADDING
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 0
    tokens = torch.where(there, ids, 0).long()
    asked = {"attention_mask": there.long(), "do_sample": False, "max_new_tokens": MOST}
    new = model.generate(input_ids=tokens, **asked)[:, ids.shape[1] :]
    if end is None:
        return new
    over = (new == end).cumsum(dim=1) - (new == end).long() > 0
    return torch.where(over, PADDING, new)


def written(tower, params, ids, end):
    return greedy(begin(tower, params, ids), end, MOST)


def ends_to_try(free):
    """No end at all, and tokens that end some answers early and others late or never."""
    lengths = {
        token: tuple((row == token).tolist().index(True) if token in row else MOST for row in free)
        for token in free.unique().tolist()
    }
    telling = [token for token, found in lengths.items() if len(set(found)) > 1]
    assert telling
    return [None, *telling[:4]]


def test_greedy_writing_is_that_of_transformers_with_the_adapter_in_peft(llama):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    learner = written_learner(rank=3, alpha=12.0)
    frozen = learner.prepare(llama, Task(CLASSES))
    params = moved(learner, frozen)
    config = LoraConfig(r=3, lora_alpha=12, target_modules=list(llama.lora_modules))
    model = get_peft_model(hugging_face(llama), config).double().eval()
    given = {f"base_model.model.{n}.weight": t.clone() for n, t in params.items()}
    assert not set_peft_model_state_dict(model, given).unexpected_keys
    ids = llama.tokenize(TEXTS)
    assert len({int((row != PADDING).sum()) for row in ids}) > 2
    bare = written(frozen.tower, {}, ids, -2)
    for end in ends_to_try(generated(model, ids, None)):
        found = written(frozen.tower, params, ids, -2 if end is None else end)
        assert torch.equal(found, generated(model, ids, end))
    assert not torch.equal(bare, written(frozen.tower, params, ids, -2))


def test_a_model_that_counts_positions_writes_as_in_transformers(tmp_path):
    backbone = small_language(tmp_path, GPT2)
    tower = written_learner().prepare(backbone, Task(CLASSES)).tower
    ids, model = backbone.tokenize(TEXTS), hugging_face(backbone)
    for end in ends_to_try(generated(model, ids, None)):
        found = written(tower, {}, ids, -2 if end is None else end)
        assert torch.equal(found, generated(model, ids, end))


def test_the_side_of_the_padding_does_not_matter_to_what_is_written(llama, tmp_path):
    right = small_language(tmp_path, LLAMA, padding="right")
    learner = written_learner()
    frozen = learner.prepare(llama, Task(CLASSES))
    params = moved(learner, frozen)
    expected = written(frozen.tower, params, llama.tokenize(TEXTS), END)
    assert torch.equal(expected, written(frozen.tower, params, right.tokenize(TEXTS), END))


@pytest.mark.parametrize(
    "learner",
    [
        written_learner(IA3),
        written_learner(PromptTuning, num_tokens=3),
        written_learner(Prefix, num_tokens=2),
    ],
    ids=lambda learner: learner.name,
)
def test_kept_keys_and_values_change_nothing(learner, llama):
    """Each text alone, without padding, and all of it again for every token."""
    frozen = learner.prepare(llama, Task(CLASSES))
    params, ids = moved(learner, frozen), llama.tokenize(TEXTS)
    found = written(frozen.tower, params, ids, -2)
    for row, text in enumerate(ids):
        tokens = text[text != PADDING].long()
        for step in range(MOST):
            there = torch.ones(1, len(tokens), dtype=torch.bool)
            with torch.no_grad():
                hidden = frozen.tower(params, tokens[None], *reading(there, True))
                following = frozen.tower.logits(hidden[0, -1]).argmax()
            assert found[row, step] == following
            tokens = torch.cat([tokens, following[None]])


@dataclass(frozen=True, kw_only=True)
class FewAtOnce(LoRA):
    rows_at_once: ClassVar[int] = 2


def passes_of(tower):
    """Token ids of every pass through the model from now on; of one text where all are apart."""
    seen = []
    tower.body.register_forward_pre_hook(lambda body, given: seen.append(given[0].shape))
    return seen


@pytest.mark.parametrize(
    "learner",
    [
        written_learner(rank=2),
        written_learner(FewAtOnce, rank=2),
        written_learner(IA3),
        written_learner(PromptTuning, num_tokens=3),
        written_learner(Prefix, num_tokens=2),
    ],
    ids=lambda learner: f"{learner.name}, {learner.rows_at_once}",
)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
def test_models_of_a_group_write_side_by_side_what_each_writes_alone(learner, config, tmp_path):
    problem = problem_of(learner, small_language(tmp_path, config))
    models = [moved(learner, problem.frozen, seed) for seed in range(5)]
    rows = [torch.tensor(own, dtype=torch.int64) for own in ([4], [0], [], [3], [5])]
    alone, before = {}, passes_of(problem.frozen.tower)
    for g, own in enumerate(rows):
        for row in own.tolist():
            inputs = {kind: values[[row]] for kind, values in problem.inputs.items()}
            (text,), nll = learner.write(models[g], problem.frozen, inputs)
            alone[g, row] = text, nll[0]
    num_alone = len(before)
    problem.responses.update({row: (text,) for (_, row), (text, _) in alone.items()})
    stacked = {name: torch.stack([model[name] for model in models]) for name in models[0]}
    assert len({text for text, _ in alone.values()}) > 1
    before.clear()
    found = score_group(problem, stacked, rows)
    parts = 2 if learner.rows_at_once == 2 else 1
    assert len(before) <= min(parts * (MOST + 1), num_alone - 1)
    for g, (own, scores) in enumerate(zip(rows, found, strict=True)):
        assert scores.exact_match.tolist() == [1] * len(own)
        nll = [alone[g, row][1].float() for row in own.tolist()]
        assert scores.nll.tolist() == pytest.approx(list(map(float, nll)), rel=1e-5)


def test_models_take_turns_where_that_costs_no_more_passes(llama):
    learner = written_learner(FewAtOnce)
    problem = problem_of(learner, llama)
    models = [moved(learner, problem.frozen, seed) for seed in range(2)]
    stacked = {name: torch.stack([model[name] for model in models]) for name in models[0]}
    seen = passes_of(problem.frozen.tower)
    score_group(problem, stacked, [torch.arange(2), torch.arange(2, 4)])
    assert seen[0][0] == 2  # and not one text of each model, side by side


def test_a_text_is_read_once_and_what_is_over_is_computed_no_further(llama):
    problem = problem_of(written_learner(), llama)
    frozen, inputs = problem.frozen, trimmed(problem.inputs)
    params = moved(problem.learner, frozen)
    free = written(frozen.tower, params, inputs["token_ids"], -2)
    _, end = ends_to_try(free)[:2]
    ids = written(frozen.tower, params, inputs["token_ids"], end)
    lengths = (ids != PADDING).sum(dim=1)
    assert len(lengths.unique()) > 1
    answers = replace(frozen.answers, end=end)
    seen = passes_of(frozen.tower)
    problem.learner.write(params, replace(frozen, answers=answers), inputs)
    reads, judges, *steps = seen
    assert reads == inputs["token_ids"].shape
    assert judges == inputs[f"response_ids_{MOST}"][:, 1:].shape
    assert steps == [(int((lengths > t).sum()), 1) for t in range(1, int(lengths.max()))]


def test_the_loss_is_that_of_the_response_and_its_end_per_token(llama):
    problem = problem_of(written_learner(), llama)
    params = moved(problem.learner, problem.frozen)
    model, told = hugging_face(llama), []
    for text, response in zip(TEXTS, RESPONSES, strict=True):
        prompt = llama.tokenize([text])[0]
        prompt = prompt[prompt != PADDING].long()
        wanted = torch.tensor([*(WORDS.index(word) for word in response.split()), END])
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.cat([prompt, wanted])[None]).logits[0], dim=-1)
        own = [log_p[len(prompt) - 1 + j, token] for j, token in enumerate(wanted)]
        told.append(-sum(own) / len(own))
    expected = torch.stack(told)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    batch = Batch(problem.inputs, problem.labels, torch.tensor([1.0, 1, 0, 1, 1, 0]))
    loss = problem.learner.loss(nothing, problem.frozen, batch)
    torch.testing.assert_close(loss, expected[[0, 1, 3, 4]].mean(), rtol=1e-8, atol=1e-8)
    scores = score_answers(problem, nothing, torch.arange(6))
    torch.testing.assert_close(scores.nll, expected.float(), rtol=1e-5, atol=1e-5)


def test_clients_of_a_group_learn_to_write_as_each_does_alone(llama):
    problem = problem_of(written_learner(dropout=0.0), llama)
    rule, moment = FedAvg(), Moment(0, 2, 0)
    training = Training(SGD(lr=0.1), local_epochs=2, batch_size=2)
    shards = [torch.arange(4), torch.arange(4, 6)]
    specs = problem.learner.tensors(problem.initial)
    broadcast = rule.init_server(problem.initial, specs, 2).tensors

    def train(clients):
        work = plan_work(training, moment, clients, [shards[c] for c in clients])
        return train_group(problem, rule, training, broadcast, {}, work, moment).update

    assert problem.groupable
    together = train([0, 1])
    for client in range(2):
        for name, value in train([client]).items():
            torch.testing.assert_close(together[name][client], value[0], rtol=1e-10, atol=1e-10)


def test_an_answer_is_held_against_every_response_of_its_row(llama):
    problem = problem_of(written_learner(), llama)
    params = moved(problem.learner, problem.frozen)
    texts, _ = problem.learner.write(params, problem.frozen, trimmed(problem.inputs))
    assert len(set(texts)) > 1
    wanted = {row: ("something else", text.upper() + " !") for row, text in enumerate(texts)}
    problem.responses.update(wanted | {3: ("something else",)})
    scores = score_answers(problem, params, torch.tensor([5, 0, 3]))
    assert scores.exact_match.tolist() == [1, 1, 0]
    for own in (scores.rouge1, scores.rouge_l):
        assert own[2] == 0
    stacked = {name: tensor[None] for name, tensor in params.items()}
    (own,) = score_group(problem, stacked, [torch.arange(2)])
    assert own.exact_match.tolist() == [1, 1]
    nobody = score_answers(problem, params, torch.arange(0))
    assert [len(column) for column in nobody] == [0] * 5


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("The  Red, fire-engine!", "red fireengine"),
        ("an apple a day", "apple day"),
        ("A.", "a"),
        ("the", "the"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_the_normal_form_leaves_out_case_articles_and_punctuation(written, normal):
    assert normal_form(written) == normal


def test_exact_match_and_rouge_are_those_worked_by_hand():
    assert exact_match("the Cat.", ["dog", "cat"]) == 1
    assert exact_match("cats", ["dog", "cat"]) == 0
    assert exact_match("B", ["A", "b."]) == 1
    # wanted: 6 words, written: 5. Words in common: the, cat, the, mat; with the most twice "the".
    wanted, answer = "the cat sat on the mat", "the cat the mat ran"
    one = 2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6)
    # Pairs: "the cat", "the mat" of 4 written and 5 wanted; the longest run: the cat the mat.
    two = 2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5)
    assert rouge(answer, [wanted]) == pytest.approx((one, two, one))
    # "mat the" keeps both words in common, but only one in order.
    assert rouge("mat the", ["the mat"]) == pytest.approx((1.0, 0.0, 0.5))
    # The best response counts, for each metric by itself.
    assert rouge("mat the", ["the mat", "mat"]) == pytest.approx((1.0, 0.0, 2 / 3))
    assert rouge("", ["the mat"]) == (0.0, 0.0, 0.0)


def test_tallies_of_clients_add_up_to_that_of_all():
    draws = torch.Generator().manual_seed(0)
    exact, one, two, longest, nll = torch.rand(5, 9, generator=draws).numpy()

    def of(part):
        return TextTally.of(exact[part], [one[part], two[part], longest[part]], nll[part])

    both, whole = of(slice(4)) + of(slice(4, 9)), of(slice(9))
    assert both.num_examples == 9
    assert both.means == pytest.approx(whole.means)
    assert whole.means["rougeL"] == pytest.approx(float(longest.astype("f8").mean()))
    assert (TextTally() + whole).means == pytest.approx(whole.means)
    assert TextTally().means == {}


def test_a_response_that_has_no_room_is_refused_and_none_is_cut(llama):
    with pytest.raises(DataError, match=r"1 of 2 responses .*max_new_tokens = 3 .*longest has 4"):
        response_ids(llama, ["cat", "fire engine sea"], 3)
    found = response_ids(llama, [" cat \n", "fire engine"], 3).tolist()
    assert found == [
        [WORDS.index("cat"), END, PADDING],
        [*map(WORDS.index, ("fire", "engine")), END],
    ]


def test_a_response_that_merges_with_what_stands_before_it_is_taken_alone():
    tokens = {"x": [1], "x cat": [1, 5], "x ion": [9], " ion": [7, 8]}

    def tokenizer(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": tokens[text]}

    assert following(tokenizer, ["cat", "ion"]) == [[5], [7, 8]]


def test_what_cannot_write_is_refused(llama, tmp_path):
    bert = small_language(tmp_path, BERT)
    with pytest.raises(ConfigError, match=r"generation needs a causal model.*is an encoder"):
        written_learner().prepare(bert, Task(CLASSES))
    with pytest.raises(ConfigError, match=r"max_new_tokens = 15 has no room .*= 10: .* 24 pos"):
        LoRA(head="generation", max_new_tokens=24 - MAX_LENGTH + 1).prepare(llama, Task(CLASSES))
    with pytest.raises(ConfigError, match=r"num_tokens = 7 has no room.*and 8 of the answer"):
        written_learner(PromptTuning, num_tokens=7).prepare(llama, Task(CLASSES))
    with pytest.raises(ConfigError, match="top_layers is not allowed with head = generation"):
        written_learner(top_layers=1)
    with pytest.raises(ConfigError, match="max_new_tokens = 0 is not allowed"):
        LoRA(max_new_tokens=0)


def test_a_tokenizer_without_an_end_is_refused():
    endless = SimpleNamespace(
        causal=True, info={"model": "endless"}, tokenizer=SimpleNamespace(eos_token_id=None)
    )

    with pytest.raises(ConfigError, match="no token that ends a text"):
        response_ids(endless, ["cat"], MOST)
