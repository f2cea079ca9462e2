"""What a run keeps besides its rounds, and how the report shows it: environment and confusions."""

import csv
import importlib.metadata
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

import fedarena
from orchestrator.checkpoint import RoundRecord, RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.environment import ENVIRONMENT_FILE, Environment, _commit, read_environments
from orchestrator.environment import note_environment as note
from orchestrator.export import export_run
from orchestrator.report.confusion import Confusion, leading_confusion
from orchestrator.report.content import Ask, make_report
from orchestrator.report.curves import read_curve
from orchestrator.report.figures import confusion_figure
from orchestrator.report.gather import gather
from orchestrator.report.page import as_html
from orchestrator.results import Result
from scenarios.data.catalogue import load_dataset
from scenarios.evaluate import OWN
from scenarios.population import Population


@pytest.fixture(scope="module")
def folder(tiny_clip, colours, feature_store, tmp_path_factory):
    """Two seeds of one method."""
    runs = tmp_path_factory.mktemp("kept") / "runs"
    for seed in (0, 1):
        fedarena.run(
            {
                "backbone": {"model": f"local-dir:{tiny_clip}"},
                "scenario": {"dataset": str(colours), "num_clients": 3},
                "learner": {"num_tokens": 2},
                "federation": {"rounds": 5},
                "training": {"optimizer": {"lr": 0.1}, "batch_size": 8, "local_steps": 2},
                "evaluation": {"every": 1},
                "resources": {"executor": "inline"},
                "tracking": {"enabled": False},
                "folder": str(runs),
                "store": str(feature_store),
                "name": "promptfl",
                "seed": seed,
            }
        )
    return runs


@pytest.fixture(scope="module")
def results(folder):
    return [Result.load(path.parent) for path in sorted(folder.glob("*/DONE"))]


# -- environment ---------------------------------------------------------------------------------


def test_a_run_says_what_it_is_computed_with(results):
    (noted,) = read_environments(RunStore(results[0].folder))
    assert noted.rounds_done == 0
    assert noted.values["torch"] == importlib.metadata.version("torch")
    assert noted.values["torch threads"] == "1"
    assert {"Python", "CPU", "CPUs", "system", "numpy", "fedarena"} <= set(noted.values)


def test_a_run_that_goes_on_elsewhere_says_from_when(tmp_path):
    store = RunStore(tmp_path)
    note(store, 1)
    note(store, 1)
    assert len(read_environments(store)) == 1
    for round in (-1, 0, 1):
        store.rounds_folder.mkdir(exist_ok=True)
        (store.rounds_folder / f"{round + 1:06d}.json").write_text("{}")
    note(store, 4)
    first, second = read_environments(store)
    assert (first.rounds_done, second.rounds_done) == (0, 2)
    assert second.values == {**first.values, "torch threads": "4"}


def test_a_damaged_note_stops_nothing(tmp_path):
    store = RunStore(tmp_path)
    (tmp_path / ENVIRONMENT_FILE).write_text("{")
    assert read_environments(store) == []
    note(store, 2)
    assert read_environments(store)[0].values["torch threads"] == "2"


def test_a_checkout_is_named_by_its_commit_and_other_folders_are_not(tmp_path):
    assert _commit(tmp_path) is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert _commit(tmp_path) == head.stdout[:12]
    (tmp_path / "file").write_text("two")
    assert _commit(tmp_path) == f"{head.stdout[:12]} with changes"


def changed_copy(folder, tmp_path, change):
    """The runs, with the environment of the second one changed, or removed where it is None."""
    shutil.copytree(folder, tmp_path / "runs")
    second = sorted(path.parent for path in (tmp_path / "runs").glob("*/DONE"))[1]
    noted = read_environments(RunStore(second))[0]
    for path in (tmp_path / "runs").glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(folder), str(tmp_path / "runs")))
    if change is None:
        (second / ENVIRONMENT_FILE).unlink()
    else:
        text = json.dumps([vars(Environment(0, {**noted.values, **change}))])
        (second / ENVIRONMENT_FILE).write_text(text)
    return make_report(gather([], tmp_path / "runs"), Ask(budgets=(1.0,))), second.name


def test_equal_environments_are_told_once_and_raise_no_doubt(folder):
    report = make_report(gather([], folder), Ask(budgets=(1.0,)))
    rows = report.table("environment").records()
    torch = [row for row in rows if row["what"] == "torch"]
    assert torch == [{"what": "torch", "value": importlib.metadata.version("torch"), "runs": "all"}]
    assert not any("computed with" in caution for caution in report.cautions)


