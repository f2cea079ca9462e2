"""The published text sets that can be named, with prompts of our own.

The mixture ``flan`` is that of FedOA (arXiv 2505.01075): four families of two sets each, 1000
training and 200 test rows of each set. ``glue`` is GLUE (Wang et al. 2018, arXiv 1804.07461), whose
own test labels are secret: its validation rows are the test rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scenarios.data.forms import Choices, Cloze, Form, Instructions, Sentences
from scenarios.data.text_tasks import TextGroup, TextTask

CONVERTED = "refs/convert/parquet"
"""The hub's own copy in Parquet of a set whose files need a script, which `datasets` runs no more.
"""

ENTAILMENT, SENTIMENT = "entailment", "sentiment"
PARAPHRASE, READING = "paraphrase", "reading comprehension"

_YES_NO = {"0": "yes", "1": "no"}
_NO_YES = {"0": "no", "1": "yes"}
_IMPLIED = {"0": "yes", "1": "maybe", "2": "no"}
_IMPLIES = "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise imply the hypothesis?"
_TWO_SENTENCES = "First: {sentence1}\nSecond: {sentence2}\n"
_TWO_IMPLY = _TWO_SENTENCES + "Does the first text imply the second?"


def _glue(name: str, family: str, form: Form, *, test: str = "validation") -> TextTask:
    splits = {"train": "train", "test": test}
    folders = (name, f"glue/{name}")
    return TextTask(name, family, "nyu-mll/glue", form, splits, name, folders=folders)


_GLUE: tuple[TextTask, ...] = (
    _glue("cola", "grammar", Sentences("Sentence: {sentence}\nIs it correct English?", _NO_YES)),
    _glue(
        "sst2",
        SENTIMENT,
        Sentences(
            "Review: {sentence}\nIs the review positive or negative?",
            {"0": "negative", "1": "positive"},
        ),
    ),
    _glue(
        "mrpc",
        PARAPHRASE,
        Sentences(_TWO_SENTENCES + "Do both sentences say the same?", _NO_YES),
    ),
    _glue(
        "qqp",
        PARAPHRASE,
        Sentences("First: {question1}\nSecond: {question2}\nDo both ask the same?", _NO_YES),
    ),
    _glue(
        "stsb",
        PARAPHRASE,
        Sentences(
            _TWO_SENTENCES + "From 0 (unrelated) to 5 (the same), how alike is what they say?",
            {str(score): str(score) for score in range(6)},
        ),
    ),
    _glue("mnli", ENTAILMENT, Sentences(_IMPLIES, _IMPLIED), test="validation_matched"),
    _glue(
        "qnli",
        ENTAILMENT,
        Sentences(
            "Question: {question}\nSentence: {sentence}\nDoes the sentence answer the question?",
            _YES_NO,
        ),
    ),
    _glue("rte", ENTAILMENT, Sentences(_TWO_IMPLY, _YES_NO)),
    _glue("wnli", ENTAILMENT, Sentences(_TWO_IMPLY, _NO_YES)),
)

_OTHERS: tuple[TextTask, ...] = (
    TextTask(
        "anli_r1",
        ENTAILMENT,
        "facebook/anli",
        Sentences(_IMPLIES, _IMPLIED),
        {"train": "train_r1", "test": "test_r1"},
        folders=("anli",),
    ),
    TextTask("snli", ENTAILMENT, "stanfordnlp/snli", Sentences(_IMPLIES, _IMPLIED)),
    TextTask(
        "sentiment140",
        SENTIMENT,
        "stanfordnlp/sentiment140",
        Sentences(
            "Tweet: {text}\nIs the tweet positive or negative?",
            {"0": "negative", "4": "positive"},
            label="sentiment",
            client="user",
        ),
        revision=CONVERTED,
    ),
    TextTask(
        "openbookqa",
        READING,
        "allenai/openbookqa",
        Choices(
            "Question: {question}\n{options}\nWhich answer is right?",
            "question_stem",
            "choices",
            "answerKey",
        ),
        config="main",
    ),
    TextTask(
        "record",
        READING,
        "aps/super_glue",
        Cloze("{passage}\nSentence: {query}\n{options}\nWhich name fills the gap?"),
        {"train": "train", "test": "validation"},
        config="record",
        folders=("super_glue/record",),
    ),
    TextTask(
        "dolly",
        "instructions",
        "databricks/databricks-dolly-15k",
        Instructions(),
        {"train": "train"},
        folders=("databricks-dolly-15k",),
        file="databricks-dolly-15k.jsonl",
    ),
)

TEXT_TASKS: Mapping[str, TextTask] = MappingProxyType(
    {task.name: task for task in (*_OTHERS, *_GLUE)}
)

FLAN = TextGroup(
    "flan",
    ("anli_r1", "snli", "sst2", "sentiment140", "mrpc", "stsb", "openbookqa", "record"),
    num_train=1000,
    num_test=200,
)
GLUE = TextGroup("glue", tuple(task.name for task in _GLUE))
TEXT_GROUPS: Mapping[str, TextGroup] = MappingProxyType({g.name: g for g in (FLAN, GLUE)})
