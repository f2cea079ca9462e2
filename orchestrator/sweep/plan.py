"""``fedarena plan``: what an experiment or a sweep would run, take and send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from cluster.slices import count_slices, slice_bundle
from orchestrator.checkpoint import RunStore
from orchestrator.config import ExperimentConfig
from orchestrator.display import console, show_plan
from orchestrator.host import wanted_slots
from orchestrator.sizing import nodes_of
from orchestrator.sweep.agenda import Point, num_tuning
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.design import MEGABYTES, Design, Trial
from orchestrator.sweep.display import clock
from orchestrator.sweep.forecast import PROCESS_BYTES, Forecast, forecast, measured_rates
from orchestrator.sweep.state import Runs, SweepStore, sweep_folder
from orchestrator.sweep.survey import Survey


def show_experiment_plan(config: ExperimentConfig) -> None:
    """One experiment: its sizes, then slices, memory, time and what is stored."""
    show_plan([config])
    survey, rates = Survey(), measured_rates(config.folder)
    found = forecast(survey.experiment(config), rates)
    nodes = nodes_of(config)
    num = wanted_slots(config, max(1, count_slices(nodes, _bundle(config))))
    _show_facts(
        {
            "slices": f"{num} of {_shown_bundle(config)}",
            "memory, about": f"{num * found.memory_bytes / 1e9:.1f} GB on all slices",
            "time, about": _clock(found.seconds),
            "feature store": _stored(survey),
        }
    )


def show_sweep_plan(sweep: SweepConfig) -> None:
    """A sweep: a line per method, then all of it together."""
    design = Design(sweep)
    every = design.check()
    chosen = SweepStore(sweep_folder(design, every)).chosen()
    trials = _with_choices(design, every, chosen)
    states = states_of(trials)
    states |= {t.key: "finished" for t in trials if t.stage == "tuning" and t.group in chosen}
    survey = Survey()
    survey.check(trial.config for trial in trials)
    rates = measured_rates(trials[0].config.folder)
    known: dict[str, Forecast] = {}
    for trial in trials:
        known[trial.key] = forecast(survey.experiment(trial.config), rates)
    _show_methods(design, trials, states, known)
    at_once = trials_at_once(trials)
    tuning = _num_tuning(design)
    _show_facts(
        {
            "trials": f"{sum(tuning.values()) + len(_tests(trials))} "
            f"({sum(tuning.values())} tuning, {len(_tests(trials))} test)",
            "of the test trials": _count_states(_tests(trials), states),
            **_budgets(design),
            **_budgets_without_a_round(design, trials, known),
            "at once": at_once[0],
            "memory, about": f"{_peak(trials, known, at_once[1]) / 1e9:.1f} GB on all slices",
            "MB in all, at most": f"{_total(design, trials, known, 'sent_bytes') / 1e6:.1f}",
            "time, about": _clock(_time(design, trials, states, known, at_once[1])),
            "feature store": _stored(survey),
        }
    )


def states_of(trials: Iterable[Trial]) -> dict[str, str]:
    """By trial: ``finished``, ``partly done`` or ``new``."""
    runs: dict[Path, Runs] = {}
    found = {}
    for trial in trials:
        folder = trial.config.folder
        known = runs.setdefault(folder, Runs(folder))
        run = folder / f"{known.name_for(trial)}-{trial.hash[:8]}"
        begun = "partly done" if RunStore(run).has_records() else "new"
        found[trial.key] = "finished" if (run / "DONE").exists() else begun
    return found


def trials_at_once(trials: Sequence[Trial]) -> tuple[str, int]:
    """In words, and how many of the first trial's shape run at the same time."""
    config = trials[0].config
    if config.resources.executor == "inline":
        return "1, in this process", 1
    nodes, bundle = nodes_of(config), _bundle(config)
    available = count_slices(nodes, bundle)
    share = max(1, available // min(len(trials), max(1, available)))
    num = wanted_slots(config, share)
    count = available // num
    what = f"{count}, each on {num} slice{'s' if num > 1 else ''} of {_shown_bundle(config)}"
    return what if count else f"none: {num} slices wanted, {available} there", max(1, count)


# -- details -------------------------------------------------------------------------------------


def _show_methods(
    design: Design,
    trials: Sequence[Trial],
    states: Mapping[str, str],
    known: Mapping[str, Forecast],
) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "tuning", "test", "finished", "partly", "rounds", "MB a trial"):
        table.add_column(column, justify="left" if column == "method" else "right")
    tuning = _num_tuning(design)
    for method in dict.fromkeys(t.method for t in trials):
        tests = [t for t in _tests(trials) if t.method == method]
        held = [states[t.key] for t in tests]
        table.add_row(
            escape(method),
            str(tuning.get(method, 0)),
            str(len(tests)),
            str(held.count("finished")),
            str(held.count("partly done")),
            _span([known[t.key].rounds for t in tests], "d"),
            _span([known[t.key].sent_bytes / 1e6 for t in tests], ".2f"),
        )
    console.print(table)


