"""The report: its numbers are those of the runs, its page is whole and safe, its answer right."""

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import fedarena
from fl_core.errors import ConfigError, StateError
from orchestrator.checkpoint import RoundRecord
from orchestrator.cli import main
from orchestrator.compare.export import write_comparison
from orchestrator.compare.lineup import Question
from orchestrator.compare.outcomes import outcomes_of
from orchestrator.experiment import run_folder
from orchestrator.loading import config_hash, load_config, resolve, to_dict, to_yaml
from orchestrator.report.content import Ask, _target, make_report
from orchestrator.report.curves import Curve, busiest_bytes
from orchestrator.report.decisions import (
    cheapest,
    choose,
    how_sure,
    sentence,
)
from orchestrator.report.formats import as_csv, as_json, as_latex
from orchestrator.report.gather import gather
from orchestrator.report.listing import Listed, age, describe_run, list_runs, show_runs
from orchestrator.report.page import as_html
from orchestrator.report.references import Reference
from orchestrator.report.tables import Column, significant
from orchestrator.report.write import write_report
from orchestrator.results import Result
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.run import run_sweep
from scenarios.evaluate import OWN

EVIL = "<img src=x onerror=alert(1)>&"


@pytest.fixture(scope="module")
def folder(tiny_clip, colours, feature_store, tmp_path_factory):
    """Two methods with two seeds and references; the data set's name is hostile."""
    data = tmp_path_factory.mktemp("hostile") / EVIL
    data.symlink_to(colours, target_is_directory=True)
    runs = tmp_path_factory.mktemp("reported") / "runs"
    settings = {
        "backbone": {"model": f"local-dir:{tiny_clip}"},
        "scenario": {"dataset": str(data), "num_clients": 4, "partition": {"alpha": 1.0}},
        "learner": {"num_tokens": 4},
        "training": {"optimizer": {"lr": 0.1}, "batch_size": 8},
        "resources": {"executor": "inline", "group_size": 2},
        "tracking": {"enabled": False},
        "folder": str(runs),
        "store": str(feature_store),
        "name": "promptfl",
    }
    few = {"federation": {"rounds": 3}}
    short = few | {"training": settings["training"] | {"local_steps": 1}}
    configs = [resolve(load_config(settings | rule)) for rule in (few, short)]
    write_comparison(fedarena.compare(configs, seeds=2), runs.parent / "compared")
    return runs


@pytest.fixture(scope="module")
def report(folder):
    return make_report(gather([], folder), Ask(budgets=(0.001, 0.05, 1.0), target=0.2))


@pytest.fixture(scope="module")
def page(report):
    return as_html(report)


def column(table, key):
    return [row.get(key) for row in table.records()]


def sent_by_busiest(records):
    spent = {}
    for record in records:
        for client, (up, down) in record.loads.items():
            spent[client] = spent.get(client, 0) + up + down
    return max(spent.values(), default=0)


# -- numbers -------------------------------------------------------------------------------------


def test_results_hold_the_means_of_the_runs_own_records(report, folder):
    results = report.table("results").records()
    effort = report.table("effort").records()
    trained = {row["method"]: row for row in effort if row["kind"] == "method"}
    assert set(trained) == {"promptfl", "promptfl (training.local_steps=1)"}
    for method, row in trained.items():
        own = [Result.load(folder / name) for name in row["runs"].split(", ")]
        assert len(own) == 2
        clients = [np.mean([v for v in r.last.client_metrics[OWN] if v is not None]) for r in own]
        shown = next(r for r in results if r["method"] == method)
        assert shown["clients"] == pytest.approx(100 * np.mean(clients))
        assert shown["std"] == pytest.approx(100 * np.std(clients, ddof=1), abs=1e-9)
        most = np.mean([sent_by_busiest(r.records) for r in own]) / 1e6
        assert row["mb_per_client"] == pytest.approx(most)


