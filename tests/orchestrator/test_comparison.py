"""A comparison: references train as much, every number is a run's, and nothing runs twice."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import fedarena
from fl_core.errors import ConfigError
from fl_core.federation import FEDERATIONS, Ditto, FedAvg
from fl_core.work import Moment, Training, plan_work
from orchestrator import client
from orchestrator.cli import main
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.display import NOT_AVAILABLE, show_comparison
from orchestrator.compare.effort import (
    centralised_of,
    examples_per_round,
    measure_effort,
    trainings_per_round,
)
from orchestrator.compare.export import as_json, draw_comparison, write_comparison
from orchestrator.compare.lineup import Question, Row, line_up
from orchestrator.compare.measurable import metric_names
from orchestrator.compare.outcomes import Outcome, with_worse_off
from orchestrator.config import ExperimentConfig
from orchestrator.experiment import run_folder
from orchestrator.labels import scenario_label, told_apart
from orchestrator.loading import load_config, resolve, to_yaml
from orchestrator.results import Result
from orchestrator.run import run_experiments
from scenarios import statistics
from scenarios.evaluate import OWN
from scenarios.population import Population


@pytest.fixture
def promptfl(make_config):
    return make_config("name=promptfl", "federation.rounds=2")


@pytest.fixture
def fedprox(make_config):
    strong = ("federation=fedprox", "federation.mu=1.0", "federation.rounds=2")
    return make_config("name=fedprox", *strong)


@pytest.fixture(scope="module")
def pair(tiny_clip, colours, feature_store, tmp_path_factory):
    """Two methods in a folder that the tests of this file share."""
    settings = {
        "backbone": {"model": f"local-dir:{tiny_clip}"},
        "scenario": {"dataset": str(colours), "num_clients": 8, "partition": {"alpha": 1.0}},
        "learner": {"num_tokens": 4},
        "training": {"optimizer": {"lr": 0.1}, "batch_size": 8},
        "resources": {"executor": "inline", "group_size": 2},
        "tracking": {"enabled": False},
        "folder": str(tmp_path_factory.mktemp("compared")),
        "store": str(feature_store),
    }
    rules = {"promptfl": {"rounds": 2}, "fedprox": {"name": "fedprox", "mu": 1.0, "rounds": 2}}
    return [
        resolve(load_config({**settings, "name": n, "federation": r})) for n, r in rules.items()
    ]


@pytest.fixture(scope="module")
def folder(pair):
    return pair[0].folder


@pytest.fixture(scope="module")
def compared(pair):
    return fedarena.compare(pair, seeds=2, target_accuracy=0.3)


def row_of(comparison, method):
    found = comparison.summary[comparison.summary["method"] == method]
    assert len(found) == 1
    return found.iloc[0]


def own_accuracies(comparison, method, folder):
    """By seed, read from the runs' own records."""
    rows = comparison.runs[comparison.runs["method"] == method]
    return {
        row["seed"]: Result.load(folder / row["run"]).last.client_metrics[OWN]
        for row in rows.to_dict("records")
    }


# -- how much is trained -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 1, 3, 7, 20])
@pytest.mark.parametrize("num_examples", [1, 8, 13, 50])
def test_examples_of_a_round_are_those_of_its_batches(steps, num_examples):
    training = Training(local_epochs=2, local_steps=steps, batch_size=8)
    work = plan_work(training, Moment(0, 1, 0), [0], [torch.arange(num_examples)])
    assert examples_per_round(training, num_examples) == int(work.mask.sum())
    assert training.num_steps(num_examples) == int(work.active.sum())


