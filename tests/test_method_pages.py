"""Every method has a page under docs/methods, whose commands name what exists."""

import re
import shlex
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from fl_core.backbones.tokens import word_ids
from fl_core.federation import FEDERATIONS
from fl_core.learners import LEARNERS
from orchestrator.loading import is_sweep, load_config, resolve
from orchestrator.yaml_text import read_yaml

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


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_a_page_are_those_of_the_table_of_all_methods(name):
    _, mark, measured = (PAGES / f"{name}.md").read_text().partition("\n## Measured\n")
    assert mark, "a page ends with what was measured, or says that nothing was yet"
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) >= 4 or measured.strip().startswith("Not yet")
    assert set(rows) <= set((PAGES / "index.md").read_text().splitlines())


def test_no_file_or_command_asks_for_another_number_of_tokens_than_its_words_have():
    """The papers' models and the packaged ones read CLIP's own tokens."""
    texts = "\n".join(path.read_text() for path in PAGES.glob("*.md"))
    commands = [shlex.split(line) for line in re.findall(r"^fedarena run (.+)$", texts, flags=re.M)]
    every = ROOT.glob("examples/**/*.yaml")
    files = [path for path in every if not is_sweep(read_yaml(path))]
    configs = [load_config(ROOT / file, overrides) for file, *overrides in commands]
    found = 0
    for config in [*configs, *map(load_config, files)]:
        learner = vars(config.learner)
        if learner.get("init_text") and learner["num_tokens"]:
            assert learner["num_tokens"] == len(word_ids(SimpleTokenizer(), learner["init_text"]))
            found += 1
    assert found >= 4  # coop, maple and promptsrc say both


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
