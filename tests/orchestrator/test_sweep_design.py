"""Sweeps before they run: what a file may say, which trials it makes, what is tuned and chosen."""

import math

import pytest

from fl_core.errors import ConfigError
from orchestrator.sweep.agenda import Agenda, Score, num_tuning
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.design import Design
from orchestrator.sweep.forecast import Forecast
from orchestrator.sweep.loading import is_sweep, load_sweep
from orchestrator.sweep.plan import _total
from orchestrator.sweep.state import to_yaml
from orchestrator.yaml_text import read_yaml

METHODS = {
    "promptfl": {"learner": "coop", "federation": "fedavg"},
    "fedprox": {"federation": "fedprox"},
    "zs": {"learner": "zero_shot"},
}
LR = {"log_uniform": [0.001, 1.0], "when": {"method": ["promptfl", "fedprox"]}}


def sweep_of(axes=None, **settings):
    base = {"federation": {"rounds": 3}}
    return load_sweep({"base": base, "axes": axes or {}, **settings})


def faults_of(axes, **settings):
    with pytest.raises(ConfigError) as caught:
        Design(sweep_of(axes, **settings)).check()
    return caught.value.faults


def run_through(agenda, score_of=lambda trial: Score(0.5), order=0):
    """The trials in the order in which they were taken; all that are ready end at once."""
    taken = []
    while not agenda.is_finished:
        trial = agenda.ready[order]
        agenda.take(trial)
        agenda.end(trial, score_of(trial))
        taken.append(trial)
    return taken


def test_a_grid_is_the_product_of_its_axes_and_seeds():
    axes = {"method": METHODS, "scenario.partition.alpha": [0.1, 1.0]}
    trials = Design(sweep_of(axes, seeds=[3, 5])).check()
    seen = {(t.method, t.config.scenario.partition.alpha, t.config.seed) for t in trials}
    assert seen == {(m, a, s) for m in METHODS for a in (0.1, 1.0) for s in (3, 5)}
    assert len(trials) == len(seen) == len({t.key for t in trials})
    assert {t.config.federation.rounds for t in trials if t.method != "zs"} == {3}


BUDGETED = {**METHODS, "local": {"federation": "local_only"}}


def megabytes(trials):
    found = {}
    for trial in trials:
        found.setdefault(trial.method, []).append(trial.config.communication.budget.megabytes)
    return found


def test_one_run_answers_all_budgets_where_the_learning_rate_does_not_follow_the_end():
    steady = {"training": {"schedule": "constant"}}
    sweep = sweep_of({"method": BUDGETED}, budgets=[4, 1], base=steady)
    trials = Design(sweep).check()
    assert megabytes(trials) == {
        "promptfl": [4],
        "fedprox": [4],
        "zs": [4],
        "local": [None],
    }
    budgets = [t.config.communication.budget for t in trials if t.method != "local"]
    assert {(b.per, b.direction) for b in budgets} == {("client", "both")}


def test_each_budget_is_a_run_where_the_learning_rate_follows_the_end():
    axes = {"method": BUDGETED, "training.schedule": ["cosine", "constant"]}
    found = megabytes(Design(sweep_of(axes, budgets=[1, 4])).check())
    assert found["promptfl"] == [1, 4, 4]
    assert found["local"] == [None, None]


def test_each_budget_is_a_run_where_who_is_drawn_depends_on_what_was_spent():
    base = {"training": {"schedule": "constant"}, "federation": {"clients_per_round": 3}}
    found = megabytes(Design(sweep_of({"method": METHODS}, budgets=[1, 4], base=base)).check())
    assert found["promptfl"] == [1, 4]


def test_budgets_that_mean_nothing_or_stand_in_two_places_are_refused():
    assert any("budgets = [1.0, 1.0]" in f for f in faults_of({}, budgets=[1, 1]))
    assert any("budgets = [0.0]" in f for f in faults_of({}, budgets=[0]))
    twice = faults_of({"communication.budget.megabytes": [1, 2]}, budgets=[1])
    assert any("leave one of them out" in fault for fault in twice)