@pytest.mark.parametrize(
    "cohort",
    [
        "federation.clients_per_round=null",
        "federation.clients_per_round=4",
        "federation.clients_per_round=3",
        "federation.clients_per_round=1",
    ],
)
@pytest.mark.parametrize("local", ["training.local_epochs=2", "training.local_steps=3"])
def test_references_train_on_as_many_examples(make_config, monkeypatch, cohort, local):
    """Counted where batches are drawn; centralised training matches the mean over cohorts."""
    method = make_config(cohort, local, "federation.rounds=6", "evaluation.every=0")
    rows = line_up([method], Question(seeds=1))
    trained = {}
    for row in rows:
        config = row.configs[0]
        counted = []

        def counting(*args, counted=counted):
            work = plan_work(*args)
            counted.append((int(work.mask.sum()), int(work.active.sum())))
            return work

        monkeypatch.setattr(client, "plan_work", counting)
        (result,) = run_experiments([config])
        population = Population.load(result.folder / "population.parquet")
        effort = measure_effort(config, population, result.records)
        examples, steps = (sum(part) for part in zip(*counted, strict=True))
        num_train = int(population.num_examples.sum())
        assert effort.steps == steps
        assert effort.passes == pytest.approx(examples / num_train)
        trained[row.method] = examples
        sizes = population.num_examples
    assert trained["local only"] == trained[rows[0].method]
    share = (method.federation.clients_per_round or 8) / 8
    wanted = 6 * share * sum(examples_per_round(method.training, n) for n in sizes.tolist())
    assert trained["centralised"] == pytest.approx(wanted, rel=0.02, abs=method.training.batch_size)


@pytest.mark.parametrize("setting", ["attack.name=label_flip", "participation.dropout=0.3"])
def test_methods_under_attack_are_held_against_pooled_data_that_nobody_spoils(make_config, setting):
    method = make_config(setting)
    rows = {row.method: row.configs[0] for row in line_up([method], Question(seeds=1))}
    usual = ExperimentConfig()
    pooled, alone = rows["centralised"], rows["local only"]
    assert (pooled.attack, pooled.participation) == (usual.attack, usual.participation)
    assert (alone.attack, alone.participation) == (method.attack, method.participation)


def test_whole_epochs_are_kept_where_they_match(make_config):
    sizes = np.array([5, 0, 20, 15, 40])
    training = ("training.local_epochs=2", "federation.rounds=10")
    everyone = centralised_of(make_config(*training), 10, sizes)
    assert (everyone.federation.rounds, everyone.training.local_epochs) == (10, 2)
    assert everyone.training.local_steps is None
    half = centralised_of(make_config(*training, "federation.clients_per_round=2"), 10, sizes)
    assert (half.federation.rounds, half.training.local_epochs) == (5, 2)
    uneven = centralised_of(make_config(*training, "federation.clients_per_round=1"), 10, sizes)
    assert uneven.federation.rounds * uneven.training.local_epochs == 5


def test_a_rule_that_trains_two_models_passes_twice_over_the_data():
    assert trainings_per_round(FedAvg()) == 1
    assert trainings_per_round(Ditto()) == 2
    assert all(trainings_per_round(rule()) >= 1 for rule in FEDERATIONS)


def test_clients_that_never_train_are_left_out_of_the_passes(make_config):
    unseen = ("scenario.protocol=unseen_clients", "scenario.protocol.fraction=0.25")
    compared = fedarena.compare([make_config(*unseen, "federation.rounds=2")], seeds=1)
    passes = compared.summary.set_index("method")["passes"]
    assert passes[["local only", "centralised"]].tolist() == [2.0, 2.0]
    assert compared.summary["eval/unseen/participation_gap"].notna().any()


# -- rows ----------------------------------------------------------------------------------------


def test_methods_come_first_then_references_one_row_each(compared):
    assert compared.summary["method"].tolist() == [
        "promptfl",
        "fedprox",
        "majority class",
        "zero-shot",
        "zero-shot, ensemble",
        "local only",
        "centralised",
    ]
    assert compared.summary["kind"].tolist() == ["method"] * 2 + ["reference"] * 5
    assert (compared.summary["num_seeds"] == 2).all()


def test_untrained_references_are_those_of_the_first_record(compared, folder):
    runs = compared.runs
    for seed in (0, 1):
        run = runs[(runs["method"] == "promptfl") & (runs["seed"] == seed)]["run"].item()
        first = Result.load(folder / run).records[0].metrics
        for method, name in (("majority class", "majority"), ("zero-shot", "zero_shot")):
            row = runs[(runs["method"] == method) & (runs["seed"] == seed)].iloc[0]
            for kind in ("global", "personal"):
                assert row[f"eval/{kind}/accuracy"] == first[f"reference/{name}/{kind}/accuracy"]


