"""What is measured of a round's models. Scores come per example; the metrics are formed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fl_core.metrics import (
    client_summary,
    combined_metric,
    confusion,
    ece,
    harmonic_mean,
    macro_f1,
    mean,
    participation_gap,
    retention,
    share_worse_off,
)
from scenarios.population import Population
from scenarios.scored import (
    AnyScored,
    Headline,
    Scored,
    Written,
    chained,
    own_metric,
    value_of,
)
from scenarios.targets import Target

Ints = npt.NDArray[np.int64]
Values = list[float | None]

OWN = own_metric("accuracy")
"""Of each client's model on its own test rows: the mean over clients, and by client."""

CONFUSION_UP_TO = 256
"""Most classes of which a confusion matrix is kept: 256 KiB with four bytes a cell."""

_CLIENT_NAMES = {
    "mean": "{}",
    "weighted_mean": "weighted_{}",
    "worst": "worst_{}",
    "worst_tenth": "worst_tenth_{}",
    "std": "{}_std",
    "jain": "jain_index",
}


@dataclass(frozen=True)
class ValidationScore:
    """The headline on validation rows: the only thing that a round may be chosen by.

    A type of its own, so that no test number can take its place.
    """

    value: float


@dataclass(frozen=True)
class Exam:
    """What models made of one target.

    shared: the shared model on the target's rows, None where a method has none. own: by client its
    own model on its rows, None where it was not scored; None altogether where clients use the
    shared model.
    """

    target: Target
    shared: AnyScored | None
    own: Sequence[AnyScored | None] | None = None

    def on_client(self, client: int) -> AnyScored | None:
        """What a client's model, its own or the shared one, made of the client's rows."""
        if self.own is not None:
            return self.own[client]
        return self.shared.of(self.target.client_rows(client)) if self.shared else None


@dataclass(frozen=True)
class Metrics:
    """flat: by name. by_client: by name, one value per client, None where it has none.

    confusion: counts [C, C] of the shared model on the whole test split, true class by row; None
    where there is no shared model, where it names no class, and with more than 256 classes.
    """

    flat: Mapping[str, float] = field(default_factory=dict)
    by_client: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    validation: ValidationScore | None = None
    confusion: Ints | None = None


def measure(
    population: Population,
    exams: Sequence[Exam],
    zero_shot: Values | None,
    headline: Headline = "accuracy",
) -> Metrics:
    """All metrics of a round; the first exam is ``home``, the population's own rows.

    zero_shot: the zero-shot model's headline on each client's test rows, to compare with.
    """
    home = exams[0]
    if home.shared is None and home.own is None:
        return Metrics()
    flat: dict[str, float | None] = {}
    if home.shared is not None:
        flat |= _global(population, home.shared, headline)
    own = _by_client(population, home, headline)
    tested = population.test.counts.tolist()
    flat |= {
        f"eval/personal/{_CLIENT_NAMES[key].format(headline)}": value
        for key, value in client_summary(own, tested).items()
    }
    flat |= _pooled_own(population, home, headline)
    if home.own is not None and home.shared is not None:
        shared = _by_client(population, Exam(home.target, home.shared), headline)
        flat[f"eval/personal/shared_{headline}"] = mean(shared)
    if zero_shot is not None:
        flat["eval/personal/worse_than_zero_shot"] = share_worse_off(own, zero_shot)
    if home.shared is not None:
        flat[f"eval/both/{headline}"] = harmonic_mean(
            flat.get(f"eval/global/{headline}"), flat.get(own_metric(headline))
        )
    for exam in exams[1:]:
        flat |= _besides(exam, headline)
    flat |= _derived(flat, own, headline)
    validation = _validation(population, home, headline)
    if validation is not None:
        flat[f"eval/validation/{headline}"] = validation.value
    by_client: dict[str, Values] = {own_metric(headline): own}
    known = {name: value for name, value in flat.items() if value is not None}
    return Metrics(known, by_client, validation, _confusion(population, home.shared))


def measure_reference(
    population: Population, name: str, exams: Sequence[Exam], headline: Headline = "accuracy"
) -> Metrics:
    """The same for a model that nobody trains: ``reference/<name>/...``."""
    measured = measure(population, exams, None, headline)
    prefix = f"reference/{name}"
    flat = {n.replace("eval", prefix, 1): value for n, value in measured.flat.items()}
    by_client = {n.replace("eval", prefix, 1): v for n, v in measured.by_client.items()}
    flat.pop(f"{prefix}/validation/{headline}", None)  # no round is chosen by it
    return Metrics(flat, by_client)


def choose_round(validation: Mapping[int, ValidationScore]) -> int | None:
    """The earliest round with the best validation score; None if none was validated."""
    if not validation:
        return None
    best = max(score.value for score in validation.values())
    return min(round for round, score in validation.items() if score.value == best)


def _global(
    population: Population, shared: AnyScored, headline: Headline
) -> dict[str, float | None]:
    rows, labels = population.global_test, population.labels
    found = _described("eval/global", shared.of(rows), labels, len(population.classes))
    if len(population.domains) > 1:
        for code in np.unique(population.domain_ids[rows]).tolist():
            own = shared.of(rows[population.domain_ids[rows] == code])
            name = f"eval/domain/{population.domains[code]}/{headline}"
            found[name] = value_of(own, labels, headline)
    return found