def test_a_variant_sets_several_settings_and_keeps_those_of_the_base():
    trials = {t.method: t for t in Design(sweep_of({"method": METHODS})).check()}
    assert trials["fedprox"].config.federation.name == "fedprox"
    assert trials["fedprox"].config.federation.rounds == 3
    assert trials["zs"].config.learner.name == "zero_shot"


def test_an_axis_with_a_condition_applies_nowhere_else():
    mu = {"grid": [0.01, 0.1], "when": {"method": "fedprox"}}
    trials = Design(sweep_of({"federation.mu": mu, "method": METHODS})).check()
    assert [t.method for t in trials] == ["promptfl", "fedprox", "fedprox", "zs"]
    assert [t.config.federation.mu for t in trials if t.method == "fedprox"] == [0.01, 0.1]


def test_conditions_may_follow_one_another():
    axes = {
        "method": METHODS,
        "communication.codec": {"grid": ["fp32", "int8"], "when": {"method": "promptfl"}},
        "training.batch_size": {"grid": [8, 16], "when": {"communication.codec": "int8"}},
    }
    cells = Design(sweep_of(axes)).cells
    assert len(cells) == 1 + 2 + 1 + 1
    assert [c for c in cells if "training.batch_size" in c] == [
        {"method": "promptfl", "communication.codec": "int8", "training.batch_size": size}
        for size in (8, 16)
    ]


def test_a_range_includes_its_end_and_keeps_whole_numbers_whole():
    steps = {"range": {"start": 2, "stop": 10, "step": 4}}
    trials = Design(sweep_of({"training.local_epochs": steps})).check()
    assert [t.config.training.local_epochs for t in trials] == [2, 6, 10]
    tenths = {"range": {"start": 0.1, "stop": 0.3, "step": 0.1}}
    trials = Design(sweep_of({"scenario.partition.alpha": tenths})).check()
    assert [t.config.scenario.partition.alpha for t in trials] == [0.1, 0.2, 0.3]


def test_without_a_method_axis_learner_and_federation_name_the_method():
    axes = {"learner": ["coop", {"name": "kgcoop", "weight": 2.0}], "federation": ["fedavg"]}
    design = Design(sweep_of(axes))
    assert [g.method for g in design.groups] == ["coop-fedavg", "kgcoop weight=2-fedavg"]
    assert design.check()[1].config.federation.rounds == 3


def test_varied_data_have_a_seed_of_their_own_for_each_seed():
    trials = Design(sweep_of(seeds=[4, 7], vary_data=True)).check()
    assert [(t.config.seed, t.config.scenario.seed) for t in trials] == [(4, 0), (7, 1)]
    trials = Design(sweep_of(seeds=[4, 7])).check()
    assert [t.config.scenario.seed for t in trials] == [0, 0]


def test_all_faults_of_a_sweep_are_told_at_once_with_paths():
    with pytest.raises(ConfigError) as caught:
        sweep_of(
            {
                "mthod": {"a": {"learner": "coop"}},
                "seed": [1, 2],
                "federation.mu": {"grid": [1, 1]},
                "training.batch_size": {"grid": [8], "when": {"mthd": 2, "mthod": "b"}},
                "training.optimizer.lr": {"uniform": [0, 1]},
                "scenario.shots": {"grid": [1], "choice": [2]},
            },
            scheduler="asha",
            seds=3,
        )
    text = str(caught.value)
    for part in (
        "seds is not a setting. Did you mean 'seeds'",
        "axes.federation.mu.grid holds a value twice",
        "axes.seed: seed cannot differ between trials; set it in seeds",
        "axes.training.batch_size.when.mthd",
        "Did you mean 'mthod'",
        "axes.training.batch_size.when.mthod = b is not a value",
        "axes.training.optimizer.lr = uniform is a hyper-parameter",
        "axes.scenario.shots: has grid and choice",
        "scheduler = asha only ends tuning trials",
    ):
        assert part in text, text


