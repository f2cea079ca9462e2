"""Published text sets: small copies in the hub's own schemas, drawn, filled in, kept apart."""

import json
import math
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl_core.errors import DataError
from scenarios.data.catalogue import load_dataset, local_place
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED
from scenarios.data.forms import Cloze, Sentences
from scenarios.data.text_published import FLAN, GLUE, TEXT_TASKS
from scenarios.scenario import Scenario, build_population


def pairs(first, second, values=(0, 1, 2)):
    """Rows with two columns of text and a label."""

    def make(index, part):
        row = {first: f"{part} {first} {index}", "label": values[index % len(values)], "idx": index}
        return row | ({second: f"{part} {second} {index}"} if second else {})

    return make


def question(index, part):
    texts = [f"{part} choice {index}-{i}" for i in range(4)]
    return {
        "id": f"{part}-{index}",
        "question_stem": f"{part} question {index}",
        "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[index % 4],
    }


def gap(index, part):
    return {
        "passage": f"{part} story {index}\n@highlight\nOslo and Rome",
        "query": f"@placeholder is in {part} {index}",
        "entities": ["Oslo", "Rome", "Bonn", "Bern", "Kyiv"],
        "answers": ["Rome", "rome"] if part != "test" else [],
    }


def tweet(index, part):
    label = (0, 4, 2)[index % 3] if part == "test" else (0, 4)[index % 2]
    return {"text": f"{part} tweet {index}", "sentiment": label, "user": f"user {index % 5}"}


GLUE_COLUMNS = {
    "cola": ("sentence", "", (0, 1)),
    "sst2": ("sentence", "", (0, 1)),
    "mrpc": ("sentence1", "sentence2", (0, 1)),
    "qqp": ("question1", "question2", (0, 1)),
    "stsb": ("sentence1", "sentence2", (0.0, 1.2, 2.5, 3.4, 4.6, 5.0)),
    "mnli": ("premise", "hypothesis", (0, 1, 2)),
    "qnli": ("question", "sentence", (0, 1)),
    "rte": ("sentence1", "sentence2", (0, 1)),
    "wnli": ("sentence1", "sentence2", (0, 1)),
}
ROWS = {name: pairs(*columns) for name, columns in GLUE_COLUMNS.items()}
ROWS |= {name: pairs("premise", "hypothesis", (0, 1, 2, -1)) for name in ("snli", "anli_r1")}
ROWS |= {"openbookqa": question, "record": gap, "sentiment140": tweet}


def write_set(root, name, num_train=24, num_test=12):
    """A copy as on the hub: one Parquet file per split, in the folder of its configuration."""
    task = TEXT_TASKS[name]
    folder = root / task.config if task.config and name not in GLUE_COLUMNS else root
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", num_train), ("test", num_test)):
        rows = [
            ROWS[name](i, f"{name} {part if part == 'train' else 'held'}") for i in range(count)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows),
            folder / f"{task.splits[part]}-00000-of-00001.parquet",
            row_group_size=7,
        )


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_set_is_read_from_a_copy_in_its_own_schema(tmp_path, name):
    write_set(tmp_path / name, name)
    dataset = load_dataset(f"{name}:{tmp_path}")
    assert (dataset.name, dataset.modality, dataset.families) == (name, "text", ())
    assert {dataset.split[0], dataset.split[-1]} == {TEST, TRAIN}
    for row in (0, len(dataset) - 1):
        assert "{" not in dataset.text(row)
        part = "train" if dataset.split[row] == TRAIN else "held"
        assert f"{name} {part}" in dataset.text(row)
    assert build_population(Scenario(name, num_clients=2), dataset).num_clients == 2
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert again.text(3) == dataset.text(3)


def test_labels_become_words_and_rows_that_nobody_labelled_are_left_out(tmp_path):
    write_set(tmp_path, "snli")
    dataset = load_dataset(f"snli:{tmp_path}")
    assert dataset.classes == ("maybe", "no", "yes")
    assert len(dataset) == 18 + 9
    row = int(np.flatnonzero(dataset.split == TRAIN)[1])
    assert dataset.text(row) == (
        "Premise: snli train premise 1\nHypothesis: snli train hypothesis 1\n"
        "Does the premise imply the hypothesis?"
    )
    assert dataset.classes[dataset.labels[row]] == "maybe"


@pytest.mark.parametrize(("score", "label"), [(0.0, "0"), (2.5, "3"), (3.49, "3"), (4.5, "5")])
def test_graded_likeness_is_rounded_halves_up(score, label):
    form = TEXT_TASKS["stsb"].form
    assert form.example({"sentence1": "a", "sentence2": "b", "label": score}).label == label
    assert form.example({"sentence1": "a", "sentence2": "b", "label": -1.0}) is None
    assert form.example({"sentence1": "a", "sentence2": "b", "label": math.nan}) is None


