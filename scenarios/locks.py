"""Locks between the processes of one node."""

from __future__ import annotations

import errno
import fcntl
import logging

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def acquire(handle: int, what: str, *, wait: bool = True) -> bool:
    """Lock an open file until it is closed; whether that could be done.

    It could not on a file system without locks, and, unless ``wait``, where another holds it.
    what: is at stake, as the log names it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return False
        logger.info("waiting for another process that works on %s", what)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("no file locks here, so %s may be computed twice: %s", what, error)
        return False
    return True