def test_worse_off_is_counted_client_by_client_and_seed_by_seed(compared, folder):
    ours = own_accuracies(compared, "promptfl", folder)
    alone = own_accuracies(compared, "local only", folder)
    runs = compared.runs.set_index(["method", "seed"])
    for seed in (0, 1):
        pairs = [
            (a, b)
            for a, b in zip(ours[seed], alone[seed], strict=True)
            if a is not None and b is not None
        ]
        share = sum(a < b for a, b in pairs) / len(pairs)
        assert runs.loc[("promptfl", seed), "worse_than_local_only"] == pytest.approx(share)
        result = Result.load(folder / runs.loc[("promptfl", seed), "run"])
        recorded = result.summary["eval/personal/worse_than_zero_shot"]
        assert runs.loc[("promptfl", seed), "worse_than_zero_shot"] == pytest.approx(recorded)


def test_each_client_is_held_against_itself_under_its_seed():
    def outcome(method, seed, *values):
        kind = "method" if method == "ours" else "reference"
        return Outcome("s", method, kind, seed, "run", {}, {OWN: values})

    outcomes = [
        outcome("ours", 0, 0.1, 0.6, None, 0.5),
        outcome("ours", 1, 0.9, 0.2, 0.3, 0.4),
        outcome("local only", 0, 0.2, 0.5, 0.9, 0.5),
        outcome("local only", 1, 0.8, 0.3, 0.4, 0.5),
        outcome("zero-shot", 0, 0.0, 0.7, 0.9, 0.6),
    ]
    row = Row("s", "ours", "method", {0: ExperimentConfig()}, alone="local only")
    found = {(o.method, o.seed): o.metrics for o in with_worse_off(outcomes, [row])}
    assert found["ours", 0]["worse_than_local_only"] == pytest.approx(1 / 3)
    assert found["ours", 1] == {"worse_than_local_only": 0.75}
    assert found["ours", 0]["worse_than_zero_shot"] == pytest.approx(2 / 3)
    assert "worse_than_local_only" not in found["local only", 0]


def test_what_a_method_lacks_is_absent_and_never_zero(compared):
    local, central = row_of(compared, "local only"), row_of(compared, "centralised")
    assert math.isnan(local["eval/global/accuracy"])
    assert math.isnan(local["worse_than_local_only"])
    assert math.isnan(central["up_mb"])
    assert math.isnan(row_of(compared, "zero-shot")["run_s"])
    assert local["up_mb"] == 0
    written = json.loads(json.dumps(as_json(compared)))
    found = next(row for row in written["summary"] if row["method"] == "local only")
    assert "eval/global/accuracy" not in found


def test_references_that_the_user_gives_are_not_added_again(promptfl, make_config):
    alone = make_config("name=mine", "federation=local_only", "federation.rounds=2")
    zero_shot = make_config("name=clip", "learner=zero_shot")
    rows = line_up([promptfl, alone, zero_shot], Question(seeds=1))
    assert [(row.method, row.kind) for row in rows] == [
        ("promptfl", "method"),
        ("mine", "reference"),
        ("clip", "reference"),
        ("centralised", "reference"),
    ]
    assert rows[0].alone == "mine"
    compared = fedarena.compare([promptfl, zero_shot], seeds=1)
    assert compared.summary["method"].tolist().count("zero-shot") == 0
    assert not math.isnan(row_of(compared, "promptfl")["worse_than_zero_shot"])


def test_methods_that_train_alike_share_their_references(promptfl, fedprox, make_config):
    coded = make_config("name=fp16", "communication.codec=fp16", "federation.rounds=2")
    longer = make_config("name=longer", "federation.rounds=3")
    rows = line_up([promptfl, fedprox, coded, longer], Question(seeds=1))
    assert [row.method for row in rows] == [
        "promptfl",
        "fedprox",
        "fp16",
        "longer",
        "local only (federation.rounds=2)",
        "centralised (federation.rounds=2)",
        "local only (federation.rounds=3)",
        "centralised (federation.rounds=3)",
    ]
    assert rows[3].alone == "local only (federation.rounds=3)"