def test_the_areas_are_the_means_over_many_budgets(report, folder):
    """Budgets up to 1 MB, read one by one off the records of the runs."""
    rows = report.table("areas").records()
    assert {row["method"] for row in rows} == {"promptfl", "promptfl (training.local_steps=1)"}
    assert (
        column(report.table("areas"), "area") == sorted(column(report.table("areas"), "area"))[::-1]
    )
    for row in rows:
        areas, log_areas = [], []
        for name in row["runs"].split(", "):
            records = Result.load(folder / name).records
            megabytes = np.asarray(busiest_bytes(records)) / 1e6
            values = np.asarray([record.metrics[OWN] for record in records])
            assert row["from_mb"] == pytest.approx(megabytes[1])  # of both methods alike
            budgets = (np.arange(100_000) + 0.5) / 100_000
            areas.append(values[np.searchsorted(megabytes, budgets, "right") - 1].mean())
            budgets = megabytes[1] ** (1 - budgets)
            log_areas.append(values[np.searchsorted(megabytes, budgets, "right") - 1].mean())
        assert row["area"] == pytest.approx(100 * np.mean(areas), abs=1e-2)
        assert row["log_area"] == pytest.approx(100 * np.mean(log_areas), abs=1e-2)
        assert row["area_std"] == pytest.approx(100 * np.std(areas, ddof=1), abs=1e-2)


def test_a_budget_shows_the_last_round_that_every_run_affords(report, folder):
    """0.05 MB of rounds that cost 1.5 kB or so; worked from the records alone."""
    for row in report.table("budgets").records():
        if "runs" not in row:
            continue
        values = []
        for name in row["runs"].split(", "):
            records = Result.load(folder / name).records
            afforded = [
                records[i].metrics[OWN]
                for i in range(1, len(records))
                if sent_by_busiest(records[: i + 1]) <= 1e6 * row["budget_mb"]
            ]
            values.append(afforded[-1])
        assert row["value"] == pytest.approx(100 * np.mean(values))


def test_a_budget_below_one_round_buys_nothing(report):
    (answer,) = report.answers
    assert answer.choices[0].method is None
    assert "no method can send a round" in answer.sentences("accuracy")[0]
    assert answer.choices[-1].method is not None


def test_the_busiest_client_counts_and_not_the_mean():
    loads = [{}, {"0": [3, 4], "1": [1, 1]}, {"1": [2, 2]}, {"1": [1, 2]}]
    records = [RoundRecord(i - 1, 0, loads=load) for i, load in enumerate(loads)]
    assert busiest_bytes(records) == [0, 7, 7, 9]


def test_every_run_is_named_once_per_row(report, folder):
    table = report.table("runs")
    trained = {path.parent.name for path in folder.glob("*/DONE")}
    assert set(column(table, "run")) == trained
    untrained = [r for r in table.records() if r["method"] == "zero-shot"]
    assert len(untrained) == 2
    assert all(row["mb_per_client"] == 0 for row in untrained)


# -- decisions -----------------------------------------------------------------------------------


def made(values, price=100_000, clients=12):
    """A run whose clients all have the value of the round, give or take what cancels."""
    wobble = 0.001 * (np.arange(clients) - (clients - 1) / 2)
    own = [(value + wobble).tolist() for value in values]
    spent = [price * i for i in range(len(values))]
    return Curve("run", spent, values, own, [None] * len(values), {})


def test_the_method_changes_with_the_budget():
    curves = {
        "quick": {s: made([0.1, 0.5, 0.5, 0.5]) for s in range(5)},
        "slow": {s: made([0.1, 0.2, 0.4, 0.8]) for s in range(5)},
    }
    little = choose(curves, 0.15, None, same_clients=True)
    much = choose(curves, 0.3, None, same_clients=True)
    assert (little.method, little.value, little.second) == ("quick", pytest.approx(0.5), "slow")
    assert (much.method, much.value, much.gain) == (
        "slow",
        pytest.approx(0.8),
        pytest.approx(0.3),
    )
    assert how_sure(much.verdict) == "sure (5 seeds or more)"
    assert sentence(much, "accuracy").startswith("At 0.3 MB per client take slow: 80.0 % accuracy")
    assert choose(curves, 0.0999, None, same_clients=True).method is None


