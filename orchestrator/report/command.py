"""``fedarena report``, ``runs``, ``show`` and ``export``: what has run already, for a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click


def _of_disk(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """What is on this machine; for a URL it says how to bring it."""
    from fl_core.remote import check_disk

    bring = "`fedarena resume URL` brings a run or a sweep here; a finished one does not run again."
    for place in value if isinstance(value, tuple) else [value]:
        if place is not None and (faults := check_disk(str(param.name), Path(place), bring)):
            raise click.BadParameter(faults[0])
    return value


FOLDER = click.option(
    "--folder",
    callback=_of_disk,
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs and sweeps are.",
)


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers with commas between."""
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} must be numbers with commas between, such as 0.25,1,4."
        ) from None


@click.command()
@click.argument("names", nargs=-1, callback=_of_disk)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to.  [default: report.html, .csv, .tex or .json]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["html", "csv", "latex", "json"]),
    default="html",
    show_default=True,
    help="csv writes one file per table.",
)
@click.option(
    "--target", type=click.FloatRange(0, 1), help="Score whose price is asked for, such as 0.4."
)
@click.option(
    "--budgets",
    callback=_numbers,
    help="Megabytes per client, both ways.  [default: the sweeps' own, else 0.25,1,4]",
)
@click.option(
    "--metric", help="As MLflow names it.  [default: eval/personal/ of what the runs are judged by]"
)
@FOLDER
def report(
    names: tuple[str, ...],
    out: Path | None,
    format_: Literal["html", "csv", "latex", "json"],
    target: float | None,
    budgets: tuple[float, ...] | None,
    metric: str | None,
    folder: Path,
) -> None:
    """Say which method to take at which price, in one file.

    Give sweeps, folders that `fedarena compare --out` wrote, or runs; without any, all finished
    runs. The page needs no network. How to read it: docs/report.md.
    """
    from orchestrator.report.ask import Ask
    from orchestrator.report.content import make_report
    from orchestrator.report.gather import declared_budgets, gather
    from orchestrator.report.write import ENDINGS, write_report

    material = gather(names, folder)
    ask = Ask(
        metric or material.metric, budgets or declared_budgets(names, folder) or Ask.budgets, target
    )
    found = make_report(material, ask)
    for answer in found.answers:
        click.echo(f"{answer.scenario}")
        for sentence in answer.sentences(ask.word):
            click.echo(f"  {sentence}")
    for name, why in found.left_out.items():
        click.echo(f"left out: {name}: {why}", err=True)
    for path in write_report(found, out or Path(f"report{ENDINGS[format_]}"), format_):
        click.echo(f"written: {path}")


@click.command()
@FOLDER
def runs(folder: Path) -> None:
    """List the runs of a folder, and how far they are."""
    from orchestrator.display import console
    from orchestrator.report.listing import list_runs, show_runs

    show_runs(list_runs(folder), console)


@click.command()
@click.argument("run", callback=_of_disk)
@FOLDER
def show(run: str, folder: Path) -> None:
    """Show a run: settings that are no defaults, numbers, failures.

    RUN is what `fedarena runs` lists, or a run's folder.
    """
    from orchestrator.display import console
    from orchestrator.report.listing import describe_run, show_run
    from orchestrator.run import find_run

    show_run(describe_run(find_run(run, folder)), console)


@click.command()
@click.argument("run", callback=_of_disk)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["safetensors", "classifier", "peft"]),
    default="safetensors",
    show_default=True,
    help="The shared tensors, class weights for open_clip, or an adapter for peft.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into.  [default: export/ in the run's folder]",
)
@FOLDER
def export(run: str, kind: str, out: Path | None, folder: Path) -> None:
    """Write what a run has learned, for other programs.

    RUN is what `fedarena runs` lists, or a run's folder. How to load it: docs/report.md.
    """
    from orchestrator.export import export_classifier, export_shared
    from orchestrator.export_adapter import export_adapter
    from orchestrator.run import find_run

    path = find_run(run, folder)
    writers = {"classifier": export_classifier, "peft": export_adapter}
    for file in writers.get(kind, export_shared)(path, out or path / "export"):
        click.echo(f"written: {file}")