def test_a_budget_shortens_the_references_too(make_config):
    few = make_config("communication.budget.megabytes=0.02", "federation.rounds=50")
    rows = line_up([few], Question(seeds=1))
    (result,) = run_experiments([rows[0].configs[0]])
    rounds = len(result.records) - 1
    assert 1 <= rounds < 50
    assert [row.configs[0].federation.rounds for row in rows[1:]] == [rounds, rounds]


def test_seeds_count_up_and_data_stay_unless_they_are_to_vary(promptfl):
    fixed = line_up([promptfl], Question(seeds=3, references=False))[0].configs
    assert [(c.seed, c.scenario.seed) for c in fixed.values()] == [(0, 0), (1, 0), (2, 0)]
    varied = line_up([promptfl], Question(seeds=2, vary_data=True))
    for row in varied:
        assert [(c.seed, c.scenario.seed) for c in row.configs.values()] == [(0, 0), (1, 1)]


def test_each_scenario_has_its_own_rows(promptfl, make_config):
    other = make_config("name=promptfl", "federation.rounds=2", "scenario.partition.alpha=5.0")
    rows = line_up([promptfl, other], Question(seeds=1))
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    assert [name.split(", ")[1] for name in scenarios] == [
        "dirichlet alpha=1.0",
        "dirichlet alpha=5.0",
    ]
    assert [row.scenario for row in rows if row.method == "centralised"] == scenarios


def test_equal_names_are_told_apart_by_what_differs():
    settings = [{"a": {"x": 1, "y": 2}}, {"a": {"x": 3, "y": 2}}, {"a": {"x": 3, "y": 2}}]
    assert told_apart(["m", "m", "other"], settings) == ["m (a.x=1)", "m (a.x=3)", "other"]


def test_a_scenario_is_named_by_what_is_unusual(make_config):
    label = scenario_label(make_config("scenario.shots=4", "scenario.protocol=base_to_novel"))
    assert label.endswith(
        ", dirichlet alpha=1.0, 8 clients, 4 shots per class and federation, base_to_novel"
    )


def test_every_fault_is_told_before_anything_runs(promptfl, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)seeds = 0.*metric = 'accuracy'"):
        Question(seeds=0, metric="accuracy")
    with pytest.raises(ConfigError, match="more is better"):
        Question(metric="eval/global/nll")
    manifest = tmp_path / "p.parquet"
    fixed = to_yaml(promptfl).replace("manifest: null", f"manifest: {manifest}")
    (tmp_path / "fixed.yaml").write_text(fixed)
    with pytest.raises(ConfigError, match="data cannot vary"):
        line_up([tmp_path / "fixed.yaml"], Question(vary_data=True))


def test_an_unknown_metric_names_the_known_ones_before_anything_runs(promptfl):
    with pytest.raises(ConfigError, match="Did you mean 'eval/global/accuracy'"):
        fedarena.compare([promptfl], seeds=1, references=False, metric="eval/global/acuracy")
    assert not promptfl.folder.exists()


def test_a_metric_that_no_method_has_is_told_after_the_runs(make_config):
    alone = make_config("federation=local_only", "federation.rounds=1")
    with pytest.raises(ConfigError, match="was measured for no method"):
        fedarena.compare([alone], seeds=1, references=False, metric="eval/global/accuracy")


@pytest.mark.parametrize(
    "protocol",
    [
        ["standard", "scenario.protocol.neighbours=2"],
        ["base_to_novel"],
        ["cross_dataset", "scenario.protocol.datasets=[flags]"],
        ["unseen_clients", "scenario.protocol.newcomer=adapt"],
    ],
)
@pytest.mark.parametrize("rule", ["fedavg", "ditto", "local_only"])
def test_whatever_a_run_measures_was_known_before(make_config, four_colours, protocol, rule):
    settings = [f"scenario.protocol={protocol[0]}", *protocol[1:], f"federation={rule}"]
    settings.append(f"scenario.dataset={four_colours}")
    config = make_config(*settings, "federation.rounds=1")
    (result,) = run_experiments([config])
    measured = {n for r in result.records for n in r.metrics if n.startswith("eval/")}
    known = metric_names(config)
    assert measured <= known
    if rule == "ditto":  # which has both kinds of models, so nothing that is known is missing
        assert measured == known