def test_equal_methods_are_called_a_matter_of_chance():
    curves = {name: {s: made([0.1, 0.5]) for s in range(5)} for name in ("a", "b")}
    found = choose(curves, 1.0, None, same_clients=True)
    assert how_sure(found.verdict) == "chance alone could explain the lead over b"


def test_of_equal_methods_the_one_that_sent_least_is_taken():
    curves = {"dear": {0: made([0.1, 0.5])}, "cheap": {0: made([0.1, 0.5], price=10_000)}}
    found = choose(curves, 1.0, None, same_clients=True)
    assert (found.method, found.second) == ("cheap", "dear")
    assert "It is level with dear." in sentence(found, "accuracy")


def test_methods_are_held_against_each_other_on_the_seeds_that_both_have():
    """A run of a hard seed that failed is no lead: worked over seed 0 alone."""
    a = {0: made([0.1, 0.6]), 1: made([0.1, 0.2]), 2: made([0.1, 0.2])}
    b = {0: replace(made([0.1, 0.5]), run="b0")}
    found = choose({"a": a, "b": b}, 1.0, None, same_clients=True)
    assert (found.method, found.value, found.num_seeds) == ("a", 0.6, 1)
    assert found.gain == pytest.approx(0.1)
    assert "10.0 points above b. How sure: not sure" in sentence(found, "accuracy")
    late = {0: made([0.1, 0.5], price=300_000), 1: made([0.1, 0.5], price=10_000)}
    cheap = cheapest({"a": late, "b": b}, 0.5)
    assert (cheap.method, cheap.megabytes, cheap.runs) == ("b", pytest.approx(0.1), ["b0"])


def test_a_lead_is_never_below_zero_where_seeds_have_unlike_many_clients():
    """Over all clients a is 0.45 and b 0.4625; over seeds it would be a, with 0.6 to 0.475."""
    a = {0: made([0.1, 0.9], clients=1), 1: made([0.1, 0.3], clients=3)}
    b = {0: made([0.1, 0.5], clients=1), 1: made([0.1, 0.45], clients=3)}
    found = choose({"a": a, "b": b}, 1.0, None, same_clients=False)
    assert (found.method, found.gain) == ("b", pytest.approx(0.0125))


def test_a_budget_is_rounded_to_whole_bytes_as_a_runs_own_is():
    assert 1.001 * 1e6 < 1_001_000
    assert made([0.1, 0.5], price=1_001_000).place(1.001) == 1
    assert made([0.1, 0.5], price=1_001_001).place(1.001) is None


def test_a_target_that_is_not_asked_for_is_the_whole_percent_that_all_reach(folder):
    rows = gather([], folder).rows
    outcomes = outcomes_of(rows, Question(2))
    for share, wanted in ((0.29, 0.29), (0.579, 0.57), (0.28999999999999, 0.28999999999999)):
        same = [replace(o, metrics={OWN: share}) for o in outcomes]
        assert _target(same, Ask()) == wanted


def test_a_budget_between_two_measured_rounds_is_no_budget_below_one_round():
    curve = replace(made([0.1, 0.5, 0.6]), values=[0.1, None, 0.6])
    told = sentence(choose({"a": {0: curve}}, 0.1, None, same_clients=True), "accuracy")
    assert "no method was measured (evaluation.every); the first measured round needs 0.2" in told
    less = sentence(choose({"a": {0: curve}}, 0.09, None, same_clients=True), "accuracy")
    assert "no method can send a round; the cheapest needs 0.1 MB" in less


def test_what_sends_nothing_is_recommended_where_it_is_better():
    curves = {"a": {0: made([0.1, 0.5])}}
    found = choose(curves, 1.0, Reference("zero-shot", 0.6), same_clients=True)
    assert not found.is_worth_it
    assert "take zero-shot (60.0 %), which sends nothing" in sentence(found, "accuracy")