def test_every_trial_is_checked_and_each_fault_told_once():
    axes = {"learner": ["cop", "coop"], "federation.mu": [1, 2], "scenario.num_client": [3]}
    faults = faults_of(axes)
    assert len(faults) == 3
    assert any("Did you mean 'coop'" in f and "and 1 more" in f for f in faults)
    assert any("mu is not a setting of fedavg" in f for f in faults)
    assert any("Did you mean 'num_clients'" in f for f in faults)


def test_the_extremes_of_a_tuned_range_are_checked_too():
    axes = {"training.optimizer.lr": {"uniform": [-1.0, 0.1]}}
    assert any("lr = -1.0" in f for f in faults_of(axes, tuning={"trials_per_method": 2}))


def test_settings_that_two_axes_set_are_refused():
    axes = {"method": {"a": {"federation.rounds": 4}}, "federation.rounds": [5, 6]}
    with pytest.raises(ConfigError, match=r"federation\.rounds is set by two axes"):
        Design(sweep_of(axes)).check()


def test_conditions_in_a_circle_are_refused():
    axes = {
        "training.batch_size": {"grid": [8], "when": {"training.local_epochs": 1}},
        "training.local_epochs": {"grid": [1], "when": {"training.batch_size": 8}},
    }
    with pytest.raises(ConfigError, match="itself applies only where"):
        sweep_of(axes)


def test_overrides_reach_the_sweep_and_its_base():
    raw = {"base": {"federation": {"rounds": 3}}, "axes": {"method": METHODS}}
    words = ["seeds=[8]", "federation.rounds=7", "axes.scenario.partition.alpha=[0.5]"]
    trials = Design(load_sweep(raw, words)).check()
    assert {t.config.seed for t in trials} == {8}
    assert {t.config.scenario.partition.alpha for t in trials} == {0.5}
    assert trials[0].config.federation.rounds == 7


def test_how_many_seeds_count_up_from_that_of_the_base():
    raw = {"base": {"seed": 4}, "axes": {"method": METHODS}, "seeds": 2}
    assert load_sweep(raw).seed_list == (4, 5)
    assert load_sweep(raw, ["seed=7"]).seed_list == (7, 8)
    assert load_sweep(raw, ["seeds=[1]"]).seed_list == (1,)
    with pytest.raises(ConfigError, match=r"seed = 7 has no effect beside seeds = \[1\]"):
        load_sweep(raw, ["seed=7", "seeds=[1]"])
    with pytest.raises(ConfigError, match=r"seed = 'x' .*a whole number"):
        load_sweep(raw, ["seed=x"])


def test_a_setting_that_neither_sweep_nor_base_has_is_told_with_those_of_both():
    with pytest.raises(ConfigError) as caught:
        load_sweep({"axes": {}}, ["bugets=[1]", "federaton.rounds=2", "method=kgcoop", "lr=0.1"])
    assert len(caught.value.faults) == 3
    assert "There is training.optimizer.lr and " in caught.value.faults[2]
    assert "Did you mean 'budgets'" in str(caught.value)
    assert "Did you mean 'federation'" in str(caught.value)


def test_tuning_on_a_seed_of_the_test_is_refused():
    axes = {"training.optimizer.lr": {"log_uniform": [0.001, 1.0]}}
    (fault,) = faults_of(axes, seeds=[3, 5], tuning={"trials_per_method": 2, "seed": 5})
    assert "tuning.seed = 5 is a seed of the test trials too (3, 5)" in fault
    assert sweep_of(axes, seeds=2, tuning={"trials_per_method": 2}).tuning_seed == 2


