"""The words that a context starts from and the number of its tokens: one says, or both agree."""

from dataclasses import fields, replace

import pytest
from clip_toys import CLASSES, small, small_clip

from fl_core.errors import ConfigError
from fl_core.learners import BPL, LEARNERS, CoCoOp, CoOp, KgCoOp
from fl_core.seeds import generator
from fl_core.types import Task

TASK = Task(CLASSES)
WITH_WORDS = [kind for kind in LEARNERS if "init_text" in {field.name for field in fields(kind)}]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip"))


def context(learner, clip):
    return learner.init(learner.prepare(clip, TASK), generator(0, "init"))["context"]


def test_every_learner_with_words_is_looked_at():
    names = {"coop", "cocoop", "kgcoop", "prograd", "maple", "promptsrc", "bpl"}
    assert {kind.name for kind in WITH_WORDS} == names


@pytest.mark.parametrize("kind", WITH_WORDS, ids=lambda kind: kind.name)
def test_a_number_that_contradicts_the_words_is_refused_with_both(kind, clip):
    learner = replace(small(kind), num_tokens=16, init_text="a photo of a")
    with pytest.raises(ConfigError) as error:
        learner.prepare(clip, TASK)
    assert str(error.value) == (
        "learner.num_tokens = 16 contradicts learner.init_text = 'a photo of a', which has 4 "
        "tokens: set learner.num_tokens=4, or learner.init_text=null for a context that no words "
        "start."
    )


@pytest.mark.parametrize("kind", WITH_WORDS, ids=lambda kind: kind.name)
def test_a_number_that_agrees_and_a_number_alone_are_taken(kind, clip):
    words = clip.embed_text("a small photo of a")
    agreed = replace(small(kind), num_tokens=5, init_text="a small photo of a")
    assert context(agreed, clip).equal(words)
    for nothing in (None, "", "  "):
        alone = replace(small(kind), num_tokens=3, init_text=nothing)
        assert context(alone, clip).shape == (3, words.shape[1])


@pytest.mark.parametrize("kind", WITH_WORDS, ids=lambda kind: kind.name)
def test_each_learner_agrees_with_itself_by_default(kind, clip):
    small(kind).prepare(clip, TASK)


@pytest.mark.parametrize("kind", [CoCoOp, KgCoOp, BPL], ids=lambda kind: kind.name)
def test_words_alone_say_how_many_tokens_there_are(kind, clip):
    assert len(context(kind(), clip)) == 4
    assert len(context(kind(init_text="a small photo of a"), clip)) == 5


@pytest.mark.parametrize("kind", [CoCoOp, KgCoOp, BPL], ids=lambda kind: kind.name)
def test_neither_words_nor_a_number_is_refused(kind, clip):
    with pytest.raises(ConfigError, match=r"learner.num_tokens = null .* learner.num_tokens=4"):
        kind(init_text=None).prepare(clip, TASK)


def test_a_number_below_one_is_refused():
    for kind in (CoOp, KgCoOp):
        with pytest.raises(ConfigError, match="num_tokens = 0 is not allowed"):
            kind(num_tokens=0)
