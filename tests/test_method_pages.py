"""Every method has a page under docs/methods, whose commands name what exists."""

import re
import shlex
from pathlib import Path

import pytest

from fl_core.federation import FEDERATIONS
from fl_core.learners import LEARNERS
from orchestrator.loading import load_config, resolve

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
NAMES = [kind.name for kind in (*LEARNERS, *FEDERATIONS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_a_page_with_a_command_that_loads(name):
    text = (PAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    commands = re.findall(r"^fedarena run (.+)$", text, flags=re.M)
    assert commands
    for command in commands:
        file, *overrides = shlex.split(command)
        config = resolve(load_config(ROOT / file, overrides))
        assert name in (config.learner.name, config.federation.name)


def test_the_table_of_contents_lists_every_page_and_no_other():
    linked = set(re.findall(r"\]\((\w+)\.md\)", (PAGES / "index.md").read_text()))
    assert linked == set(NAMES) == {page.stem for page in PAGES.glob("*.md")} - {"index"}


@pytest.mark.parametrize("kind", [*LEARNERS, *FEDERATIONS], ids=lambda kind: kind.name)
def test_a_method_is_a_file_of_its_name_with_its_source_in_the_first_line(kind):
    module = kind.__module__.rsplit(".", 1)
    assert module[1] == kind.name
    path = ROOT / "fl_core" / module[0].split(".")[1] / f"{kind.name}.py"
    lines = path.read_text().splitlines()
    assert len(lines) <= 130
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|PMLR \d+|a reference row", " ".join(lines[:2]))
