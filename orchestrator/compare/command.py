"""``fedarena compare``: methods, seeds and references in one table, and which of them is best."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.stopping import told_how_to_go_on
from orchestrator.words import files_and_settings


@click.command()
@click.argument("files_and_overrides", nargs=-1, required=True)
@click.option("--seeds", default=3, show_default=True, help="Runs of each method.")
@click.option("--vary-data", is_flag=True, help="Each seed also draws who has which data.")
@click.option("--no-references", is_flag=True, help="Leave out the rows that methods have to beat.")
@click.option(
    "--metric",
    help="What methods are ranked by, as MLflow names it.  [default: eval/personal/HEADLINE]",
)
@click.option(
    "--target-accuracy",
    type=click.FloatRange(0, 1),
    help="Tell the megabytes that each method needs to get there, such as 0.4.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write tables (CSV, JSON) and a picture into this folder.",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def compare(
    files_and_overrides: tuple[str, ...],
    seeds: int,
    vary_data: bool,
    no_references: bool,
    metric: str | None,
    target_accuracy: float | None,
    out: Path | None,
    quiet: bool,
) -> None:
    """Run methods with several seeds, and say which is best.

    Give YAML files, and settings for all of them such as federation.rounds=20. References
    stand beside them: zero-shot and the majority class, which come with every run, and local-only
    and centralised training of the same learner, with as much work. What has run already is taken
    from its folder.
    """
    from orchestrator.compare.comparison import compare_rows
    from orchestrator.compare.display import show_comparison
    from orchestrator.compare.lineup import Question, headline_metric, line_up
    from orchestrator.display import Watcher, console

    files, overrides = files_and_settings(files_and_overrides)
    metric = metric or headline_metric(files, overrides)
    question = Question(seeds, vary_data, not no_references, metric, target_accuracy)
    rows = line_up(files, question, overrides)
    configs = [config for row in rows for config in row.configs.values()]
    going_on = told_how_to_go_on(lambda: "the same command; what has run is not run again")
    with going_on, Watcher(configs, quiet=quiet) as watcher:
        comparison = compare_rows(rows, question, watcher.on_event)
    show_comparison(comparison, console)
    if out is not None:
        from orchestrator.compare.export import write_comparison

        console.print("\n[bold]Written[/]")
        for path in write_comparison(comparison, out):
            console.print(f"  {path}", highlight=False, soft_wrap=True)
