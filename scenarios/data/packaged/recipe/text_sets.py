"""Stage `texts`: classification tasks in four families, for leave-one-task-out."""

import hashlib
import io
import logging
import tarfile
from collections import defaultdict
from pathlib import Path

from scenarios.data.packaged.recipe.corpus import Synset, read_wordnet
from scenarios.data.packaged.recipe.export import PACKAGED
from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.sources import source
from scenarios.data.packaged.recipe.tables import Description, write_texts

logger = logging.getLogger(__name__)

NUM_TRAIN, NUM_TEST = 1000, 400
SENTIMENT_FILES = {
    "sentiment_tweets": "tweets",
    "sentiment_products": "amazonReviewSnippets",
    "sentiment_films": "movieReviewSnippets",
    "sentiment_news": "nytEditorialSnippets",
}
_CLEAR_RATING = 0.5
NOUN_CATEGORIES = {
    4: "act",
    5: "animal",
    6: "artifact",
    7: "attribute",
    8: "body",
    9: "cognition",
    10: "communication",
    13: "food",
    15: "location",
    18: "person",
    20: "plant",
    27: "substance",
}
VERB_CATEGORIES = {
    30: "change",
    31: "cognition",
    32: "communication",
    35: "contact",
    36: "creation",
    37: "emotion",
    38: "motion",
    39: "perception",
    40: "possession",
    41: "social",
}
_CONCRETE = frozenset({5, 6, 13, 18, 20, 27})

# One example: text, label, and the group (document, synset) that stays on one side of the split.
Example = tuple[str, str, str]


def _sentiment(archive: bytes, stem: str) -> list[Example]:
    """Snippets with a clear mean rating; snippets of one document form a group."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as bundle:
        member = next(
            item for item in bundle.getnames() if item.endswith(f"/{stem}_GroundTruth.txt")
        )
        stream = bundle.extractfile(member)
        if stream is None:
            raise ValueError(f"{member} is not a file in the VADER archive")
        content = stream.read().decode("utf-8", "replace")
    examples = []
    for line in content.splitlines():
        number, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= _CLEAR_RATING:
            label = "positive" if float(rating) > 0 else "negative"
            examples.append((text.strip(), label, number.split("_")[0]))
    return examples


def _categories(synsets: list[Synset], categories: dict[int, str]) -> list[Example]:
    """Glosses labelled with the field of meaning; classes are evened out by the split."""
    return [
        (item.gloss, categories[item.category], item.offset)
        for item in synsets
        if item.category in categories
    ]


def _kinds(nouns: list[Synset]) -> list[Example]:
    """Phrases "a x is a kind of y", half with the y of another noun of the same field."""
    by_offset = {item.offset: item for item in nouns}
    usable = [
        item
        for item in nouns
        if item.category in _CONCRETE and item.hypernyms and item.lemmas[0].islower()
    ]
    order = numpy_generator("kinds").permutation(len(usable))[:8000]
    examples, draw = [], numpy_generator("wrong-kinds")
    for rank, place in enumerate(order):
        item = usable[place]
        kind = by_offset[item.hypernyms[0]].lemmas[0]
        if rank % 2:
            other = usable[draw.integers(len(usable))]
            wrong = other.hypernyms[0]
            if other.category != item.category or wrong in _ancestors(item, by_offset):
                continue
            kind = by_offset[wrong].lemmas[0]
        examples.append(
            (f"a {item.lemmas[0]} is a kind of {kind}", "no" if rank % 2 else "yes", item.offset)
        )
    return examples


def _ancestors(item: Synset, by_offset: dict[str, Synset]) -> set[str]:
    found, queue = {item.offset}, [item]
    while queue:
        for offset in queue.pop().hypernyms:
            if offset not in found and offset in by_offset:
                found.add(offset)
                queue.append(by_offset[offset])
    return found


def _parts_of_speech(synsets: dict[str, list[Synset]]) -> list[Example]:
    """Glosses labelled with the part of speech of the word that they explain."""
    titles = {"noun": "noun", "verb": "verb", "adj": "adjective"}
    return [
        (item.gloss, titles[part], f"{part}-{item.offset}")
        for part, items in synsets.items()
        for item in items
    ]


def _records(
    task: str, family: str, examples: list[Example], balanced: bool
) -> list[dict[str, str]]:
    """Distinct texts, groups kept on one side, both sides cut to their sizes."""
    unique = {
        text: (text, label, group) for text, label, group in reversed(examples) if len(text) > 8
    }
    rows = sorted(unique.values())
    groups = sorted({group for _, _, group in rows})
    order = numpy_generator(task, "groups").permutation(len(groups))
    num_test = round(len(groups) * NUM_TEST / (NUM_TRAIN + NUM_TEST))
    tested = {groups[i] for i in order[:num_test]}
    parts: dict[str, list[Example]] = {"train": [], "test": []}
    for place in numpy_generator(task, "rows").permutation(len(rows)):
        parts["test" if rows[place][2] in tested else "train"].append(rows[place])
    records = []
    for split, size in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for text, label, _ in _cut(parts[split], size, balanced):
            digest = hashlib.sha256(text.encode()).hexdigest()
            records.append(
                {
                    "text": text,
                    "label": label,
                    "family": family,
                    "task": task,
                    "split": split,
                    "sha256": digest,
                }
            )
    return records


def _cut(examples: list[Example], size: int, balanced: bool) -> list[Example]:
    """The first `size` examples; where balanced, as many of each label."""
    if not balanced:
        return examples[:size]
    labels = sorted({label for _, label, _ in examples})
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for example in examples:
        if counts[example[1]] < size // len(labels):
            counts[example[1]] += 1
            kept.append(example)
    return kept


def _write_sentiment(work: Path) -> None:
    folder = unpacked(work, source("vaderSentiment")) / "vaderSentiment-3.3.2"
    archive = (folder / "additional_resources" / "hutto_ICWSM_2014.tar.gz").read_bytes()
    records = []
    for task, stem in SENTIMENT_FILES.items():
        records += _records(task, "sentiment", _sentiment(archive, stem), balanced=False)
    description = Description(
        "text_sentiment",
        "Positive or negative, in four domains: mean human ratings of at least 0.5 either way. "
        "Labels keep their natural shares; snippets of one document are on one side of the split.",
        (),
        ("vaderSentiment",),
    )
    write_texts(PACKAGED / "text_sentiment.parquet", description, records)
    logger.info("text_sentiment: %d texts", len(records))


def _write_wordnet(work: Path) -> None:
    synsets = {part: read_wordnet(work, part) for part in ("noun", "verb", "adj")}
    records = [
        *_records(
            "meaning_of_nouns",
            "meaning",
            _categories(synsets["noun"], NOUN_CATEGORIES),
            balanced=True,
        ),
        *_records(
            "meaning_of_verbs",
            "meaning",
            _categories(synsets["verb"], VERB_CATEGORIES),
            balanced=True,
        ),
        *_records("part_of_speech", "grammar", _parts_of_speech(synsets), balanced=True),
        *_records("kind_of", "inference", _kinds(synsets["noun"]), balanced=True),
    ]
    description = Description(
        "text_wordnet",
        "Tasks on WordNet: the field of meaning of a noun's and of a verb's gloss, the part of "
        "speech that a gloss explains, and whether one noun is a kind of another. Classes are "
        "balanced; a synset is on one side of the split of its task.",
        (),
        ("wordnet-base",),
    )
    write_texts(PACKAGED / "text_wordnet.parquet", description, records)
    logger.info("text_wordnet: %d texts", len(records))


def texts(work: Path) -> None:
    _write_sentiment(work)
    _write_wordnet(work)