def test_the_right_letter_stands_beside_the_right_answer(tmp_path):
    write_set(tmp_path / "a", "openbookqa")
    write_set(tmp_path / "b", "record", num_train=40)
    for dataset, right in (
        (load_dataset(f"openbookqa:{tmp_path / 'a'}"), None),
        (load_dataset(f"record:{tmp_path / 'b'}"), "Rome"),
    ):
        assert dataset.classes == ("A", "B", "C", "D")
        for row in range(len(dataset)):
            letter = dataset.classes[dataset.labels[row]]
            text = dataset.text(row)
            answer = dict(line.split(": ") for line in text.splitlines() if line[:3] in OPTIONS)
            assert len(set(answer.values())) == 4
            number = int(text.splitlines()[0].split()[-1])
            assert answer[letter].endswith(right or f"{number}-{number % 4}")


OPTIONS = {f"{letter}: " for letter in "ABCD"}


def test_a_gap_without_three_wrong_names_is_left_out():
    row = gap(0, "train") | {"entities": ["Rome", "ROME", "Oslo", "Bonn"]}
    assert Cloze("{passage}{query}{options}").example(row) is None


def test_rows_are_drawn_by_name_and_seed_alone(tmp_path):
    write_set(tmp_path / "sst2", "sst2")
    write_set(tmp_path / "mrpc", "mrpc")
    spec = f"sst2:{tmp_path}?num_train=8&num_test=5"
    one, again = load_dataset(spec), load_dataset(spec)
    assert (one.split == TRAIN).sum() == 8
    assert (one.split == TEST).sum() == 5
    assert one.fingerprint == again.fingerprint
    assert load_dataset(f"{spec}&seed=1").content_fingerprint != one.content_fingerprint
    both = load_dataset(f"glue:{tmp_path}?tasks=sst2,mrpc&num_train=8&num_test=5")
    ours = both.content_hashes[both.domain_ids == both.domains.index("sst2")]
    assert np.array_equal(ours, one.content_hashes)
    with pytest.raises(DataError, match=r"sst2: 24 usable training rows, but num_train=30 are"):
        load_dataset(f"sst2:{tmp_path}?num_train=30&num_test=5")


def test_flan_is_four_families_of_two_sets(tmp_path):
    for name in FLAN.tasks:
        write_set(tmp_path / name, name, num_train=16, num_test=12)
    assert (FLAN.num_train, FLAN.num_test) == (1000, 200)
    dataset = load_dataset(f"flan:{tmp_path}?num_train=12&num_test=6")
    assert dataset.domains == tuple(sorted(FLAN.tasks))
    counts = np.bincount(dataset.domain_ids * 2 + (dataset.split == TEST))
    assert counts.tolist() == [12, 6] * 8
    of_family = dict(zip(dataset.domains, dataset.families, strict=True))
    assert sorted(of_family.values()) == sorted(
        ["entailment", "sentiment", "paraphrase", "reading comprehension"] * 2
    )
    own = {
        d: {dataset.classes[c] for c in np.flatnonzero(dataset.candidates[i])}
        for i, d in enumerate(dataset.domains)
    }
    assert own["snli"] == own["anli_r1"] == {"yes", "maybe", "no"}
    assert own["mrpc"] == {"yes", "no"}
    assert own["sentiment140"] == {"negative", "positive"}
    with pytest.raises(DataError, match=r"(?s)snli: 12 usable.*num_train=1000.*sst2: 16 usable"):
        load_dataset(f"flan:{tmp_path}")


def test_words_that_one_set_tests_on_are_trained_on_in_none(tmp_path):
    write_set(tmp_path / "sst2", "sst2")
    write_set(tmp_path / "cola", "cola")
    held = pq.read_table(tmp_path / "sst2" / "validation-00000-of-00001.parquet").to_pylist()
    path = tmp_path / "cola" / "train-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["sentence"] = held[5]["sentence"]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert len(load_dataset(f"cola:{tmp_path}")) == 24 + 12
    dataset = load_dataset(f"glue:{tmp_path}?tasks=cola,sst2")
    assert len(dataset) == 2 * (24 + 12) - 1
    texts = [dataset.text(row) for row in np.flatnonzero(dataset.split == TRAIN)]
    assert not any(held[5]["sentence"] in text for text in texts)
    learned = dataset.concept_ids[dataset.split == TRAIN]
    assert not np.intersect1d(learned, dataset.concept_ids[dataset.split == TEST]).size


