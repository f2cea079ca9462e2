"""Stage `corpus`: texts for the distillation of the text tower, with the teacher's features."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer

from scenarios.data.packaged.recipe.features import imagenet_names
from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.names import words
from scenarios.data.packaged.recipe.render import CLIP_ART
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.select import load_selected
from scenarios.data.packaged.recipe.sources import ALIGNED_STYLES, source
from scenarios.data.packaged.recipe.towers import Teacher

logger = logging.getLogger(__name__)

NUM_NOUNS = 40_000
NUM_TEMPLATED = 24_000
NUM_GLOSSES = 14_000
TEMPLATES = (
    "{}",
    "a photo of a {}",
    "an icon of a {}",
    "a picture of the {}",
    "a drawing of a {}",
    "a photo of the {}",
    "a {} icon",
    "a blurry photo of a {}",
    "a cartoon {}",
    "{} in flat style",
)
_NUM_NAME_TEMPLATES = 6


@dataclass(frozen=True)
class Synset:
    """One line of WordNet: its lexicographer file, its words, its gloss, its direct hypernyms."""

    offset: str
    category: int
    lemmas: list[str]
    gloss: str
    hypernyms: list[str]


def read_wordnet(work: Path, part: str) -> list[Synset]:
    """The synsets of `noun`, `verb` or `adj`."""
    path = unpacked(work, source("wordnet-base")) / "usr" / "share" / "wordnet" / f"data.{part}"
    lines = path.read_text(encoding="latin-1").splitlines()
    return [_synset(line) for line in lines if not line.startswith("  ")]


def _synset(line: str) -> Synset:
    head, gloss = line.split("|", 1)
    fields = head.split()
    end = 4 + 2 * int(fields[3], 16)
    lemmas = [re.sub(r"\(.*?\)", "", word).replace("_", " ") for word in fields[4:end:2]]
    hypernyms = [fields[i + 1] for i in range(end + 1, len(fields) - 1) if fields[i] in ("@", "@i")]
    return Synset(
        fields[0], int(fields[1]), lemmas, gloss.split('"')[0].strip().rstrip(";"), hypernyms
    )


def _nouns(work: Path) -> list[str]:
    lemmas = {
        lemma for synset in read_wordnet(work, "noun") for lemma in synset.lemmas if len(lemma) < 30
    }
    ordered = sorted(lemmas)
    order = numpy_generator("nouns").permutation(len(ordered))
    return [ordered[i] for i in order[:NUM_NOUNS]]


def _glosses(work: Path) -> list[str]:
    every = [
        synset.gloss for part in ("noun", "verb", "adj") for synset in read_wordnet(work, part)
    ]
    fitting = sorted({gloss for gloss in every if 15 < len(gloss) < 140})
    order = numpy_generator("glosses").permutation(len(fitting))
    return [fitting[i] for i in order[:NUM_GLOSSES]]


def texts(work: Path) -> list[str]:
    """Nouns plain and in templates, aligned and ImageNet names in templates, captions, glosses."""
    nouns = _nouns(work)
    draw = numpy_generator("templates")
    templated = [
        TEMPLATES[draw.integers(len(TEMPLATES))].format(noun) for noun in nouns[:NUM_TEMPLATED]
    ]
    aligned = {
        words(name)
        for style in ALIGNED_STYLES
        for name in load_selected(work, "aligned", style).names
    }
    names = sorted(aligned | set(imagenet_names()))
    named = [
        template.format(name) for name in names for template in TEMPLATES[:_NUM_NAME_TEMPLATES]
    ]
    captions = load_selected(work, "aligned", CLIP_ART).names
    return sorted({*nouns, *templated, *named, *captions, *_glosses(work)})


def token_strings() -> list[str]:
    """Each token of CLIP's byte-pair vocabulary as text; a full stop where nothing is printable."""
    tokenizer = SimpleTokenizer()
    strings = []
    for i in range(len(tokenizer.decoder)):
        symbols = tokenizer.decoder[i].removesuffix("</w>")
        known = all(symbol in tokenizer.byte_decoder for symbol in symbols)
        text = (
            bytes(tokenizer.byte_decoder[symbol] for symbol in symbols).decode("utf-8", "replace")
            if known
            else symbols
        )
        strings.append(text if text.strip() else ".")
    return strings


def corpus(work: Path) -> None:
    torch.set_num_threads(1)
    teacher, chosen, tokens = Teacher(work), texts(work), token_strings()
    logger.info("%d texts, %d token strings", len(chosen), len(tokens))
    torch.save(
        {
            "texts": chosen,
            "features": teacher.encode(chosen).half(),
            "tokens": teacher.encode(tokens, 512).half(),
        },
        work / "corpus.pt",
    )
