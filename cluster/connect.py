"""Connections to Ray: a cluster that runs already, or a local one made for this process."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from fl_core.errors import ResourceError

logger = logging.getLogger(__name__)


def connect(address: str | None) -> Any:
    """Connect this process to Ray and return the module; a second call changes nothing.

    address: of a running cluster (``auto``, ``ray://host:10001``); None takes ``RAY_ADDRESS`` where
    it is set, as in a submitted job, and starts a local cluster otherwise, which ends with this
    process. A local cluster listens on loopback only, and asks for a token.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    wanted = address or os.environ.get("RAY_ADDRESS")
    if not wanted and "ray" not in sys.modules:
        # Ray reads it once, when it is imported. Where that is done, as in a notebook, a local
        # cluster asks for a token by Ray's own default; set now, only half of Ray would know.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not wanted:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=wanted, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"cannot connect to Ray at {wanted or 'a local cluster'}: {error}. Check "
            "resources.address (None starts a local cluster), or run `fedarena doctor`."
        ) from error
    return ray
