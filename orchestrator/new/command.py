"""``fedarena new``: starting points for own methods."""

from __future__ import annotations

import click


@click.group()
def new() -> None:
    """Start a method of your own."""


@new.command()
@click.argument("name")
@click.option(
    "--paper",
    required=True,
    help="Its first line: 'MyPrompt (Doe et al., 2026, arXiv:2601.00001)'.",
)
def learner(name: str, paper: str) -> None:
    """Write a learner that passes the laws into this checkout.

    It is CoOp with a term of its own, to be changed into what the paper says, with its test, its
    page, a file for the paper's setting and its lines in the lists. NAME is that of its file and in
    configs: my_prompt. What comes after: CONTRIBUTING.md.
    """
    from fl_core.errors import ConfigError
    from orchestrator.new.learner import checkout, new_learner

    root = checkout()
    if root is None:
        raise ConfigError(
            "fedarena new learner writes into a source checkout, and fedarena is installed as a "
            "package here. Learners stand in one explicit list, which is config schema, help and "
            "test plan at once, so a new one is a change of the source: clone the repository, run "
            "make install, and call .venv/bin/fedarena new learner there."
        )
    for path in new_learner(root, name, paper):
        click.echo(path)
    click.echo(f"Next: .venv/bin/python -m pytest tests/fl_core -k {name}")
