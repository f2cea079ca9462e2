"""Which names are aligned, which are held out, and what each is called in words."""

import json
import re
from pathlib import Path

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.sources import source

_HELD_OUT_FILE = Path(__file__).with_name("held_out_names.txt")
_VALIDATION_SHARE = 0.1

# Unicode subgroup -> class name in plain words.
COARSE_CLASSES = {
    "animal-bird": "bird",
    "animal-bug": "insect",
    "animal-mammal": "mammal",
    "animal-marine": "sea animal",
    "body-parts": "body part",
    "clothing": "clothing",
    "computer": "computer device",
    "drink": "drink",
    "face-smiling": "smiling face",
    "food-fruit": "fruit",
    "food-prepared": "meal",
    "food-sweet": "dessert",
    "food-vegetable": "vegetable",
    "household": "household object",
    "musical-instrument": "musical instrument",
    "place-building": "building",
    "plant-flower": "flower",
    "plant-other": "plant",
    "sky-weather": "weather",
    "sport": "sport",
    "tool": "tool",
    "transport-air": "aircraft",
    "transport-ground": "ground vehicle",
    "transport-water": "boat",
}


def words(name: str) -> str:
    """A slug as plain words."""
    return name.replace("-", " ")


def held_out_names() -> frozenset[str]:
    """Names that no aligned picture carries and that no choice was made on."""
    return frozenset(_HELD_OUT_FILE.read_text(encoding="utf-8").split())


def validation_names(names: set[str]) -> frozenset[str]:
    """The further names left out of alignment on which the stopping points are chosen."""
    free = sorted(names - held_out_names())
    order = numpy_generator("validation-names").permutation(len(free))
    return frozenset(free[i] for i in order[: round(_VALIDATION_SHARE * len(free))])


def mentions(caption: str, names: frozenset[str]) -> bool:
    """Whether a caption has one of the names, or its plain plural, as whole words."""
    text = f" {caption.lower()} "
    return any(f" {words(name)} " in text or f" {words(name)}s " in text for name in names)


def subgroups(work: Path) -> dict[str, str]:
    """Unicode subgroup of each emoji slug."""
    folder = unpacked(work, source("emojibase-data")) / "package"
    entries = json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))
    titles = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    return {
        _slug(entry["label"]): titles[str(entry["subgroup"])]
        for entry in entries
        if "subgroup" in entry
    }


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
