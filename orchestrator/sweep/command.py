"""The commands about sweeps. Light to import: everything heavy is imported inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.stopping import told_how_to_go_on

if TYPE_CHECKING:
    from orchestrator.sweep.config import SweepConfig


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Show what would run, as `fedarena plan` does.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def sweep(file: Path, overrides: tuple[str, ...], dry_run: bool, quiet: bool) -> None:
    """Run a grid of methods x scenarios x budgets x seeds.

    FILE has base and axes: docs/sweeps.md. Overrides such as seeds=2 change the sweep, others such
    as federation.rounds=20 its base. Trials whose runs are finished are not run again.
    """
    from orchestrator.sweep.loading import load_sweep

    found = load_sweep(file, overrides)
    if dry_run:
        from orchestrator.sweep.plan import show_sweep_plan

        show_sweep_plan(found)
        return
    run_and_show(found, quiet=quiet)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
def plan(file: Path, overrides: tuple[str, ...]) -> None:
    """Show what an experiment or a sweep would run and send.

    Trials, slices, memory, time and bytes; nothing is computed.
    """
    from orchestrator.loading import is_sweep, load_config, resolve
    from orchestrator.sweep.loading import load_sweep
    from orchestrator.sweep.plan import show_experiment_plan, show_sweep_plan
    from orchestrator.yaml_text import read_yaml

    if is_sweep(read_yaml(file)):
        show_sweep_plan(load_sweep(file, overrides))
        return
    show_experiment_plan(resolve(load_config(file, overrides)))


def resume_sweep(name: str, overrides: tuple[str, ...], folder: Path, quiet: bool) -> bool:
    """Go on with the sweep of that name; False where there is none."""
    from fl_core.errors import ConfigError
    from orchestrator.sweep.loading import is_about_places
    from orchestrator.sweep.state import SWEEPS, find_sweep, read_sweep

    found = find_sweep(name, folder)
    if found is None:
        return False
    if others := [o for o in overrides if not is_about_places(o)]:
        raise ConfigError(
            f"{name} is a sweep: it goes on as it was, if elsewhere. To change {others[0]}, use "
            "`fedarena sweep`; what is finished already is not run again."
        )
    if found.absolute().parent.name == SWEEPS:  # it may have been moved, with its runs
        here = json.dumps(str(found.absolute().parent.parent), ensure_ascii=False)
        overrides = (f"folder={here}", *overrides)
    run_and_show(read_sweep(found, overrides), quiet=quiet)
    return True


def run_and_show(sweep: SweepConfig, *, quiet: bool) -> None:
    from orchestrator.sweep.display import SweepWatcher, show_sweep
    from orchestrator.sweep.run import run_sweep

    going_on = told_how_to_go_on(lambda: f"fedarena resume {sweep.name}")
    with going_on, SweepWatcher(quiet=quiet) as watcher:
        result = run_sweep(sweep, audience=watcher)
    show_sweep(result)
    if result.failed or result.lost or result.not_mirrored:
        raise SystemExit(1)
