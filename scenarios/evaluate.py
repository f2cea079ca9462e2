"""What is measured of a round's models. Scores come per example; the metrics are formed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fl_core.metrics import (
    Tally,
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
from scenarios.targets import Target

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Values = list[float | None]

OWN = "eval/personal/accuracy"
"""Of each client's model on its own test rows: the mean over clients, and by client."""

CONFUSION_UP_TO = 256
"""Most classes of which a confusion matrix is kept: 256 KiB with four bytes a cell."""

_CLIENT_NAMES = {
    "mean": "accuracy",
    "weighted_mean": "weighted_accuracy",
    "worst": "worst_accuracy",
    "worst_tenth": "worst_tenth_accuracy",
    "std": "accuracy_std",
    "jain": "jain_index",
}


@dataclass(frozen=True)
class ValidationScore:
    """Accuracy on validation rows: the only thing that a round may be chosen by.

    A type of its own, so that no test number can take its place.
    """

    accuracy: float


@dataclass(frozen=True)
class Scored:
    """Examples by row of their data set; every array is [n], see ``fl_core.predict.Scores``."""

    rows: Ints
    predicted: npt.NDArray[np.int32]
    nll: Floats
    confidence: Floats
    brier: Floats

    def of(self, rows: Ints) -> Scored:
        """Those of ``rows``, which must be among the scored ones (sorted)."""
        at = np.searchsorted(self.rows, rows)
        return Scored(rows, self.predicted[at], self.nll[at], self.confidence[at], self.brier[at])

    def tally(self, labels: Ints) -> Tally:
        """labels [N] of the data set."""
        return Tally.of(labels[self.rows], self.predicted, self.nll, self.brier)


@dataclass(frozen=True)
class Exam:
    """What models made of one target.

    shared: the shared model on the target's rows, None where a method has none. own: by client its
    own model on its rows, None where it was not scored; None altogether where clients use the
    shared model.
    """

    target: Target
    shared: Scored | None
    own: Sequence[Scored | None] | None = None

    def on_client(self, client: int) -> Scored | None:
        """What a client's model, its own or the shared one, made of the client's rows."""
        if self.own is not None:
            return self.own[client]
        return self.shared.of(self.target.client_rows(client)) if self.shared else None


@dataclass(frozen=True)
class Metrics:
    """flat: by name. by_client: by name, one value per client, None where it has none.

    confusion: counts [C, C] of the shared model on the whole test split, true class by row; None
    where there is no shared model, and with more than 256 classes.
    """

    flat: Mapping[str, float] = field(default_factory=dict)
    by_client: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    validation: ValidationScore | None = None
    confusion: Ints | None = None


def measure(population: Population, exams: Sequence[Exam], zero_shot: Values | None) -> Metrics:
    """All metrics of a round; the first exam is ``home``, the population's own rows.

    zero_shot: accuracy of the zero-shot model on each client's test rows, to compare with.
    """
    home = exams[0]
    if home.shared is None and home.own is None:
        return Metrics()
    flat: dict[str, float | None] = {}
    if home.shared is not None:
        flat |= _global(population, home.shared)
    own, shared = _by_client(population, home, "own"), _by_client(population, home, "shared")
    tested = population.test.counts.tolist()
    flat |= {
        f"eval/personal/{_CLIENT_NAMES[key]}": value
        for key, value in client_summary(own, tested).items()
    }
    flat |= _pooled_own(population, home)
    if home.own is not None and home.shared is not None:
        flat["eval/personal/shared_accuracy"] = mean(shared)
    if zero_shot is not None:
        flat["eval/personal/worse_than_zero_shot"] = share_worse_off(own, zero_shot)
    if home.shared is not None:
        flat["eval/both/accuracy"] = harmonic_mean(
            flat.get("eval/global/accuracy"), flat.get("eval/personal/accuracy")
        )
    for exam in exams[1:]:
        flat |= _besides(exam)
    flat |= _derived(flat, own, population)
    validation = _validation(population, home)
    if validation is not None:
        flat["eval/validation/accuracy"] = validation.accuracy
    by_client: dict[str, Values] = {OWN: own}
    known = {name: value for name, value in flat.items() if value is not None}
    return Metrics(known, by_client, validation, _confusion(population, home.shared))


def measure_reference(population: Population, name: str, exams: Sequence[Exam]) -> Metrics:
    """The same for a model that nobody trains: ``reference/<name>/...``."""
    measured = measure(population, exams, None)
    prefix = f"reference/{name}"
    flat = {n.replace("eval", prefix, 1): value for n, value in measured.flat.items()}
    by_client = {n.replace("eval", prefix, 1): v for n, v in measured.by_client.items()}
    flat.pop(f"{prefix}/validation/accuracy", None)  # no round is chosen by it
    return Metrics(flat, by_client)


def choose_round(validation: Mapping[int, ValidationScore]) -> int | None:
    """The earliest round with the best validation accuracy; None if none was validated."""
    if not validation:
        return None
    best = max(score.accuracy for score in validation.values())
    return min(round for round, score in validation.items() if score.accuracy == best)


