"""The epsilon of a run: recorded by round, planned, reported, and n/a where nothing is promised."""

import math

import pytest

from fl_core.privacy import epsilon
from orchestrator.events import Committed
from orchestrator.experiment import run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.plan import make_plan
from orchestrator.privacy import EPSILON
from orchestrator.report.content import Ask, make_report
from orchestrator.report.gather import gather
from orchestrator.report.page import as_html
from orchestrator.results import Result
from orchestrator.run import run_experiments
from scenarios.population import Population

DPFPL = "learner={name: dpfpl, num_tokens: 4, rank: 2, shared_noise: 6.0, personal_noise: 8.0}"
NOISE = 1 / math.sqrt(1 / 36 + 1 / 64)


@pytest.fixture
def setting(make_config):
    def make(*overrides):
        few = ("federation.clients_per_round=3", "training.batch_size=4")
        return make_config(DPFPL, *few, *overrides)

    return make


def by_hand(result, sampling, local_epochs=1, batch_size=4):
    """Epsilon after each record, from who was accepted and how many examples they hold."""
    sizes = Population.load(result.folder / "population.parquet").num_examples.tolist()
    rounds, found = dict.fromkeys(range(len(sizes)), 0), []
    for record in result.records:
        for client in record.accepted:
            rounds[client] += 1
        spent = [0.0]
        for client, done in rounds.items():
            size = sizes[client]
            if sampling == "poisson":
                steps = done * local_epochs * math.ceil(size / batch_size)
                spent.append(epsilon(NOISE, steps, 1e-5, min(1.0, batch_size / size)))
            else:
                spent.append(epsilon(NOISE, done * local_epochs, 1e-5))
        found.append(max(spent))
    return found


@pytest.mark.parametrize("sampling", ["permutation", "poisson"])
def test_every_record_tells_what_was_spent_so_far(setting, sampling):
    config = setting(f"training.sampling={sampling}", "training.local_epochs=2")
    plan, (result,) = make_plan(config), run_experiments([config])
    told = [record.metrics[EPSILON] for record in result.records]
    assert told == pytest.approx(by_hand(result, sampling, local_epochs=2), rel=1e-12)
    assert told[0] == 0.0
    assert told == sorted(told)
    assert result.summary[EPSILON] == told[-1]
    assert plan.privacy.startswith("at most ")
    assert "delta 1e-05" in plan.privacy
    assert float(plan.privacy.split()[2]) >= float(f"{told[-1]:.3g}")


def test_a_run_that_was_cut_off_goes_on_counting(setting):
    cut = setting("training.sampling=poisson", "name=cut")
    for event in CoordinatorHost().run(cut):
        if isinstance(event, Committed) and event.record.round == 1:
            break
    (result,) = run_experiments([cut])
    told = [record.metrics[EPSILON] for record in result.records]
    assert told == pytest.approx(by_hand(result, "poisson"), rel=1e-12)


def test_the_report_states_epsilon_with_its_terms_and_says_why_there_is_none(setting):
    private = setting("training.sampling=poisson", "name=private")
    loose = setting("learner.clip_per=batch", "name=loose")
    plain = setting("learner={name: coop, num_tokens: 4}", "name=plain")
    run_experiments([private, loose, plain])
    assert make_plan(loose).privacy.startswith("n/a: the mean of a batch is clipped")
    assert make_plan(plain).privacy is None
    assert EPSILON not in Result.load(run_folder(loose)).last.metrics
    assert EPSILON not in Result.load(run_folder(plain)).last.metrics
    report = make_report(gather([], private.folder), Ask())
    lines = {line["runs"]: line for line in report.table("privacy").records()}
    ours, theirs = (lines[run_folder(config).name] for config in (private, loose))
    assert len(lines) == 2
    assert ours["epsilon"] == Result.load(run_folder(private)).last.metrics[EPSILON]
    assert (ours["delta"], ours["clip"], ours["batches"]) == ("1e-05", 1.0, "Poisson sampled")
    assert ours["noise"] == pytest.approx(NOISE)
    assert ours["neighbours"] == "one example that counts for nothing"
    assert "epsilon" not in theirs
    assert "mean of a batch" in theirs["why"]
    assert "<h2>Privacy</h2>" in as_html(report)


def test_a_report_without_private_runs_has_no_such_table(make_config):
    config = make_config("name=plain")
    run_experiments([config])
    report = make_report(gather([], config.folder), Ask())
    assert "privacy" not in [table.name for table in report.tables]
    assert "<h2>Privacy</h2>" not in as_html(report)
