"""The commands about jobs on a cluster. Light to import: everything heavy is imported inside."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.words import files_and_settings

address_option = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="The job server of the cluster's head, such as http://head:8265.",
)


@click.command()
@click.argument("files_and_overrides", nargs=-1, required=True)
@address_option
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="The folder that travels, and in which the job runs.",
)
@click.option(
    "--state",
    help="Absolute folder on the cluster for all state, or a URL (s3://...).",
)
@click.option("--no-wait", is_flag=True, help="Hand the job in, and do not follow its log.")
@click.option("--dry-run", is_flag=True, help="Show the job, and hand nothing in.")
def submit(
    files_and_overrides: tuple[str, ...],
    address: str,
    working_dir: Path,
    state: str | None,
    no_wait: bool,
    dry_run: bool,
) -> None:
    """Run experiments, or a sweep, as a job on a cluster.

    The same files and settings as for `fedarena run` and `fedarena sweep`. The log is shown as it
    grows, and the exit status is that of the command on the cluster. What was interrupted goes on
    where it stood when the same is submitted again.
    """
    from cluster.submit import Jobs, checked_address
    from orchestrator.submit.submission import prepare_submission

    files, overrides = files_and_settings(files_and_overrides)
    address = checked_address(address)
    submission = prepare_submission(files, overrides, working_dir, state)
    _tell(f"the same with Ray's own tool:\n  {submission.request.plain_command(address)}")
    for place in submission.on_cluster:
        _tell(f"every node must have {place}")
    if dry_run:
        return
    jobs = Jobs(address)
    job = jobs.submit(submission.request)
    _tell(f"job {job} is handed in; end it with: fedarena stop {job} --address {address}")
    if no_wait:
        _tell(f"its log: {_log_command(job, address)}")
        return
    try:
        end = jobs.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        _tell(
            f"\njob {job} goes on. End it with: fedarena stop {job} --address {address}\n"
            f"See its log with: {_log_command(job, address)}"
        )
        raise SystemExit(130) from None
    _tell(f"job {job}: {end.status}{f' ({end.message})' if end.exit_code else ''}")
    if end.exit_code == 127:
        _tell("fedarena is not installed where the head runs: use an image that holds it.")
    raise SystemExit(end.exit_code)


@click.command()
@click.argument("job")
@address_option
def stop(job: str, address: str) -> None:
    """End a job on a cluster; its finished rounds stay.

    JOB is the id that `fedarena submit` told. Submit the same again, and it goes on.
    """
    from cluster.submit import Jobs

    end = Jobs(address).stop(job)
    _tell(f"job {job}: {end.status}")
    if end.status == "STOPPED":
        _tell("its finished rounds are kept: submit the same again, and it goes on from there.")


def _log_command(job: str, address: str) -> str:
    return f"RAY_AUTH_MODE=token ray job logs --follow --address {address} {job}"


def _tell(text: str) -> None:
    """About the job, beside its log."""
    click.echo(text, err=True)
