"""How a row of a published text set becomes an example: a prompt, and the class that answers it."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

import numpy as np

from fl_core.seeds import derive
from scenarios.data.folder import words

LETTERS = ("A", "B", "C", "D")
Row = Mapping[str, Any]


class Example(NamedTuple):
    """``text`` is what a model reads, ``label`` the name of the class that answers it.

    ``key`` is a hash of the set's own words, without the prompt: two sets that hold one text under
    two prompts have equal keys.
    """

    text: str
    label: str
    key: str
    client: str | None = None
    response: str = ""


@dataclass(frozen=True)
class Sentences:
    """Columns of text in a prompt. ``names``: what the label's numbers, or words, are called.

    A number with a fraction is rounded, halves up. Rows with another label are left out: published
    sets mark what nobody has labelled so.
    """

    prompt: str
    names: Mapping[str, str]
    label: str = "label"
    client: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        more = (self.client,) if self.client else ()
        return (*self._fields, self.label, *more)

    @property
    def _fields(self) -> tuple[str, ...]:
        return tuple(name for _, name, _, _ in Formatter().parse(self.prompt) if name)

    def example(self, row: Row) -> Example | None:
        """None where the row has no label, or no text."""
        value, texts = row[self.label], [row[name] for name in self._fields]
        if isinstance(value, float) and math.isfinite(value):
            value = math.floor(value + 0.5)
        name = self.names.get(str(value))
        if name is None or not all(texts):
            return None
        filled = self.prompt.format_map({n: str(row[n]).strip() for n in self._fields})
        owner = row[self.client] if self.client else None
        return Example(filled, name, _key(texts), None if owner is None else str(owner))


@dataclass(frozen=True)
class Choices:
    """A question with lettered answers in a struct of texts and labels, as OpenBookQA has them.

    The class is the letter of the right one, which says where it stands and nothing about it.
    """

    prompt: str
    question: str
    choices: str
    answer: str

    @property
    def columns(self) -> tuple[str, ...]:
        return self.question, self.choices, self.answer

    def example(self, row: Row) -> Example | None:
        """None where no answer is marked, or there are not four."""
        question, choices, answer = (row[name] for name in self.columns)
        if not question or not choices or answer not in choices["label"]:
            return None
        options = [str(text) for text in choices["text"]]
        if len(options) != len(LETTERS):
            return None
        letter = LETTERS[list(choices["label"]).index(answer)]
        text = self.prompt.format(question=str(question).strip(), options=_listed(options))
        return Example(text, letter, _key([question, *options]))


@dataclass(frozen=True)
class Cloze:
    """A gap in a query on a passage, as ReCoRD has them, made a choice of four.

    The published task offers every entity of the passage. Here the right one (the first of its
    spellings) stands among three others, drawn by a hash of the text, in a drawn order. It is
    easier than the published task, and its scores are not comparable with those.
    """

    prompt: str
    columns: tuple[str, ...] = ("passage", "query", "entities", "answers")

    def example(self, row: Row) -> Example | None:
        """None where no answer is given, or fewer than three entities are none."""
        passage, query, entities, answers = (row[name] for name in self.columns)
        if not passage or not query or not answers:
            return None
        spelt = {str(answer).casefold() for answer in answers}
        wrong = {str(e).casefold(): str(e) for e in entities if str(e).casefold() not in spelt}
        if len(wrong) < len(LETTERS) - 1:
            return None
        key = _key([passage, query])
        rng = np.random.default_rng(derive(0, "cloze", key))
        chosen = rng.choice(sorted(wrong), len(LETTERS) - 1, replace=False).tolist()
        options = [str(answers[0]), *(wrong[name] for name in chosen)]
        order = rng.permutation(len(options)).tolist()
        text = self.prompt.format(
            passage=str(passage).replace("\n@highlight\n", "\n").strip(),
            query=str(query).replace("@placeholder", "____").strip(),
            options=_listed([options[place] for place in order]),
        )
        return Example(text, LETTERS[order.index(0)], key)


@dataclass(frozen=True)
class Instructions:
    """An instruction, with a context where there is one, and a written response.

    The class is the kind of instruction, which the text does not name. response_words: of the
    longest response that is used; None takes all.
    """

    columns: tuple[str, ...] = ("instruction", "context", "response", "category")
    response_words: int | None = None

    def example(self, row: Row) -> Example | None:
        """None where something is missing but the context, or the response is too long."""
        instruction, context, response, category = (row[name] or "" for name in self.columns)
        if not (instruction.strip() and response.strip() and category):
            return None
        if self.response_words is not None and len(response.split()) > self.response_words:
            return None
        text = "\n\n".join(part.strip() for part in (instruction, context) if part.strip())
        return Example(text, words(category), _key([instruction, context]), None, response.strip())


Form = Sentences | Choices | Cloze | Instructions


def _listed(options: list[str]) -> str:
    return "\n".join(
        f"{letter}: {text.strip()}" for letter, text in zip(LETTERS, options, strict=True)
    )


def _key(texts: list[Any]) -> str:
    whole = "\x1f".join(unicodedata.normalize("NFC", str(text)).strip() for text in texts)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]