def _confusion(population: Population, shared: AnyScored | None) -> Ints | None:
    num_classes = len(population.classes)
    if not isinstance(shared, Scored) or num_classes > CONFUSION_UP_TO:
        return None
    rows = population.global_test
    return confusion(population.labels[rows], shared.of(rows).predicted, num_classes)


def _described(
    prefix: str, scored: AnyScored, labels: Ints, num_classes: int
) -> dict[str, float | None]:
    """Everything that is told of one model on one set of examples."""
    if isinstance(scored, Written):
        return {f"{prefix}/{name}": value for name, value in scored.tally(labels).means.items()}
    truth = labels[scored.rows]
    tally = scored.tally(labels)
    counts = confusion(truth, scored.predicted, num_classes)
    present = np.flatnonzero(counts.sum(axis=1)).tolist()
    return {
        f"{prefix}/accuracy": tally.accuracy,
        f"{prefix}/macro_f1": macro_f1(counts, present) if present else None,
        f"{prefix}/nll": tally.nll,
        f"{prefix}/brier": tally.brier,
        f"{prefix}/ece": ece(truth == scored.predicted, scored.confidence),
    }


def _by_client(population: Population, exam: Exam, headline: Headline) -> Values:
    """The headline on each participant's own test rows."""
    values: Values = []
    for client in range(population.num_clients):
        scored = None if client in population.unseen else exam.on_client(client)
        tests = population.test[client]
        values.append(value_of(scored.of(tests), population.labels, headline) if scored else None)
    return values


def _pooled_own(population: Population, home: Exam, headline: Headline) -> dict[str, float | None]:
    """Everything over all clients' test rows together, each under its client's model."""
    parts = []
    for client in range(population.num_clients):
        scored = None if client in population.unseen else home.on_client(client)
        if scored is not None:
            parts.append(scored.of(population.test[client]))
    if not parts:
        return {}
    together = chained(parts)
    found = _described("eval/personal", together, population.labels, len(population.classes))
    found.pop(own_metric(headline), None)  # the mean over clients has that name
    return found


def _validation(population: Population, home: Exam, headline: Headline) -> ValidationScore | None:
    """Of the clients' own models where they have them, else of the shared one."""
    parts = []
    if home.own is None:
        if home.shared is None:
            return None
        parts.append(home.shared.of(population.global_validation))
    else:
        for client, scored in enumerate(home.own):
            if scored is not None and client not in population.unseen:
                parts.append(scored.of(population.validation[client]))
    value = value_of(chained(parts), population.labels, headline) if parts else None
    return None if value is None else ValidationScore(value)


def _besides(exam: Exam, headline: Headline) -> dict[str, float | None]:
    """Metrics of a target that the protocol adds."""
    target, prefix = exam.target, f"eval/{exam.target.name}"
    found: dict[str, float | None] = {}
    if exam.shared is not None:
        if target.by_client is None:
            found |= _described(prefix, exam.shared, target.labels, len(target.classes))
        else:
            shared = Exam(target, exam.shared)
            found[f"{prefix}/{headline}"] = _mean_over_clients(shared, headline)
    if exam.own is not None:
        found[f"{prefix}/personal_{headline}"] = _mean_over_clients(exam, headline)
    return found


def _mean_over_clients(exam: Exam, headline: Headline) -> float | None:
    values: Values = []
    held = exam.target.by_client
    num_clients = len(exam.own) if exam.own is not None else len(held.counts) if held else 0
    for client in range(num_clients):
        scored = exam.on_client(client)
        values.append(value_of(scored, exam.target.labels, headline) if scored else None)
    return mean(values)


def _derived(
    flat: Mapping[str, float | None], own: Values, headline: Headline
) -> dict[str, float | None]:
    """Numbers formed of others: HM2, HM3 and CM of base-to-novel, the participation gap."""
    found: dict[str, float | None] = {}
    for kind in ("", "personal_"):
        names = (f"eval/{part}/{kind}{headline}" for part in ("base", "novel", "local"))
        base, novel, local = map(flat.get, names)
        if novel is not None:
            found[f"eval/base_to_novel/{kind}hm2"] = harmonic_mean(base, novel)
            found[f"eval/base_to_novel/{kind}hm3"] = harmonic_mean(local, base, novel)
            found[f"eval/base_to_novel/{kind}cm"] = combined_metric(local, base, novel)
    shared = flat.get(f"eval/unseen/{headline}")
    newcomers = flat.get(f"eval/unseen/personal_{headline}", shared)
    if newcomers is not None:
        found["eval/unseen/participation_gap"] = participation_gap(own, [newcomers])
    return found


def compare_with_zero_shot(
    flat: Mapping[str, float], reference: Mapping[str, float], headline: Headline = "accuracy"
) -> dict[str, float]:
    """``<target>/over_zero_shot``: headline minus zero-shot's, on every target that both have."""
    found = {}
    for name, value in flat.items():
        if not name.startswith("eval/") or not name.endswith(f"/{headline}"):
            continue
        other = reference.get(name.replace("eval", "reference/zero_shot", 1))
        gained = retention(value, other)
        if gained is not None:
            found[name.removesuffix(headline) + "over_zero_shot"] = gained
    return found