def test_the_reference_is_read_on_the_seeds_on_which_methods_are_judged():
    curves = {"a": {0: made([0.1, 0.5]), 1: made([0.1, 0.3])}, "b": {0: made([0.1, 0.4])}}
    free = Reference("zero-shot", 0.4, {}, {0: 0.6, 1: 0.2})
    found = choose(curves, 1.0, free, same_clients=True)
    assert (found.value, found.reference.value) == (0.5, 0.6)
    assert not found.is_worth_it
    elsewhere = Reference("zero-shot", 0.4, {}, {7: 0.4})
    assert choose(curves, 1.0, elsewhere, same_clients=True).reference == elsewhere


def test_a_lead_over_the_reference_is_told_apart_from_chance():
    curves = {"a": {s: made([0.1, 0.5]) for s in range(3)}}
    wobble = np.where(np.arange(12) % 2, 0.3, -0.3)
    equal = {s: (0.49 + wobble).tolist() for s in range(3)}
    near = choose(curves, 1.0, Reference("zero-shot", 0.49, equal), same_clients=True)
    assert not near.is_clear
    assert "(chance alone could explain that difference)" in sentence(near, "accuracy")
    far = {s: [0.2] * 12 for s in range(3)}
    clear = choose(curves, 1.0, Reference("zero-shot", 0.2, far), same_clients=True)
    assert clear.is_clear
    assert "chance alone" not in sentence(clear, "accuracy")


def test_the_cheapest_method_has_to_reach_the_target_with_every_seed():
    curves = {
        "lucky": {0: made([0.1, 0.9]), 1: made([0.1, 0.2])},
        "steady": {0: made([0.1, 0.2, 0.6]), 1: made([0.1, 0.2, 0.3, 0.6])},
    }
    found = cheapest(curves, 0.6)
    assert (found.method, found.megabytes) == ("steady", pytest.approx(0.25))
    assert cheapest(curves, 0.95).method is None


def test_the_cheapest_method_is_sure_where_five_seeds_agree_and_not_where_they_differ():
    def priced(prices):
        return {s: made([0.1, 0.6], price=price) for s, price in enumerate(prices)}

    little = [100_000, 110_000, 105_000, 95_000, 90_000]
    apart = cheapest({"a": priced(little), "b": priced([300_000] * 5)}, 0.6)
    assert (apart.method, how_sure(apart.verdict)) == ("a", "sure (5 seeds or more)")
    uneven = [40_000, 400_000, 50_000, 30_000, 60_000]
    mixed = cheapest({"a": priced(little), "b": priced(uneven)}, 0.6)
    assert (mixed.method, mixed.num_seeds) == ("a", 5)
    assert how_sure(mixed.verdict) == "chance alone could explain the lead over b"


def with_five_seeds(folder, runs):
    """The runs of seed 0 as if five seeds had given the same."""
    for done in sorted(folder.glob("*/DONE")):
        config = load_config(done.parent / "config.yaml")
        for seed in range(5) if config.seed == 0 else ():
            moved = resolve(replace(config, seed=seed, folder=runs))
            shutil.copytree(done.parent, run_folder(moved))
            (run_folder(moved) / "config.yaml").write_text(to_yaml(moved))
    return gather([], runs)


def test_a_metric_of_the_shared_model_alone_is_compared_seed_by_seed(folder, tmp_path):
    """As ``fedarena compare`` does: there are no clients, so seeds are what is resampled."""
    material = with_five_seeds(folder, tmp_path / "runs")
    report = make_report(material, Ask(budgets=(1.0,), metric="eval/global/macro_f1"))
    ((choice,),) = (answer.choices for answer in report.answers)
    assert abs(choice.gain) > 0
    assert choice.num_seeds == 5
    assert how_sure(choice.verdict) == "sure (5 seeds or more)"


