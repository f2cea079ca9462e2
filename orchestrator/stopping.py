"""How a command is left by an interrupt, and by SIGTERM, with which schedulers end a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """While this is entered SIGTERM raises SystemExit, so that locks are let go and MLflow is told.

    Python has signals in its main thread only; elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def told_how_to_go_on(how: Callable[[], str]) -> Iterator[None]:
    """Where this is left by an interrupt or by SIGTERM, say how to go on, in words or a command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        click.echo(f"\ninterrupted; go on with: {how()}", err=True)
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as a shell has it