@pytest.mark.parametrize("layout", ["jsonl", "saved", "folders"])
def test_other_file_formats_give_the_same_data(tmp_path, layout):
    write_set(tmp_path / "mrpc", "mrpc")
    wanted = load_dataset(f"mrpc:{tmp_path}").fingerprint
    files = {"train": "train", "validation": "validation"}
    held = {n: pq.read_table(tmp_path / "mrpc" / f"{n}-00000-of-00001.parquet") for n in files}
    other = tmp_path / "other"
    other.mkdir()
    if layout == "jsonl":
        for name, table in held.items():
            lines = [json.dumps(row) for row in table.to_pylist()]
            (other / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    elif layout == "saved":
        parts = {name: datasets.Dataset(table) for name, table in held.items()}
        datasets.DatasetDict(parts).save_to_disk(other)
    else:
        for name, table in held.items():
            (other / name).mkdir()
            for number, start in enumerate((0, 5)):
                piece = table.slice(start, 5 if number == 0 else None)
                pq.write_table(piece, other / name / f"000{number}.parquet")
    assert load_dataset(f"mrpc:{other}").fingerprint == wanted


def test_the_hub_is_asked_through_datasets(tmp_path, monkeypatch):
    """A local folder stands for the id: `datasets` reads both in one way."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "snli", "snli")
    wanted = load_dataset(f"snli:{tmp_path}").fingerprint
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stanfordnlp").mkdir()
    (tmp_path / "snli").rename(tmp_path / "stanfordnlp" / "snli")
    assert load_dataset("snli:hub").fingerprint == wanted


def write_dolly(path, count=20):
    kinds = ("closed_qa", "brainstorming")
    rows = [
        {
            "instruction": f"do {i}",
            "context": f"given {i}" if i % 2 else "",
            "response": f"done {i}\n",
            "category": kinds[i % 2],
        }
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_long_responses_can_be_left_out_of_dolly_and_of_nothing_else(tmp_path):
    write_dolly(tmp_path / "databricks-dolly-15k.jsonl")
    text = (tmp_path / "databricks-dolly-15k.jsonl").read_text()
    longer = text.replace("done 3", "it is done 3")
    (tmp_path / "databricks-dolly-15k.jsonl").write_text(longer)
    assert len(load_dataset(f"dolly:{tmp_path}?response_words=4")) == 20
    short = load_dataset(f"dolly:{tmp_path}?response_words=3")
    assert len(short) == 19
    assert short.text(3) == "do 4"
    with pytest.raises(DataError, match="snli has no responses"):
        load_dataset(f"snli:{tmp_path}?response_words=3")


def test_dolly_has_responses_and_kinds_of_instruction(tmp_path):
    write_dolly(tmp_path / "databricks-dolly-15k.jsonl")
    dataset = load_dataset(f"dolly:{tmp_path}")
    assert dataset.classes == ("brainstorming", "closed qa")
    assert (dataset.split == UNSPECIFIED).all()
    assert (dataset.text(0), dataset.text(1)) == ("do 0", "do 1\n\ngiven 1")
    assert dataset.responses[:2] == (("done 0",), ("done 1",))
    drawn = load_dataset(f"dolly:{tmp_path}?num_train=9&num_test=6")
    assert np.bincount(drawn.split).tolist() == [9, 6]
    assert len({drawn.text(row) for row in range(15)}) == 15
    for row in range(15):
        assert drawn.responses[row][0].split()[1] == drawn.text(row).split()[1]
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "databricks-dolly-15k.jsonl").read_text().replace("done", "said"))
    changed = load_dataset(f"{other}?text=instruction&label=category&response=response")
    plain = load_dataset(f"{other}?text=instruction&label=category")
    assert changed.responses[0] == ("said 0\n",)
    assert changed.fingerprint != plain.fingerprint
    assert changed.content_fingerprint == plain.content_fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("snli:{}", r"no file of the split train.*\n.*no file of the split test"),
        ("glue:{}?tasks=sst2,qpq", r"two or more of cola.*'qqp'"),
        ("glue:{}?tasks=sst2", r"two or more of"),
        ("glue:{}?tasks=sst2,mrpc", r"(?s)no folder sst2.*no folder mrpc"),
        ("snli:{}?num_train=x", r"num_train='x' must be a whole number from 1 on"),
        ("snli:{}?duplicates=drop", r"option 'duplicates' is unknown here"),
        ("sn1i:{}", r"'sn1i' is no kind of data.*'snli'"),
    ],
)
def test_what_cannot_be_opened_says_why(tmp_path, spec, message):
    with pytest.raises(DataError, match=message):
        load_dataset(spec.format(tmp_path))


def test_a_copy_in_another_schema_is_refused_by_its_columns(tmp_path):
    for name in ("train", "test"):
        pq.write_table(pa.table({"premise": ["a"], "label": [0]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"no column hypothesis \(found: premise, label\)"):
        load_dataset(f"snli:{tmp_path}")


def test_a_prompt_holds_braces_of_the_text_as_they_are():
    form = Sentences("Say: {s}", {"0": "no"})
    assert form.example({"s": "{x} {}", "label": 0}).text == "Say: {x} {}"


def test_a_place_is_told_from_the_hub_and_from_packaged_names():
    assert local_place("glue:hub?tasks=sst2,mrpc") is None
    assert local_place("text_families") is None
    assert local_place("snli:/data") == "/data"
    assert len(GLUE.tasks) == 9
