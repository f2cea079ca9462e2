"""Which names are aligned, which are held out, and what each is called in words."""

import json
import re
from pathlib import Path

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.sources import source

_HELD_OUT_FILE = Path(__file__).with_name("held_out_names.txt")
_VALIDATION_SHARE = 0.1
_LONGEST_NAME = 6  # words

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


def validation_names(free: list[str]) -> frozenset[str]:
    """The share of these sorted names on which the stopping points are chosen."""
    order = numpy_generator("validation-names").permutation(len(free))
    return frozenset(free[i] for i in order[: round(_VALIDATION_SHARE * len(free))])


def mentions(caption: str, names: frozenset[str]) -> bool:
    """Whether neighbouring words of a caption spell one of the names, or its plain plural.

    Spaces and hyphens do not count: "lightbulb" mentions "light-bulb".
    """
    spelled = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    tokens = re.findall(r"[a-z]+|\d+", caption.lower())
    for start in range(len(tokens)):
        for stop in range(start + 1, start + 1 + _LONGEST_NAME):
            run = "".join(tokens[start:stop])
            if run in spelled or run.removesuffix("s") in spelled:
                return True
    return False


def harmonised(name: str, known: dict[str, str]) -> str | None:
    """The known spelling of a name, whatever its hyphens; `known` comes from `spellings`."""
    return known.get(name.replace("-", ""))


def spellings(names: set[str]) -> dict[str, str]:
    """Each name under its spelling without hyphens."""
    return {name.replace("-", ""): name for name in sorted(names)}


def twins(digests: dict[str, set[str]]) -> dict[str, str]:
    """For each name one name of its group; names that share a picture's digest are one group."""
    parent = {name: name for name in digests}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    owner: dict[str, str] = {}
    for name in sorted(digests):
        for digest in sorted(digests[name]):
            first = root(owner.setdefault(digest, name))
            parent[root(name)] = first
    return {name: root(name) for name in digests}


def with_twins(names: frozenset[str], groups: dict[str, str]) -> frozenset[str]:
    """The names and all names of their groups."""
    touched = {groups[name] for name in names if name in groups}
    return names | {name for name, group in groups.items() if group in touched}


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
