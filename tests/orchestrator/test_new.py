"""``fedarena new learner`` writes what passes the repository's checks, or says why it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_core.errors import ConfigError
from orchestrator.cli import main
from orchestrator.new.learner import CONTENTS, METHODS, PAPERS, UNION, checkout, new_learner

ROOT = Path(__file__).parents[2]
PAPER = "MyPrompt (Doe et al., 2026, arXiv:2601.00001)"


@pytest.fixture
def copy(tmp_path):
    """The parts of the repository that a new learner touches, and that its tests need."""
    for folder in (METHODS.parent, PAPERS):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in (CONTENTS, Path("pyproject.toml")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copytree(
        ROOT / "fl_core", tmp_path / "fl_core", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(
        ROOT / "tests/fl_core",
        tmp_path / "tests/fl_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, tmp_path / "tests")
    return tmp_path


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_what_is_written_passes_lint_its_own_test_and_the_laws(copy):
    written = new_learner(copy, "my_prompt", PAPER)
    files = [str(path) for path in written if path.suffix == ".py"]
    run(copy, "ruff", "check", *files)
    run(copy, "ruff", "format", "--check", *files)
    out = run(copy, "pytest", "-q", "tests/fl_core/test_my_prompt.py", "tests/fl_core/test_laws.py",
              "-k", "my_prompt or MyPrompt", "-p", "no:cacheprovider")  # fmt: skip
    assert int(out.split(" passed")[0].split()[-1]) > 10
    run(copy, "pytest", "-q", "tests/test_papers.py", "-k", "my_prompt or every_learner",
        "-p", "no:cacheprovider")  # fmt: skip


def test_its_lines_stand_in_every_list_once(copy):
    written = new_learner(copy, "my_prompt", PAPER)
    union = (copy / UNION).read_text()
    for line in (
        "from fl_core.learners.my_prompt import MyPrompt",
        "    | MyPrompt",
        '    "MyPrompt",',
    ):
        assert union.splitlines().count(line) == 1
    compile(union, "union", "exec")
    assert (copy / METHODS).read_text().count('"my_prompt": Method(') == 1
    assert "[my_prompt](my_prompt.md)" in (copy / CONTENTS).read_text()
    assert (copy / "docs/methods/my_prompt.md").read_text().startswith("# my_prompt\n")
    assert {path.name for path in written} >= {
        "my_prompt.py", "test_my_prompt.py", "my_prompt.md", "my_prompt.yaml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "paper", "reason"),
    [
        ("MyPrompt", PAPER, "lower-case"),
        ("coop", PAPER, "a learner already"),
        ("mine", "MyPrompt", "arXiv"),
        ("mine", PAPER + "x" * 60, "one line"),
        ("../mine", PAPER, "lower-case"),
    ],
)
def test_a_name_or_paper_that_does_not_do_is_refused_and_nothing_is_written(
    copy, name, paper, reason
):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=reason):
        new_learner(copy, name, paper)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_file_that_is_there_is_never_overwritten(copy):
    (copy / "tests/fl_core/test_mine.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"test_mine\.py is there already"):
        new_learner(copy, "mine", PAPER)
    assert not (copy / "fl_core/learners/mine.py").exists()


def test_this_repository_is_a_checkout_and_an_installed_package_is_none(monkeypatch):
    assert checkout() == ROOT
    monkeypatch.setattr("orchestrator.new.learner.UNION", Path("missing.py"))
    done = CliRunner().invoke(main, ["new", "learner", "mine", "--paper", PAPER])
    assert done.exit_code == 1
    assert "source checkout" in done.output
