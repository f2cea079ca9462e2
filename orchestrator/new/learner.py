"""A new learner in a source checkout: its files, and its lines in the lists that are explicit."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from fl_core.errors import ConfigError
from fl_core.learners import LEARNERS
from orchestrator.new import template

UNION = Path("fl_core/learners/__init__.py")
METHODS = Path("orchestrator/methods.py")
CONTENTS = Path("docs/methods/index.md")
PAPERS = Path("examples/papers")


def new_learner(root: Path, name: str, paper: str) -> list[Path]:
    """Write a learner called ``name`` into the checkout ``root``; the files written or changed.

    paper: for its first line, with authors, year and arXiv number. Nothing is written unless all
    of it can be.
    """
    _check(root, name, paper)
    kind = "".join(part.capitalize() for part in name.split("_"))

    def filled(text: str) -> str:
        text = text.replace("@IMPORTS@", ", ".join(sorted((kind, "CoOp", "ZeroShot"))))
        return text.replace("@NAME@", name).replace("@KIND@", kind).replace("@PAPER@", paper)

    written = {
        Path(f"fl_core/learners/{name}.py"): filled(template.LEARNER),
        Path(f"tests/fl_core/test_{name}.py"): filled(template.TEST),
        Path(f"docs/methods/{name}.md"): filled(template.PAGE),
        PAPERS / f"{name}.yaml": filled(template.SETTING),
    }
    there = [str(path) for path in written if (root / path).exists()]
    if there:
        raise ConfigError(f"{', '.join(there)} is there already: choose another name.")
    edits: dict[Path, Callable[[str], str]] = {
        UNION: lambda text: _listed(text, name, kind),
        METHODS: lambda text: _named(text, name, paper),
        CONTENTS: lambda text: _linked(text, name),
    }
    written |= {path: edit((root / path).read_text()) for path, edit in edits.items()}
    for path, text in written.items():
        (root / path).write_text(text)
    return list(written)


def checkout() -> Path | None:
    """The source checkout that this process runs from, if it does."""
    root = Path(__file__).parents[2]
    needed = (UNION, METHODS, CONTENTS, Path("pyproject.toml"), Path("tests/fl_core/test_laws.py"))
    return root if all((root / path).is_file() for path in needed) else None


def _check(root: Path, name: str, paper: str) -> None:
    faults = []
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        faults.append(
            f"name = {name!r} is not allowed: it is a file's and a config's name, so lower-case "
            "letters, digits and single underscores."
        )
    if name in {learner.name for learner in LEARNERS}:
        faults.append(f"name = {name!r} is a learner already: choose another.")
    if not re.search(r"arXiv:\d{4}\.\d{4,5}", paper) or '"' in paper:
        faults.append(
            f"paper = {paper!r} is not allowed: it must name the paper without quotation marks, "
            "with its number, such as 'MyPrompt (Doe et al., 2026, arXiv:2601.00001)'."
        )
    if len(paper) > 90:
        faults.append(f"paper = {paper!r} is not allowed: it must fit one line (90 characters).")
    if not (root / UNION).is_file():
        faults.append(f"{root} is no source checkout of fedarena: it has no {UNION}.")
    if faults:
        raise ConfigError(faults)


def _listed(text: str, name: str, kind: str) -> str:
    """The union with one more import, member and exported name."""
    lines = text.splitlines()
    start = "from fl_core.learners."
    imports = [i for i, line in enumerate(lines) if line.startswith(start)]
    later = [i for i in imports if lines[i].removeprefix(start).split()[0] > name]
    place = later[0] if later else imports[-1] + 1
    lines.insert(place, f"{start}{name} import {kind}")
    end = lines.index(")", lines.index("AnyLearner = ("))
    lines.insert(end, f"    | {kind}")
    exported = lines.index("__all__ = [")
    closing = lines.index("]", exported)
    after = [
        i
        for i in range(exported + 1, closing)
        if not ast.literal_eval(lines[i].strip(" ,")).isupper()
        and ast.literal_eval(lines[i].strip(" ,")) > kind
    ]
    lines.insert(after[0] if after else closing, f'    "{kind}",')
    return "\n".join(lines) + "\n"


def _named(text: str, name: str, paper: str) -> str:
    """The table of published names with one more, at its end."""
    head, mark, tail = text.partition("METHODS: Mapping[str, Method] = {\n")
    body, end, rest = tail.partition("\n}\n")
    line = f'    "{name}": Method("{paper}", "{name}"),'
    if len(line) > 100:
        line = f'    "{name}": Method(\n        "{paper}", "{name}"\n    ),'
    return f"{head}{mark}{body}\n{line}{end}{rest}"


def _linked(text: str, name: str) -> str:
    """The contents of the methods' pages with one more learner."""
    return text.replace(
        "[zero_shot](zero_shot.md)", f"[{name}]({name}.md), [zero_shot](zero_shot.md)", 1
    )