def test_a_space_of_few_points_is_tried_as_a_whole_by_every_searcher():
    axes = {
        "training.batch_size": {"integers": [4, 6]},
        "training.schedule": {"choice": ["cosine", "constant"]},
    }
    settings = {"tuning": {"trials_per_method": 6}, "searcher": "optuna"}
    agenda = Agenda(Design(sweep_of(axes, **settings)))
    taken = [t for t in run_through(agenda) if t.stage == "tuning"]
    tried = {(t.config.training.batch_size, t.config.training.schedule) for t in taken}
    assert len(taken) == len(tried) == 6 == agenda.total - 1


def test_a_sweep_comes_back_from_its_yaml(tmp_path):
    axes = {"method": METHODS, "training.optimizer.lr": LR}
    sweep = sweep_of(axes, tuning={"trials_per_method": 2}, searcher="optuna")
    (tmp_path / "again.yaml").write_text(to_yaml(sweep))
    assert load_sweep(tmp_path / "again.yaml") == sweep
    assert is_sweep(read_yaml(tmp_path / "again.yaml"))
    assert not is_sweep({"federation": {"rounds": 3}})


def test_every_method_is_tuned_by_as_many_trials_before_its_test_seeds():
    axes = {"method": METHODS, "scenario.partition.alpha": [0.1, 1.0], "training.optimizer.lr": LR}
    design = Design(sweep_of(axes, seeds=2, tuning={"trials_per_method": 5}))
    assert {g.method: num_tuning(design, g) for g in design.groups} == {
        "promptfl": 5,
        "fedprox": 5,
        "zs": 0,
    }
    agenda = Agenda(design)
    taken = run_through(agenda)
    assert len(taken) == agenda.total == 10 + 3 * 2 * 2
    for method in ("promptfl", "fedprox"):
        stages = [t.stage for t in taken if t.method == method]
        assert stages == ["tuning"] * 5 + ["test"] * 4
    tuning = [t for t in taken if t.stage == "tuning"]
    assert not {t.config.seed for t in tuning} & {0, 1}


def test_methods_are_tuned_on_the_same_draws():
    axes = {"method": METHODS, "training.optimizer.lr": LR}
    design = Design(sweep_of(axes, tuning={"trials_per_method": 4}))
    points = {g.method: design.points(g) for g in design.groups}
    assert points["promptfl"] == points["fedprox"]
    rates = [p["training.optimizer.lr"] for p in points["promptfl"]]
    assert len(set(rates)) == 4
    assert all(0.001 <= rate < 1 for rate in rates)


def test_the_best_validation_score_is_chosen_and_the_first_of_equals():
    axes = {"training.optimizer.lr": {"log_uniform": [0.001, 1.0]}}
    design = Design(sweep_of(axes, tuning={"trials_per_method": 8}))
    agenda = Agenda(design)

    def distance(trial):
        return Score(-abs(math.log(trial.config.training.optimizer.lr / 0.05)))

    taken = run_through(agenda, distance)
    rates = [p["training.optimizer.lr"] for p in design.points(design.groups[0])]
    best = min(rates, key=lambda rate: abs(math.log(rate / 0.05)))
    assert taken[-1].stage == "test"
    assert taken[-1].config.training.optimizer.lr == best
    agenda = Agenda(design)
    assert run_through(agenda)[-1].config.training.optimizer.lr == rates[0]


def test_a_trial_that_was_cut_short_is_chosen_only_where_none_ran_to_its_end():
    axes = {"training.optimizer.lr": {"choice": [0.1, 0.2]}}
    design = Design(sweep_of(axes, tuning={"trials_per_method": 2}))
    rates = [p["training.optimizer.lr"] for p in design.points(design.groups[0])]

    def first_is_cut(trial):
        is_first = trial.config.training.optimizer.lr == rates[0]
        return Score(0.9, ended=False) if is_first else Score(0.1)

    assert run_through(Agenda(design), first_is_cut)[-1].config.training.optimizer.lr == rates[1]