def test_what_differs_between_runs_stands_first_and_is_a_caution(folder, tmp_path):
    report, second = changed_copy(folder, tmp_path, {"torch": "9.9", "CPUs": "4096"})
    rows = report.table("environment").records()
    assert {row["what"] for row in rows[:4]} == {"torch", "CPUs"}
    assert {"what": "torch", "value": "9.9", "runs": second} in rows
    (caution,) = (text for text in report.cautions if "computed with" in text)
    assert "torch" in caution
    assert "CPUs" not in caution  # how many there are changes no number
    assert "9.9" in as_html(report)


def test_a_run_from_before_environments_were_kept_is_told_as_such(folder, tmp_path):
    report, second = changed_copy(folder, tmp_path, None)
    rows = report.table("environment").records()
    assert {"what": "not recorded", "runs": second} in rows
    assert [row["runs"] for row in rows if row["what"] == "torch"] == ["all"]
    assert not any("computed with" in caution for caution in report.cautions)


# -- confusions ----------------------------------------------------------------------------------


def test_counts_agree_with_the_data_and_with_the_accuracy(results):
    for result in results:
        population = Population.load(result.folder / "population.parquet")
        labels = population.labels[population.global_test]
        counts = result.confusion
        assert counts.sum(axis=1).tolist() == np.bincount(labels).tolist()
        accuracy = result.last.metrics["eval/global/accuracy"]
        assert np.trace(counts) / len(labels) == pytest.approx(accuracy)


def test_counts_stay_for_the_last_rounds_and_the_chosen_one_only(results):
    for result in results:
        kept = {r.round for r in result.records if result.confusion_after(r) is not None}
        assert {result.last.round, result.selected.round} <= kept
        last = result.last.round
        assert kept <= {last, last - 1, last - 2, result.selected.round} < set(range(-1, last + 1))
        chosen = result.confusion_after(result.selected)
        accuracy = result.selected.metrics["eval/global/accuracy"]
        assert np.trace(chosen) / chosen.sum() == pytest.approx(accuracy)


def test_counts_are_no_part_of_the_servers_state(results):
    state = RunStore(results[0].folder).server_state(results[0].last)
    assert not any("confusion" in name for name in state.tensors)


def test_a_round_that_was_not_scored_has_no_counts(results, tmp_path):
    source = RunStore(results[0].folder)
    state = source.server_state(results[0].last)
    store = RunStore(tmp_path)
    record = store.commit(RoundRecord(-1, 0), replace(state, round=0), {})
    assert store.confusion(record) is None


def test_counts_are_exported_as_a_table_with_names(results, colours):
    found = export_run(results[0])
    assert {"confusion.csv", "confusion_chosen.csv", ENVIRONMENT_FILE} <= set(found)
    with found["confusion.csv"].open() as file:
        rows = list(csv.reader(file))
    classes = list(load_dataset(str(colours)).classes)
    assert rows[0] == ["true", *classes]
    assert [row[0] for row in rows[1:]] == classes
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == results[0].confusion.tolist()


def test_the_report_adds_up_the_seeds_of_the_leading_method(folder, results):
    report = make_report(gather([], folder), Ask(budgets=(1.0,)))
    (answer,) = report.answers
    found = leading_confusion(report, answer.scenario)
    assert found.num_runs == 2
    assert (found.counts == results[0].confusion + results[1].confusion).all()
    assert "What is taken for what" in as_html(report)


def test_the_most_frequent_mistakes_are_named_true_class_first():
    counts = np.array([[5, 3, 0], [0, 9, 1], [0, 0, 4]])
    found = Confusion("m", ("cat", "dog", "fox"), counts, 1)
    assert found.mistakes == ["cat taken for dog (3 of 8)", "dog taken for fox (1 of 10)"]


def test_cells_show_the_share_of_their_row():
    svg = confusion_figure(np.array([[3, 1], [0, 0]]), ("a$b", "_c"))
    assert ">75<" in svg
    assert ">25<" in svg
    assert "nan" not in svg.lower()


def test_a_peak_is_the_largest_of_all_rounds_and_what_is_left_is_no_cost(tmp_path, monkeypatch):
    rounds = [(5.0, 1.0, 9.0), (8.0, 2.0, 7.0), (6.0, 4.0, 3.0)]
    names = ("memory/client_peak_bytes", "time/train_s", "time/budget_left_s")
    records = [
        RoundRecord(i - 1, 0, metrics=dict(zip(names, row, strict=True)))
        for i, row in enumerate(rounds)
    ]
    result = Result(tmp_path, records)
    assert result.summary == {names[0]: 8.0, "time/run_s": 7.0, names[2]: 3.0}
    monkeypatch.setattr(Result, "load", lambda _: result)
    assert read_curve(ExperimentConfig(), OWN).costs == {names[0]: 8.0, names[1]: 7.0}