def _budgets(design: Design) -> dict[str, str]:
    """How the budgets at which methods are compared become runs."""
    budgets = design.sweep.budgets
    if not budgets:
        return {}
    cells = [cell[MEGABYTES] for cell in design.cells if MEGABYTES in cell]
    if set(cells) <= {max(budgets)}:
        runs = "one run answers all"
    elif len(cells) == cells.count(max(budgets)) * len(budgets):
        runs = "a run for each"
    else:
        runs = "one run answers all where neither learning rate nor cohorts follow the budget"
    return {"budgets, MB per client": f"{', '.join(f'{b:g}' for b in sorted(budgets))}: {runs}"}


def _budgets_without_a_round(
    design: Design, trials: Sequence[Trial], known: Mapping[str, Forecast]
) -> dict[str, str]:
    """Budgets that some method's first round exceeds, with what that costs."""
    found = {}
    for budget in sorted(design.sweep.budgets):
        costs: dict[str, list[float]] = {}
        for trial in _tests(trials):
            num_bytes = known[trial.key].first_client_bytes
            if trial.config.federation.communicates and num_bytes > round(budget * 1e6):
                costs.setdefault(trial.method, []).append(num_bytes / 1e6)
        if costs:
            told = ", ".join(f"{escape(m)} ({_span(own, '.4g')} MB)" for m, own in costs.items())
            found[f"{budget:g} MB"] = f"too small for the first round of {told}"
    return found


def _show_facts(facts: Mapping[str, str]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def _with_choices(
    design: Design, trials: Sequence[Trial], chosen: Mapping[str, Point]
) -> list[Trial]:
    """One trial per cell and seed, tuned where it is known to what, and one that is tuning."""
    found: list[Trial] = []
    for group in design.groups:
        own = [t for t in trials if t.group == group.key and _is_first_corner(design, t)]
        if group.key in chosen:
            own = [t for t in own if t.stage == "tuning"]
            own += design.test_trials(group, chosen[group.key])
        found += own
    return found


def _is_first_corner(design: Design, trial: Trial) -> bool:
    """Whether a trial has the first value of each hyper-parameter."""
    firsts = {n: a.extremes[0] for n, a in design.sweep.axes.items() if a.is_tuned}
    return all(firsts[name] == value for name, value in trial.tuned.items())


def _tests(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.stage == "test"]


def _num_tuning(design: Design) -> dict[str, int]:
    """Tuning trials by method."""
    found: dict[str, int] = {}
    for group in design.groups:
        found[group.method] = found.get(group.method, 0) + num_tuning(design, group)
    return found


def _total(
    design: Design, trials: Sequence[Trial], known: Mapping[str, Forecast], what: str
) -> float:
    """Over all trials; a tuning trial counts as all of its group, for which it stands."""
    tuning, total = {group.key: num_tuning(design, group) for group in design.groups}, 0.0
    for trial in trials:
        times = 1 if trial.stage == "test" else tuning[trial.group]
        total += times * float(vars(known[trial.key])[what] or 0)
    return total


def _time(
    design: Design,
    trials: Sequence[Trial],
    states: Mapping[str, str],
    known: Mapping[str, Forecast],
    at_once: int,
) -> float | None:
    left = [t for t in trials if states[t.key] != "finished"]
    if any(known[t.key].seconds is None for t in left):
        return None
    return _total(design, left, known, "seconds") / at_once


def _peak(trials: Sequence[Trial], known: Mapping[str, Forecast], at_once: int) -> float:
    """Of the largest trials that can run at once: a coordinator and its client actors each."""
    largest = max(known[trial.key].memory_bytes for trial in trials)
    return at_once * (largest + PROCESS_BYTES)


def _count_states(trials: Sequence[Trial], states: Mapping[str, str]) -> str:
    held = [states[trial.key] for trial in trials]
    return ", ".join(f"{held.count(s)} {s}" for s in ("finished", "partly done", "new"))


def _stored(survey: Survey) -> str:
    held = list(survey.features().values())
    return f"holds {sum(held)} of {len(held)} kinds of features that are needed"


def _bundle(config: ExperimentConfig) -> dict[str, float]:
    return slice_bundle(**vars(config.resources.slice))


def _shown_bundle(config: ExperimentConfig) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in _bundle(config).items())


def _clock(seconds: float | None) -> str:
    return (
        "unknown: no finished run of these learners and backbones"
        if seconds is None
        else clock(seconds)
    )


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} – {high}"
