"""Scores per example, as models were given them, and the metric by which a run is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from fl_core.metrics import Tally
from fl_core.text_metrics import TextTally

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Headline = Literal["accuracy", "exact_match", "rougeL"]
"""The metric by which a round is chosen, and that tables show first."""

TITLES: Mapping[Headline, str] = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "rougeL": "ROUGE-L",
}

SHORT: Mapping[Headline, str] = {"accuracy": "acc", "exact_match": "EM", "rougeL": "ROUGE-L"}
"""The same at the head of a narrow column."""


def headline_of(metric: str) -> Headline:
    """The headline that the name of a metric ends in; accuracy where it ends in none."""
    return next((name for name in TITLES if metric.endswith(name)), "accuracy")


def of_headline(metric: str, headline: Headline) -> str:
    """The name of a metric of accuracy as it is of another headline."""
    return metric.replace("accuracy", headline)


def own_metric(headline: Headline) -> str:
    """Of each client's model on its own test rows: the mean over clients, and by client."""
    return f"eval/personal/{headline}"


@dataclass(frozen=True)
class _Columns:
    """Examples by row of their data set (ascending), every array [n]."""

    rows: Ints

    def of(self, rows: Ints) -> Self:
        """Those of ``rows``, which must be among the scored ones."""
        at = np.searchsorted(self.rows, rows)
        held = {n: column[at] for n, column in vars(self).items() if n != "rows"}
        return replace(self, rows=rows, **held)


@dataclass(frozen=True)
class Scored(_Columns):
    """What a model that tells classes apart was given; see ``fl_core.predict.Scores``."""

    predicted: npt.NDArray[np.int32]
    nll: Floats
    confidence: Floats
    brier: Floats

    def tally(self, labels: Ints) -> Tally:
        """labels [N] of the data set."""
        return Tally.of(labels[self.rows], self.predicted, self.nll, self.brier)


@dataclass(frozen=True)
class Written(_Columns):
    """What a model that answers in its own words was given; see ``fl_core.answers``."""

    exact_match: Floats
    rouge1: Floats
    rouge2: Floats
    rouge_l: Floats
    nll: Floats

    def tally(self, labels: Ints) -> TextTally:
        """No label says what is right: the responses did."""
        rouge = self.rouge1, self.rouge2, self.rouge_l
        return TextTally.of(self.exact_match, rouge, self.nll)


AnyScored = Scored | Written


def value_of(scored: AnyScored, labels: Ints, headline: Headline) -> float | None:
    """The headline over some examples, None where there is none; labels [N] of the data set."""
    return scored.tally(labels).means.get(headline)


def scored(rows: Ints, columns: Mapping[str, npt.NDArray[np.generic]]) -> AnyScored:
    """Examples with what they were given, by the names of ``Scores`` or of ``AnswerScores``."""
    kind = Written if "rouge_l" in columns else Scored
    return kind(rows, **columns)  # type: ignore[arg-type]


def nothing_scored(rows: Ints, headline: Headline) -> AnyScored:
    """No example at all, in a run with this headline."""
    kind = Scored if headline == "accuracy" else Written
    names = [field.name for field in fields(kind) if field.name != "rows"]
    none = np.empty(0, dtype=np.float32)
    return scored(rows, {n: none.astype(np.int32) if n == "predicted" else none for n in names})


def chained(parts: Sequence[AnyScored]) -> AnyScored:
    """Examples one after the other; at least one part, all of one kind."""
    first = parts[0]
    if len(parts) == 1:
        return first
    columns = [np.concatenate([vars(part)[n] for part in parts]) for n in vars(first)]
    return type(first)(*columns)
