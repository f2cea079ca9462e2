"""The command line. Light to import: everything heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.compare.command import compare
from orchestrator.data.command import data
from orchestrator.new.command import new
from orchestrator.report.command import FOLDER, export, report, runs, show
from orchestrator.stopping import stopped_by_sigterm, told_how_to_go_on
from orchestrator.submit.command import stop, submit
from orchestrator.sweep.command import plan, resume_sweep, sweep
from orchestrator.words import KINDS, files_and_settings

if TYPE_CHECKING:
    from orchestrator.config import ExperimentConfig


class _Errors(click.Group):
    """Shows our own errors as text, one fault per line; anything else is a bug and shows all."""

    def invoke(self, ctx: click.Context) -> object:
        from fl_core.errors import FedarenaError

        try:
            with stopped_by_sigterm():
                return super().invoke(ctx)
        except FedarenaError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedarena")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens behind the progress bars.")
def main(verbose: bool) -> None:
    """Compare federated prompt and adapter learning: which method, which data, which price."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.argument("files_and_overrides", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Show what would run, and compute nothing.")
@click.option(
    "--fresh", is_flag=True, help="Remove what an earlier run of this config left, and start again."
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def run(files_and_overrides: tuple[str, ...], dry_run: bool, fresh: bool, quiet: bool) -> None:
    """Run experiments, one after the other, into one table.

    Give one or more YAML files, and settings for all of them such as federation.rounds=20 seed=1;
    docs/settings.md lists the settings. A run that was interrupted goes on where it stood. Several
    seeds, references and a verdict: fedarena compare. A file with axes: fedarena sweep.
    """
    from orchestrator.loading import load_config, resolve

    files, overrides = files_and_settings(files_and_overrides)
    configs = [resolve(load_config(file, overrides)) for file in files]
    if dry_run:
        from orchestrator.display import show_plan

        show_plan(configs)
        return
    _run(configs, fresh=fresh, quiet=quiet)


@main.command()
@click.argument("run_name")
@click.argument("overrides", nargs=-1)
@FOLDER
@click.option("--quiet", is_flag=True, help="No progress bars.")
def resume(run_name: str, overrides: tuple[str, ...], folder: Path, quiet: bool) -> None:
    """Go on with an interrupted run or sweep.

    It goes on after the last committed round. RUN_NAME is what `fedarena runs` lists, a sweep's
    name, the folder of either, or the URL of one at a mirror, which is brought into --folder first.
    """
    from orchestrator.run import load_run

    if "://" in run_name:
        from orchestrator.fetching import fetch_state

        found, places = fetch_state(run_name, folder)
        run_name, overrides = str(found), (*places, *overrides)
    if resume_sweep(run_name, overrides, folder, quiet):
        return

    _run([load_run(run_name, folder, overrides)], fresh=False, quiet=quiet)


@main.command(name="list")
@click.argument("kind", type=click.Choice(KINDS))
def list_(kind: str) -> None:
    """List what can be named in a config.

    methods: published names; scenarios: partitions, protocols and attacks. docs/ has a page on
    each kind.
    """
    from orchestrator.display import show_list

    show_list(kind)


@main.command()
@click.argument("sweep", required=False)
@click.option("--uri", help="Tracking URI; the default is sqlite:///mlflow.db in this folder.")
@click.option("--port", default=5000, show_default=True, help="Of the page.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; MLflow asks nobody for a password.",
)
@FOLDER
def ui(sweep: str | None, uri: str | None, port: int, host: str, folder: Path) -> None:
    """Serve MLflow's web page on the right database.

    With SWEEP it tells the page that charts that sweep's trials. Where a server tracks the runs, it
    only tells where that is.
    """
    import os
    import sys

    from orchestrator.loading import tracking_uri
    from orchestrator.mlflow_access import without_password

    charts = ""
    if sweep is not None:
        from orchestrator.sweep.tracking import charts_page

        uri, charts = charts_page(sweep, folder)
    place = tracking_uri(uri)
    if place.startswith(("http://", "https://")):
        click.echo(f"MLflow is on {without_password(place).rstrip('/')}{charts}")
        return
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--backend-store-uri", place]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    click.echo(f"MLflow on http://{host}:{port}{charts} (end it with Ctrl-C)")
    os.execv(sys.executable, command)


@main.command()
@click.option("--address", help="A Ray cluster to look at; the default is this machine.")
def doctor(address: str | None) -> None:
    """Tell what this machine and cluster offer, and what is missing."""
    from orchestrator.doctor import examine

    if not examine(address):
        raise SystemExit(1)


main.add_command(compare)
main.add_command(data)
main.add_command(export)
main.add_command(new)
main.add_command(plan)
main.add_command(report)
main.add_command(runs)
main.add_command(show)
main.add_command(stop)
main.add_command(submit)
main.add_command(sweep)


def _run(configs: list[ExperimentConfig], *, fresh: bool, quiet: bool) -> None:
    from orchestrator.display import Watcher, show_results
    from orchestrator.run import run_experiments

    going_on = told_how_to_go_on(lambda: _to_go_on(configs))
    with going_on, Watcher(configs, quiet=quiet) as watcher:
        results = run_experiments(configs, fresh=fresh, listen=watcher.on_event)
    show_results(configs, results)
    if not watcher.is_mirrored:
        raise SystemExit(1)


def _to_go_on(configs: list[ExperimentConfig]) -> str:
    """The command for one run that has begun; several, and what has not begun, start as before."""
    from orchestrator.display import run_words
    from orchestrator.experiment import run_folder

    folder = run_folder(configs[0])
    if len(configs) > 1 or not (folder / "config.yaml").exists():
        return "the same command"
    return f"fedarena resume {run_words(folder)}"
