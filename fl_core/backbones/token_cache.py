"""Tokens kept beside the weights, so that a text is tokenised once and open_clip stays unimported.

Importing open_clip takes longer than everything else that a client actor does before its first
round, and tokenising is all that it would need it for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def cached_tokens(folder: Path, kind: str, texts: Sequence[str], compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives for ``texts`` (plain JSON values), from ``folder`` where it is there.

    A folder that cannot be written costs time only. Writers race harmlessly: each puts the same
    content in place as a whole.
    """
    digest = hashlib.sha256(json.dumps([kind, list(texts)]).encode()).hexdigest()[:32]
    path = folder / f"{digest}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    found = json.loads(json.dumps(compute()))
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        temporary = path.with_name(f".{digest}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(found))
        temporary.replace(path)
    return found