# -- which is best -------------------------------------------------------------------------------


def test_the_judgement_is_that_of_the_statistics(compared, folder):
    values = {
        method: own_accuracies(compared, method, folder) for method in ("promptfl", "fedprox")
    }
    expected = statistics.judge(values, seed=0)
    assert expected.leader in compared.verdict
    assert expected.verdict in compared.verdict
    among = compared.differences[compared.differences["kind"] == "method"]
    assert len(among) == 1
    row = among.iloc[0]
    gain = expected.rivals[row["other"]]
    assert row["leader"] == expected.leader
    assert (row["difference"], row["low"], row["high"]) == (gain.difference, gain.low, gain.high)
    assert row["p_adjusted"] == expected.adjusted[row["other"]]
    assert row["num_clusters"] == 8


def test_means_and_intervals_are_those_of_the_statistics(compared):
    values = compared.runs[compared.runs["method"] == "promptfl"]["eval/global/accuracy"]
    spread, row = statistics.over_seeds(values.tolist()), row_of(compared, "promptfl")
    for name, part in (("", "mean"), (".std", "std"), (".low", "low"), (".high", "high")):
        assert row[f"eval/global/accuracy{name}"] == vars(spread)[part]


def test_a_metric_of_the_shared_model_is_compared_seed_by_seed(pair):
    compared = fedarena.compare(pair, seeds=3, metric="eval/global/accuracy")
    runs = compared.runs.set_index(["method", "seed"])["eval/global/accuracy"]
    row = compared.differences[compared.differences["kind"] == "method"].iloc[0]
    expected = np.mean([runs[row["leader"], s] - runs[row["other"], s] for s in range(3)])
    assert row["difference"] == pytest.approx(expected)
    assert row["num_clusters"] == 3
    assert "indicative" in compared.verdict
    assert "local only" not in compared.differences["other"].tolist()


def test_drawn_clients_are_not_taken_for_the_same_ones(promptfl, fedprox):
    compared = fedarena.compare([promptfl, fedprox], seeds=2, vary_data=True, references=False)
    tested = sum(
        sum(value is not None for value in values)
        for values in own_accuracies(compared, "promptfl", promptfl.folder).values()
    )
    assert compared.differences["num_clusters"].tolist() == [tested]


# -- once, and for others ------------------------------------------------------------------------