# -- the page ------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Keeps open elements, what refers elsewhere, and the cells of tables."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.found, self.links, self.cells = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [v for n, v in attributes if n in ("src", "href", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_complete_and_refers_to_nothing_outside(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.found
    assert reader.found.count("svg") >= 4
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", without_names))
    assert "url(" not in re.sub(r"url\(#", "", page)


def test_names_are_escaped_everywhere(page, report):
    assert EVIL in report.answers[0].scenario
    assert EVIL not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in page


def test_the_answer_for_each_budget_is_the_first_thing_on_the_page(page):
    top = page[page.index("<body>") : page.index("Decision tables")]
    for budget in ("0.001", "0.05", "1"):
        assert f"At {budget} MB per client" in top
    assert "too few to tell a difference from chance" in top


def test_tables_show_rounded_numbers_in_the_unit_of_the_header(page, report):
    value = report.table("results").records()[0]["clients"]
    assert f">{value:.1f}<" in page
    assert "clients (%)" in page
    assert "MB per client" in page


def test_names_with_dollars_and_underscores_are_drawn_as_they_are():
    from orchestrator.report.figures import price_figure

    svg = price_figure({"_a$b$<c>": {0: made([0.1, 0.2])}}, {}, (1.0,), "accuracy")
    assert "_a$b$&lt;c&gt;" in svg


# -- other forms ---------------------------------------------------------------------------------


def test_csv_latex_and_json_agree(report):
    tables = json.loads(as_json(report))["tables"]
    latex = as_latex(report)
    for table in report.tables:
        read = list(csv.DictReader(as_csv(table).splitlines()))
        held = tables[table.name]["rows"]
        assert len(read) == len(held) == len(table.rows)
        for row, other in zip(read, held, strict=True):
            assert {k for k, v in row.items() if v != ""} == set(other)
            for key, value in other.items():
                assert row[key] == value if isinstance(value, str) else float(row[key]) == value
    for row in tables["results"]["rows"]:
        assert f"& {row['clients']:.1f} &" in latex
    assert r"\textless{}img src=x onerror=alert(1)\textgreater{}\&" in latex


def test_csv_is_one_file_per_table(report, tmp_path):
    written = write_report(report, tmp_path / "mine.csv", "csv")
    assert {path.name for path in written} >= {"mine_budgets.csv", "mine_results.csv"}
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.04938, "0.0494"), (1.0, "1.00"), (12345.6, "12,300"), (math.nan, "n/a")],
)
def test_amounts_have_three_significant_digits(value, shown):
    assert significant(value) == shown


def test_what_is_not_there_is_no_zero():
    assert Column("a", "a", "%", 1).shown(None) == "n/a"
    assert Column("a", "a", "%", 1).shown(-0.01) == "0.0"


# -- which runs ----------------------------------------------------------------------------------


def test_runs_that_are_not_finished_are_left_out_and_named(folder, tmp_path):
    import shutil

    copy = tmp_path / "runs"
    shutil.copytree(folder, copy)
    victim = next(path.parent for path in copy.glob("promptfl-*/DONE"))
    (victim / "DONE").unlink()
    found = gather([], copy)
    assert "not finished" in found.left_out[victim.name]
    assert victim.name not in [c.name for c in found.configs]
    moved = next(path.parent for path in copy.glob("promptfl-*/DONE"))
    moved.rename(copy / "promptfl-00000000")
    assert "does not fit" in gather([], copy).left_out["promptfl-00000000"]


