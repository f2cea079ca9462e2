"""Jobs on a cluster that runs already: handed in, followed to their end, stopped.

Everything goes through Ray's job server on the head (its dashboard port). The token of the cluster
travels as a header of each request, never inside a job, where it would be shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fl_core.errors import ConfigError, FedarenaError, ResourceError

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
"""How long an address may take to answer at all."""
LOST_S = 120.0
"""How long a head may be out of reach while a job is followed."""
POLL_S = 1.0
STOPPED_EXIT = 143
"""Exit status of a stopped job: 128 and SIGTERM, as a shell has it."""

Write = Callable[[str], object]


@dataclass(frozen=True)
class JobRequest:
    """A command for the cluster, and the files and variables that it runs with.

    entrypoint: a shell command, run in the uploaded copy of ``working_dir``. excludes: patterns as
    in a .gitignore, of what is not uploaded; what a .gitignore names is left out too.
    """

    entrypoint: str
    working_dir: Path
    excludes: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, Any]:
        """What of Ray's runtime environment does not name the working folder."""
        return {"excludes": list(self.excludes), "env_vars": dict(self.env)}

    def plain_command(self, address: str) -> str:
        """The line with Ray's own tool that does the same."""
        words = ["ray", "job", "submit", "--address", address]
        words += ["--working-dir", str(self.working_dir)]
        words += ["--runtime-env-json", json.dumps(self.environment())]
        return f"RAY_AUTH_MODE=token {shlex.join(words)} -- {self.entrypoint}"


@dataclass(frozen=True)
class JobEnd:
    """How a job ended. exit_code: 0, or of the command that failed; ``STOPPED_EXIT``."""

    status: str
    exit_code: int
    message: str


class Jobs:
    """The job server of one cluster. ResourceError where it cannot be used."""

    def __init__(self, address: str) -> None:
        self.address = checked_address(address)
        _refuse_silence(self.address)
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when it is imported
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else RAY_ADDRESS would win over it
        from ray.job_submission import JobSubmissionClient

        self._client = self._asked(lambda: JobSubmissionClient(self.address))

    def submit(self, request: JobRequest) -> str:
        """Upload the working folder and start the job; its id."""
        environment = {**request.environment(), "working_dir": str(request.working_dir)}
        return str(
            self._asked(
                lambda: self._client.submit_job(
                    entrypoint=request.entrypoint, runtime_env=environment
                )
            )
        )

    def follow(self, job: str, write: Write) -> JobEnd:
        """Hand on a job's log as it grows, until the job has ended."""
        from aiohttp import ClientError

        seen = 0

        def count(text: str) -> None:
            nonlocal seen
            seen += len(text)
            write(text)

        lost_since: float | None = None
        while True:
            try:
                asyncio.run(self._tail(job, seen, count))
                info = self._client.get_job_info(job)
                lost_since = None
            except (
                OSError,
                RuntimeError,
                ClientError,
            ) as error:  # a stream that broke is taken up again
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_S:
                    raise ResourceError(
                        f"{self.address} has not answered for {LOST_S:g} s ({error}). Whether job "
                        f"{job} goes on cannot be told from here; its finished rounds are kept."
                    ) from error
                logger.info("job %s: %s", job, error)
            else:
                if info.status.is_terminal():
                    return _end(info)
            time.sleep(POLL_S)

    def stop(self, job: str, wait_s: float = 30.0) -> JobEnd:
        """End a job, by SIGTERM and after some seconds SIGKILL; returns when it has ended."""
        self._asked(lambda: self._client.stop_job(job))
        until = time.monotonic() + wait_s
        while True:
            info = self._asked(lambda: self._client.get_job_info(job))
            if info.status.is_terminal():
                return _end(info)
            if time.monotonic() > until:
                raise ResourceError(f"job {job} still runs {wait_s:g} s after it was told to stop.")
            time.sleep(POLL_S / 4)

    async def _tail(self, job: str, seen: int, write: Write) -> None:
        """The log from its ``seen``-th character on; a stream always begins at the first."""
        async for text in self._client.tail_job_logs(job):
            fresh = text[seen:]
            seen = max(0, seen - len(text))
            if fresh:
                write(fresh)

    def _asked(self, request: Callable[[], Any]) -> Any:
        """What a request gives; the ways in which it fails become one error that says what to do.

        Ray raises RuntimeError for a refused request and ValueError for a folder that is too large.
        """
        from ray.exceptions import AuthenticationError

        try:
            return request()
        except AuthenticationError as error:
            raise ResourceError(
                f"{self.address} refuses the token: {str(error).splitlines()[0]}. Set "
                "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, to the token that "
                "the head was started with (`ray get-auth-token` shows it there)."
            ) from error
        except FedarenaError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(f"{self.address}: {error}") from error


def checked_address(address: str) -> str:
    """The address of a job server with scheme and without a slash at its end; else ConfigError."""
    whole = address if "://" in address else f"http://{address}"
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"address = {address!r} is not allowed: jobs go to the head's dashboard, so it must be "
            "like http://head:8265 (https behind a proxy)."
        )
    return whole.rstrip("/")


def _refuse_silence(address: str) -> None:
    """ResourceError where nothing listens; Ray's client itself would wait for minutes."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=CONNECT_S).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray head answers at {address}: {error}. Start one with `RAY_AUTH_MODE=token ray "
            "start --head` and ray[default], or open a tunnel to its port 8265; docs/cluster.md "
            "shows both."
        ) from error


def _end(info: Any) -> JobEnd:
    """Ray's own tool exits with 0 or 1; the command's true status stands in the job's record."""
    status, code = str(info.status.value), info.driver_exit_code
    if status == "SUCCEEDED":
        exit_code = 0
    elif status == "STOPPED":
        exit_code = STOPPED_EXIT
    else:  # below 0 it is the number of the signal that ended it
        exit_code = 1 if not code else 128 - code if code < 0 else code
    return JobEnd(status, exit_code, str(info.message or ""))