def test_a_method_whose_tuning_failed_has_no_test_trials_and_says_so():
    axes = {"training.optimizer.lr": {"choice": [0.1, 0.2]}}
    agenda = Agenda(Design(sweep_of(axes, tuning={"trials_per_method": 2})))
    taken = run_through(agenda, lambda trial: Score(None))
    assert {t.stage for t in taken} == {"tuning"}
    assert list(agenda.lost) == ["coop-fedavg"]


def test_tuning_in_every_cell_chooses_in_every_cell():
    axes = {
        "scenario.partition.alpha": [0.1, 1.0],
        "training.optimizer.lr": {"choice": [0.1, 0.2, 0.4]},
    }
    design = Design(sweep_of(axes, tuning={"trials_per_method": 3, "per": "cell"}))
    agenda = Agenda(design)

    def score(trial):
        lr, alpha = trial.config.training.optimizer.lr, trial.config.scenario.partition.alpha
        return Score(lr if alpha == 1.0 else -lr)

    tests = [t for t in run_through(agenda, score) if t.stage == "test"]
    chosen = {t.config.scenario.partition.alpha: t.config.training.optimizer.lr for t in tests}
    assert chosen == {0.1: 0.1, 1.0: 0.4}


@pytest.mark.parametrize("searcher", ["random", {"name": "optuna", "batch": 2}])
def test_what_is_tried_does_not_depend_on_which_trial_ends_first(searcher):
    axes = {
        "training.optimizer.lr": {"log_uniform": [0.001, 1.0]},
        "training.batch_size": {"integers": [4, 32]},
        "training.schedule": {"choice": ["cosine", "constant"]},
    }
    sweep = sweep_of(axes, tuning={"trials_per_method": 6}, searcher=searcher)

    def score(trial):
        return Score(-abs(math.log(trial.config.training.optimizer.lr / 0.05)))

    runs = [run_through(Agenda(Design(sweep)), score, order) for order in (0, -1)]
    first, second = ({t.key for t in run} for run in runs)
    assert first == second
    assert runs[0][-1].key == runs[1][-1].key
    assert len(runs[0]) == 7


def test_the_defaults_of_a_sweep_are_one_trial():
    assert len(Design(load_sweep({})).check()) == 1
    assert SweepConfig().seed_list == (0,)


def test_a_place_that_is_left_empty_is_refused_and_no_folder_called_none():
    with pytest.raises(ConfigError) as caught:
        Design(load_sweep({"base": {"folder": None, "store": 3}})).check()
    told = "\n".join(caught.value.faults)
    assert "folder = None" in told
    assert "store = 3" in told


def test_a_url_where_a_folder_is_meant_is_refused_with_the_setting_for_urls():
    places = {"folder": "s3://bucket/runs", "store": "s3://bucket/store"}
    with pytest.raises(ConfigError) as caught:
        Design(load_sweep({"base": places})).check()
    told = "\n".join(caught.value.faults)
    assert "folder = 's3://bucket/runs' is a URL" in told
    assert "set mirror to the URL" in told
    assert "set shared_store to the URL" in told


def test_what_is_left_to_tune_counts_only_the_cells_that_are_left():
    axes = {
        "training.optimizer.lr": {"choice": [0.1, 0.2, 0.3]},
        "scenario.partition.alpha": [0.1, 1],
    }
    tuning = {"trials_per_method": 3, "per": "cell"}
    design = Design(sweep_of(axes, seeds=2, tuning=tuning))
    firsts = [t for t in design.check() if t.tuned == {"training.optimizer.lr": 0.1}]
    known = {trial.key: Forecast(1, 0, 0, 0.0, 2.0) for trial in firsts}
    assert sorted(t.stage for t in firsts) == ["test"] * 4 + ["tuning"] * 2
    assert _total(design, firsts, known, "seconds") == 2.0 * (2 * 3 + 4)
    left = [t for t in firsts if t.group == firsts[0].group]
    assert _total(design, left, known, "seconds") == 2.0 * (3 + 2)