def test_a_name_that_means_nothing_is_refused(folder):
    with pytest.raises(StateError, match="is no run, sweep or comparison"):
        gather(["nonsense"], folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(StateError, match="no finished run"):
        gather([], tmp_path)


def test_a_comparison_names_its_runs(folder):
    found = gather([str(folder.parent / "compared")], folder)
    names = {path.parent.name for path in folder.glob("*/DONE")}
    assert {f"{c.name}-{config_hash(c)[:8]}" for c in found.configs} == names
    assert found.left_out == {}


def test_a_sweep_names_its_test_trials_and_its_methods(make_config):
    base = to_dict(make_config("federation.rounds=1", "scenario.num_clients=2"))
    del base["name"], base["seed"]
    methods = {"plain": {"federation": "fedavg"}, "near": {"federation": "fedprox"}}
    given = {"name": "both", "base": base, "seeds": 2, "axes": {"method": methods}}
    done = run_sweep(load_sweep(given))
    found = gather(["both"], done.folder.parents[1])
    assert {row.method: sorted(row.configs) for row in found.rows} == {
        "plain": [0, 1],
        "near": [0, 1],
    }
    (done.folder / "trials.csv").unlink()  # as while it is under way
    again = gather([str(done.folder)], done.folder.parents[1])
    assert [row.method for row in again.rows] == [row.method for row in found.rows]


def test_single_runs_can_be_named(folder):
    name = next(path.parent.name for path in folder.glob("promptfl-*/DONE"))
    (row,) = gather([name], folder).rows
    assert (row.method, len(row.configs)) == ("promptfl", 1)


def test_an_unknown_metric_is_refused(folder):
    with pytest.raises(ConfigError, match="measured in no run"):
        make_report(gather([], folder), Ask(metric="eval/personal/acuracy"))


@pytest.mark.parametrize("budgets", [(), (0.0,), (math.nan,), (-1.0, 1.0)])
def test_budgets_that_make_no_sense_are_refused(budgets):
    with pytest.raises(ConfigError, match="budgets"):
        Ask(budgets=budgets)


# -- commands ------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_tells_the_answer(folder, tmp_path):
    out = tmp_path / "r.html"
    arguments = ["report", "--folder", str(folder), "--out", str(out), "--budgets", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "At 1 MB per client" in done.output
    assert out.read_text().endswith("</html>\n")
    bad = CliRunner().invoke(main, [*arguments[:-1], "one"])
    assert bad.exit_code == 2
    assert "0.25,1,4" in bad.output


def test_runs_lists_state_rounds_and_bytes(folder):
    listed = list_runs(folder)
    assert {run.state for run in listed} == {"finished"}
    for run in listed:
        records = Result.load(folder / run.run).records
        sent = sum(r.metrics["comm/up_bytes"] + r.metrics["comm/down_bytes"] for r in records)
        assert run.megabytes == pytest.approx(sent / 1e6)
        assert run.score == records[-1].metrics[OWN]
    done = CliRunner().invoke(main, ["runs", "--folder", str(folder)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_list_of_runs_cuts_no_name_and_no_number(folder, width):
    name = "promptfl-alpha0.1-megabytes1-s0-4b96a7a7"
    run = Listed(name, "promptfl", "photos " * 9, 0, "unfinished", 12, 0.279, 12_345.6, 900.0)
    console = Console(file=io.StringIO(), width=width)
    show_runs([run, *list_runs(folder)], console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "12,300" in line)
    for cell in (name[:20], "unfinished", "12", "27.9", "15 min"):
        assert cell in row
    assert name in row or name in row.split()[0] + lines[lines.index(row) + 1].strip()


def test_show_tells_settings_numbers_and_the_chosen_round(folder):
    name = next(p.parent.name for p in folder.glob("promptfl-*/DONE"))
    found = describe_run(folder / name)
    assert found.settings["training.batch_size"] == 8
    assert "training.momentum" not in found.settings
    assert found.metrics == pytest.approx(
        {n: v for n, v in Result.load(folder / name).summary.items() if "/domain/" not in n}
    )
    done = CliRunner().invoke(main, ["show", name, "--folder", str(folder)])
    assert done.exit_code == 0, done.output
    assert "training.batch_size" in done.output
    missing = CliRunner().invoke(main, ["show", "nothing", "--folder", str(folder)])
    assert missing.exit_code == 1
    assert "holds no run" in missing.output


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, ""), (5.0, "5 s"), (7_300.0, "2 h"), (200_000.0, "2 d")]
)
def test_ages_are_told_in_the_largest_unit(seconds, shown):
    assert age(seconds) == shown