def test_a_second_call_runs_nothing_anew(compared, pair, folder):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*/rounds/*"))}

    before = stamps()
    again = fedarena.compare(pair, seeds=2, target_accuracy=0.3)
    assert before
    assert stamps() == before
    pd.testing.assert_frame_equal(again.runs, compared.runs)
    assert again.verdict == compared.verdict


def test_a_finished_run_of_another_name_is_taken(promptfl, make_config):
    named = make_config("name=somebodys", "federation=local_only", "federation.rounds=2")
    run_experiments([named])
    rows = line_up([promptfl], Question(seeds=1))
    alone = next(row for row in rows if row.method == "local only")
    assert run_folder(alone.configs[0]) == run_folder(named)


def test_the_price_of_a_target_is_read_off_the_curve(compared, folder):
    runs = compared.runs.set_index(["method", "seed"])
    for seed in (0, 1):
        rounds = Result.load(folder / runs.loc[("promptfl", seed), "run"]).rounds
        reached = rounds[rounds[OWN] >= 0.3]["comm/total_mb"]
        expected = reached.iloc[0] if len(reached) else math.nan
        found = runs.loc[("promptfl", seed), "mb_to_target"]
        assert found == pytest.approx(expected, nan_ok=True)


def test_a_target_that_no_method_reaches_is_told_as_such(pair):
    found = fedarena.compare(pair, seeds=2, references=False, target_accuracy=1.0)
    assert "mb_to_target" not in found.summary
    console = Console(width=160, record=True, file=io.StringIO())
    show_comparison(found, console)
    assert "MB to 100 %" in console.export_text()


def test_one_file_in_place_of_a_list_is_refused_as_such():
    with pytest.raises(ConfigError, match=r"give a list of them, \['one.yaml'\]"):
        fedarena.compare("one.yaml")


def test_files_hold_the_tables_and_the_picture_opens(compared, tmp_path):
    from PIL import Image

    for path in write_comparison(compared, tmp_path / "out"):
        assert path.exists()
    with (tmp_path / "out" / "comparison.csv").open() as handle:
        runs = list(csv.DictReader(handle))
    assert len(runs) == 7 * 2
    with (tmp_path / "out" / "summary.csv").open() as handle:
        summary = {row["method"]: row for row in csv.DictReader(handle)}
    assert len(summary) == 7
    assert summary["local only"]["eval/global/accuracy"] == ""
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["verdict"] == compared.verdict
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert min(image.size) > 300


def test_the_picture_shows_curves_that_end_at_the_last_mean(compared):
    (axes,) = draw_comparison(compared).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    x, y = lines["promptfl"].get_data()
    row = row_of(compared, "promptfl")
    assert x[-1] == pytest.approx(row["up_mb"] + row["down_mb"])
    assert y[-1] == pytest.approx(100 * row[OWN])
    level = 100 * row_of(compared, "local only")[OWN]
    assert set(lines["local only"].get_ydata()) == {level}
    assert "MB" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_what_the_protocol_measures_has_columns_of_its_own(make_config, four_colours):
    data = f"scenario.dataset={four_colours}"
    novel = make_config(data, "scenario.protocol=base_to_novel", "federation.rounds=1")
    compared = fedarena.compare([novel], seeds=2)
    console = Console(width=100, record=True, file=io.StringIO())
    show_comparison(compared, console)
    shown = console.export_text()
    assert all(f" {title} %" in shown for title in ("base", "novel", "hm2", "hm3", "cm"))
    assert not any(end in shown for end in (".std", ".low", ".high", ".num"))
    value = 100 * row_of(compared, "zero-shot")["eval/novel/accuracy"]
    rows = [line for line in shown.splitlines() if line.startswith("zero-shot ")]
    assert any(f"{value:.1f} ± 0.0" in row for row in rows)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_are_split_and_never_cut(compared, width):
    console = Console(width=width, record=True, file=io.StringIO())
    show_comparison(compared, console)
    shown = console.export_text()
    assert "…" not in shown
    assert NOT_AVAILABLE in shown
    tables = [line for line in shown.splitlines() if line.startswith("method ")]
    assert len(tables) <= {80: 4, 100: 3, 160: 2}[width]
    assert all(len(line) <= width for line in tables)


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_name_gives_way_and_no_number_is_cut(compared, width):
    long = "local only (federation.clients_per_round=None, federation.rounds=3, participation=late)"
    tables = {
        part: getattr(compared, part).replace("local only", long)
        for part in ("summary", "differences")
    }
    console = Console(width=width, record=True, file=io.StringIO())
    show_comparison(replace(compared, **tables), console)
    shown = console.export_text()
    assert "…" not in shown
    (row,) = tables["differences"].query("other == @long").to_dict("records")
    assert f"{100 * row['difference']:+.1f}" in shown.partition("Which is best")[2]


def test_the_command_shows_the_tables_and_the_verdict(pair, compared, tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(to_yaml(pair[0]))
    words = ["compare", str(file), "--seeds", "2", "--quiet", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "promptfl stands alone" in done.output
    assert "single runs" in done.output
    assert "local only" in done.output
    assert (tmp_path / "out" / "comparison.png").exists()


def test_without_references_there_are_none(promptfl):
    compared = fedarena.compare([promptfl], seeds=1, references=False)
    assert isinstance(compared, Comparison)
    assert compared.summary["method"].tolist() == ["promptfl"]
    assert compared.differences.empty