def _global(population: Population, shared: Scored) -> dict[str, float | None]:
    rows, labels = population.global_test, population.labels
    found = _described("eval/global", shared.of(rows), labels, len(population.classes))
    if len(population.domains) > 1:
        for code in np.unique(population.domain_ids[rows]).tolist():
            own = shared.of(rows[population.domain_ids[rows] == code])
            name = f"eval/domain/{population.domains[code]}/accuracy"
            found[name] = own.tally(labels).accuracy
    return found


def _confusion(population: Population, shared: Scored | None) -> Ints | None:
    num_classes = len(population.classes)
    if shared is None or num_classes > CONFUSION_UP_TO:
        return None
    rows = population.global_test
    return confusion(population.labels[rows], shared.of(rows).predicted, num_classes)


def _described(
    prefix: str, scored: Scored, labels: Ints, num_classes: int
) -> dict[str, float | None]:
    """Everything that is told of one model on one set of examples."""
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


def _by_client(population: Population, home: Exam, which: str) -> Values:
    """Accuracy on each participant's own test rows, of its own model or of the shared one."""
    exam = home if which == "own" else Exam(home.target, home.shared)
    values: Values = []
    for client in range(population.num_clients):
        scored = None if client in population.unseen else exam.on_client(client)
        tests = population.test[client]
        values.append(scored.of(tests).tally(population.labels).accuracy if scored else None)
    return values


def _pooled_own(population: Population, home: Exam) -> dict[str, float | None]:
    """Calibration and F1 over all clients' test rows, each under its client's model."""
    parts = []
    for client in range(population.num_clients):
        scored = None if client in population.unseen else home.on_client(client)
        if scored is not None:
            parts.append(scored.of(population.test[client]))
    if not parts:
        return {}
    columns = (np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0]))
    together = Scored(*columns)
    found = _described("eval/personal", together, population.labels, len(population.classes))
    del found["eval/personal/accuracy"]  # the mean over clients has that name
    return found


def _validation(population: Population, home: Exam) -> ValidationScore | None:
    """Of the clients' own models where they have them, else of the shared one."""
    labels, total = population.labels, Tally()
    if home.own is None:
        if home.shared is None:
            return None
        total = home.shared.of(population.global_validation).tally(labels)
    else:
        for client, scored in enumerate(home.own):
            if scored is not None and client not in population.unseen:
                total += scored.of(population.validation[client]).tally(labels)
    return None if total.accuracy is None else ValidationScore(total.accuracy)


def _besides(exam: Exam) -> dict[str, float | None]:
    """Metrics of a target that the protocol adds."""
    target, prefix = exam.target, f"eval/{exam.target.name}"
    found: dict[str, float | None] = {}
    if exam.shared is not None:
        if target.by_client is None:
            found |= _described(prefix, exam.shared, target.labels, len(target.classes))
        else:
            found[f"{prefix}/accuracy"] = _mean_over_clients(Exam(target, exam.shared))
    if exam.own is not None:
        found[f"{prefix}/personal_accuracy"] = _mean_over_clients(exam)
    return found


def _mean_over_clients(exam: Exam) -> float | None:
    values: Values = []
    held = exam.target.by_client
    num_clients = len(exam.own) if exam.own is not None else len(held.counts) if held else 0
    for client in range(num_clients):
        scored = exam.on_client(client)
        values.append(scored.tally(exam.target.labels).accuracy if scored else None)
    return mean(values)


def _derived(
    flat: Mapping[str, float | None], own: Values, population: Population
) -> dict[str, float | None]:
    """Numbers formed of others: HM2, HM3 and CM of base-to-novel, the participation gap."""
    found: dict[str, float | None] = {}
    for suffix in ("accuracy", "personal_accuracy"):
        base, novel, local = (flat.get(f"eval/{n}/{suffix}") for n in ("base", "novel", "local"))
        if novel is not None:
            kind = suffix.removesuffix("accuracy")
            found[f"eval/base_to_novel/{kind}hm2"] = harmonic_mean(base, novel)
            found[f"eval/base_to_novel/{kind}hm3"] = harmonic_mean(local, base, novel)
            found[f"eval/base_to_novel/{kind}cm"] = combined_metric(local, base, novel)
    newcomers = flat.get("eval/unseen/personal_accuracy", flat.get("eval/unseen/accuracy"))
    if newcomers is not None:
        found["eval/unseen/participation_gap"] = participation_gap(own, [newcomers])
    return found


def compare_with_zero_shot(
    flat: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float]:
    """``<target>/over_zero_shot``: accuracy minus zero-shot's, on every target that both have."""
    found = {}
    for name, value in flat.items():
        if not name.startswith("eval/") or not name.endswith("/accuracy"):
            continue
        other = reference.get(name.replace("eval", "reference/zero_shot", 1))
        gained = retention(value, other)
        if gained is not None:
            found[name.removesuffix("accuracy") + "over_zero_shot"] = gained
    return found
