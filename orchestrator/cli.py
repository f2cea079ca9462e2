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
from orchestrator.submit.command import stop, submit
from orchestrator.sweep.command import plan, resume_sweep, sweep

if TYPE_CHECKING:
    from orchestrator.config import ExperimentConfig

KINDS = ("methods", "learners", "federations", "scenarios", "codecs", "backbones", "datasets")


class _Errors(click.Group):
    """Shows our own errors as text, one fault per line; anything else is a bug and shows all."""

    def invoke(self, ctx: click.Context) -> object:
        from fl_core.errors import FedarenaError

        try:
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
@click.option("--fresh", is_flag=True, help="Start again where a run of this config exists.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def run(files_and_overrides: tuple[str, ...], dry_run: bool, fresh: bool, quiet: bool) -> None:
    """Run experiments, one after the other, and compare them.

    Give one or more YAML files, and settings for all of them such as federation.rounds=20 seed=1.
    A run that was interrupted goes on where it stood.
    """
    from orchestrator.loading import load_config, resolve

    files = [word for word in files_and_overrides if not _is_override(word)]
    overrides = [word for word in files_and_overrides if _is_override(word)]
    if not files:
        raise click.UsageError("name at least one YAML file, such as examples/promptfl.yaml")
    configs = [resolve(load_config(Path(file), overrides)) for file in files]
    if dry_run:
        from orchestrator.display import show_plan

        show_plan(configs)
        return
    _run(configs, fresh=fresh, quiet=quiet)


@main.command()
@click.argument("run_name")
@click.argument("overrides", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def resume(run_name: str, overrides: tuple[str, ...], folder: Path, quiet: bool) -> None:
    """Go on with an interrupted run or sweep from the last committed rounds.

    RUN_NAME may be the URL of one at a mirror: it is brought into the folder first.
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
    """List what can be named in a config."""
    from orchestrator.display import show_list

    show_list(kind)


@main.command()
@click.argument("sweep", required=False)
@click.option("--uri", help="Tracking URI; the default is sqlite:///mlflow.db in this folder.")
@click.option("--port", default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@FOLDER
def ui(sweep: str | None, uri: str | None, port: int, host: str, folder: Path) -> None:
    """Open MLflow's web page on the right database; for SWEEP, tell the page of its charts."""
    import os
    import sys

    from orchestrator.loading import tracking_uri

    page = f"http://{host}:{port}"
    if sweep is not None:
        from orchestrator.sweep.tracking import charts_page

        uri, charts = charts_page(sweep, folder)
        page += charts
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--backend-store-uri", tracking_uri(uri)]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    click.echo(f"MLflow on {page} (end it with Ctrl-C)")
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


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _run(configs: list[ExperimentConfig], *, fresh: bool, quiet: bool) -> None:
    from orchestrator.display import Watcher, show_results
    from orchestrator.run import run_experiments

    with Watcher(configs, quiet=quiet) as watcher:
        results = run_experiments(configs, fresh=fresh, listen=watcher.on_event)
    show_results(configs, results)
    if not watcher.is_mirrored:
        raise SystemExit(1)
