"""Metrics of answers in a model's own words, against one or several responses each.

Exact match is SQuAD's (Rajpurkar et al., 2016, arXiv:1606.05250): equal after ``normal_form``.
ROUGE (Lin, 2004) is F1 by the package rouge-score, without stemming; it counts letters from a to z
and digits only. With several responses the best one counts, for each metric by itself.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Floats = npt.NDArray[np.floating]

ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextTally:
    """How many answers were scored, and the sums of what each was given."""

    num_examples: int = 0
    exact_match_sum: float = 0.0
    rouge_sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    nll_sum: float = 0.0

    @classmethod
    def of(cls, exact_match: Floats, rouge: Sequence[Floats], nll: Floats) -> TextTally:
        """The tally of n answers; every array is [n], and ``rouge`` in the order of ``ROUGE``."""
        one, two, longest = (float(values.sum(dtype=np.float64)) for values in rouge)
        sums = (float(values.sum(dtype=np.float64)) for values in (exact_match, nll))
        exact, lost = sums
        return cls(len(nll), exact, (one, two, longest), lost)

    def __add__(self, other: TextTally) -> TextTally:
        one, two, longest = (
            ours + theirs for ours, theirs in zip(self.rouge_sums, other.rouge_sums, strict=True)
        )
        return TextTally(
            self.num_examples + other.num_examples,
            self.exact_match_sum + other.exact_match_sum,
            (one, two, longest),
            self.nll_sum + other.nll_sum,
        )

    @property
    def means(self) -> Mapping[str, float]:
        """By name: exact_match, those of ``ROUGE``, and nll, -log p of the first response per token
        (nats). Empty where nothing was scored."""
        if not self.num_examples:
            return {}
        sums = {"exact_match": self.exact_match_sum, "nll": self.nll_sum}
        sums |= dict(zip(ROUGE, self.rouge_sums, strict=True))
        return {name: total / self.num_examples for name, total in sums.items()}


def normal_form(text: str) -> str:
    """Lower case, without punctuation, the articles a, an and the, and runs of white space.

    What would leave nothing is not taken away, so that ``A`` and ``?`` can be answers.
    """
    lower = " ".join(text.lower().split())
    plain = " ".join(lower.translate(_NO_PUNCTUATION).split()) or lower
    return " ".join(_ARTICLES.sub(" ", plain).split()) or plain


def exact_match(written: str, responses: Sequence[str]) -> float:
    """1 where the answer is one of the responses, else 0."""
    return float(normal_form(written) in {normal_form(text) for text in responses})


def rouge(written: str, responses: Sequence[str]) -> tuple[float, float, float]:
    """F1 of single words, of pairs of words, and of the longest common subsequence of words."""
    found = _scorer().score_multi(list(responses), written)
    one, two, longest = (float(found[name].fmeasure) for name in ROUGE)
    return one, two, longest


def counts_in_rouge(text: str) -> bool:
    """Whether ROUGE sees any word in a text; where it sees none, its score is always 0."""
    return re.search("[a-z0-9]", text.lower()) is not None


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=False)
