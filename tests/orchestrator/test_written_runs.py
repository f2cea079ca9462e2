"""Whole runs in which clients learn to write answers: from a table of prompts to the report."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from language_toys import BERT, LLAMA, run_settings
from remote_toys import mounted

import fedarena
from fl_core.backbones.union import load_backbone
from fl_core.errors import ConfigError, DataError
from fl_core.types import Task
from orchestrator.cli import main
from orchestrator.compare.measurable import metric_names
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import compute_features, prepare_experiment
from orchestrator.loading import load_config, resolve
from orchestrator.placement import Placement
from orchestrator.report.listing import describe_run, list_runs
from orchestrator.run import run_experiments
from orchestrator.scoring import Scorer
from scenarios.data.catalogue import load_dataset

KINDS = {"animal": ["cat", "the cat"], "sea": ["fish", "sea"], "hot": ["fire engine"]}


def rows_of(count=24):
    kinds = list(KINDS)
    return [
        {
            "prompt": f"w{i % 7} {kinds[i % 3]} w{i}",
            "answers": KINDS[kinds[i % 3]],
            "split": "test" if i % 4 == 0 else "train",
            "kind": kinds[i % 3],
        }
        for i in range(count)
    ]


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return f"{path}?text=prompt&response=answers"


@pytest.fixture
def make_written_config(tmp_path, feature_store):
    def make(*overrides, model=LLAMA, rows=None):
        settings = run_settings(model, tmp_path, feature_store, 8) | {
            "scenario": {
                "dataset": write_rows(tmp_path / "asked.jsonl", rows or rows_of()),
                "num_clients": 2,
                "partition": {"name": "iid"},
                "validation_fraction": 0.25,
            },
            "learner": {"name": "lora", "head": "generation", "max_new_tokens": 4},
            "training": {"optimizer": {"lr": 0.3}, "batch_size": 4},
            "resources": {"executor": "inline"},
        }
        return resolve(load_config(settings, overrides))

    return make


def finished(config):
    return run_experiments([config])[0]


def answers_of(config, params, rows):
    """By the learner alone, one prompt at a time."""
    experiment = prepare_experiment(config)
    backbone = load_backbone(experiment.backbone.folder)
    frozen = config.learner.prepare(backbone, Task(experiment.population.classes))
    (dataset,) = experiment.datasets.values()
    for row in rows:
        ids = {"token_ids": backbone.tokenize([dataset.text(row)])}
        ids[config.learner.inputs[1]] = torch.zeros(1, 1, dtype=torch.int32)
        with torch.no_grad():
            yield config.learner.write(params, frozen, ids)[0][0], dataset.responses[row]


def test_two_clients_learn_to_write_and_are_judged_by_rouge(make_written_config):
    config = make_written_config()
    result = finished(config)
    first, last = result.records[0].metrics, result.last.metrics
    for part in ("global", "personal"):
        for name in ("exact_match", "rouge1", "rouge2", "rougeL"):
            assert 0 <= last[f"eval/{part}/{name}"] <= 1
    assert last["eval/global/nll"] < first["eval/global/nll"]
    assert result.rounds["train/loss"].iloc[-1] < result.rounds["train/loss"].dropna().iloc[0]
    assert not [name for name in last if "accuracy" in name or "macro_f1" in name]
    assert not [name for name in first if "majority" in name]
    assert first["reference/zero_shot/global/rougeL"] == pytest.approx(first["eval/global/rougeL"])
    assert list(result.last.client_metrics) == ["eval/personal/rougeL"]
    assert result.last.validation == last["eval/validation/rougeL"]
    assert "selected/global/rougeL" in result.summary
    assert {name for name in last if name.startswith("eval/")} <= metric_names(config)
    assert result.confusion is None


def test_scores_are_those_of_the_texts_that_the_final_model_writes(make_written_config):
    config = make_written_config("federation.rounds=6", "evaluation.headline=exact_match")
    result = finished(config)
    population = prepare_experiment(config).population
    pairs = list(answers_of(config, result.parameters, population.global_test.tolist()))
    right = [answer in wanted for answer, wanted in pairs]
    assert result.summary["eval/global/exact_match"] == pytest.approx(np.mean(right))
    assert result.last.validation == result.last.metrics["eval/validation/exact_match"]
    assert "eval/personal/worst_exact_match" in result.summary


@pytest.mark.parametrize("rule", ["ditto", "fedoa"])
def test_personal_models_write_for_themselves(make_written_config, rule):
    result = finished(make_written_config(f"federation={rule}"))
    personal, shared = (result.summary[f"eval/personal/{n}"] for n in ("rougeL", "shared_rougeL"))
    assert 0 <= shared <= 1
    assert 0 <= personal <= 1
    assert result.last.metrics["eval/personal/nll"] != result.last.metrics["eval/global/nll"]


def test_more_clients_write_side_by_side_than_train_as_one(make_written_config):
    def sizes(*overrides):
        config = make_written_config("scenario.num_clients=7", "resources.group_size=1", *overrides)
        scorer = Scorer(prepare_experiment(config), InlineExecutor(), Placement(1), None, {})
        return [list(map(len, g)) for g in (scorer.training_groups, scorer.groups)]

    assert sizes() == [[1] * 7, [2, 2, 2, 1]]
    assert sizes("resources.group_size=4") == [[4, 3], [4, 3]]


@pytest.mark.ray
def test_actors_write_what_one_process_writes(make_written_config, local_ray):
    fields = ("federation=ditto", "federation.rounds=1", "evaluation.references=false")
    inline = finished(make_written_config("name=one", *fields))
    actors = ("resources.executor=ray", "resources.clients_per_actor=2")
    on_ray = finished(make_written_config("name=two", *fields, *actors))
    scores = ({n: v for n, v in run.summary.items() if "eval/" in n} for run in (inline, on_ray))
    assert next(scores) == next(scores)
    assert inline.last.client_metrics == on_ray.last.client_metrics


def test_a_comparison_ranks_by_the_headline_of_what_was_asked(make_written_config):
    compared = fedarena.compare([make_written_config()], seeds=1, references=False)
    assert compared.question.metric == "eval/personal/rougeL"
    assert 0 <= compared.summary["eval/personal/rougeL"].iloc[0] <= 1


def test_lists_reports_and_comparisons_name_what_was_measured(make_written_config, tmp_path):
    config = make_written_config()
    result = finished(config)
    (listed,) = list_runs(tmp_path / "runs")
    assert listed.score == result.summary["eval/personal/rougeL"]
    assert describe_run(result.folder).metrics["eval/global/rouge2"] >= 0
    folder = ["--folder", str(tmp_path / "runs")]
    page = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["report", *folder, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "% ROUGE-L" in done.output
    assert "accuracy" not in done.output
    assert "ROUGE-L means: mean ROUGE-L of the clients" in page.read_text().replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.headline=accuracy", r"headline = accuracy .* writes answers.*rougeL"),
        ("learner.head=label_words evaluation.headline=rougeL", r"tells classes apart.*accuracy"),
        ("attack=label_flip", r"label_flip moves classes"),
        ("learner.max_new_tokens=0", r"max_new_tokens = 0 is not allowed"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make_written_config, override, message):
    with pytest.raises(ConfigError, match=message):
        make_written_config(*override.split())


def test_data_and_models_that_cannot_be_are_refused_before_anything_is_computed(
    make_written_config, feature_store
):
    before = set(feature_store.glob("*.arrow"))
    long = [*rows_of(), {**rows_of(1)[0], "prompt": "w9 w9", "answers": ["w1 w2 w3 w4"]}]
    with pytest.raises(DataError, match=r"1 of 25 responses have more than .*= 4 .*has 5"):
        prepare_experiment(make_written_config(rows=long))
    with pytest.raises(ConfigError, match=r"generation needs a causal model"):
        prepare_experiment(make_written_config(model=BERT))
    config = make_written_config()
    plain = config.scenario.dataset.replace("&response=answers", "&label=kind")
    with pytest.raises(DataError, match=r"has no responses.*\?response=answer"):
        prepare_experiment(make_written_config(f"scenario.dataset={plain}"))
    other = [{**row, "answers": ["Да"]} for row in rows_of()]
    with pytest.raises(DataError, match=r"24 responses .* ROUGE .*headline=exact_match"):
        prepare_experiment(make_written_config(rows=other))
    prepare_experiment(make_written_config("evaluation.headline=exact_match", rows=other))
    assert set(feature_store.glob("*.arrow")) == before


def test_responses_that_the_shared_store_has_were_checked_before_they_came_there(
    make_written_config, tmp_path
):
    """A node whose own store is empty asks the shared one, and fetches nothing to be told."""
    with mounted("s3") as bucket:
        urls = [f"store={tmp_path}/{node}" for node in ("a", "b")]
        first, second = (make_written_config("shared_store=s3://bucket/store", u) for u in urls)
        list(compute_features(prepare_experiment(first), InlineExecutor()))
        bucket.calls.clear()
        keys = prepare_experiment(second).features[second.scenario.dataset]
        read = bucket.names("get")
    (responses,) = (key for kind, key in keys.items() if kind.startswith("response_ids"))
    assert read == [f"{responses.digest}.json"]


def test_prompts_and_responses_are_a_data_set_without_labels(tmp_path):
    spec = write_rows(tmp_path / "asked.jsonl", rows_of(8))
    dataset = load_dataset(spec)
    assert dataset.classes == ("open-ended",)
    assert dataset.responses[0] == ("cat", "the cat")
    single = [{**row, "answers": row["answers"][0]} for row in rows_of(8)]
    other = load_dataset(write_rows(tmp_path / "single.jsonl", single))
    assert other.responses[0] == ("cat",)
    assert other.response_fingerprint == dataset.response_fingerprint
    assert other.fingerprint != dataset.fingerprint
    blank = [*rows_of(8), {**rows_of(1)[0], "answers": ["cat", " "]}]
    with pytest.raises(DataError, match=r"responses are empty in 1 rows: \[8\]"):
        load_dataset(write_rows(tmp_path / "blank.jsonl", blank))
