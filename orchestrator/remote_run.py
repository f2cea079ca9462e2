"""The copy of a run's folder at a URL: what is sent, in which order, and how it comes back.

The copy has the folder's names (see ``checkpoint``). Whoever reads rounds up to the first gap finds
a state that a run can go on from, at every moment: tensors are sent before records, and of several
new records the last round's first, so that the gap before them hides them until the first of them
closes it. Tensors that no round needs any more go after that. Nothing that is published is changed,
and no folder: where the two hold different results, neither gives way.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import StateError
from fl_core.remote import RemoteFolder
from orchestrator.checkpoint import RunStore, file_stem, write_atomic, write_synced

logger = logging.getLogger(__name__)

SIDE_FILES = ("config.yaml", "population.parquet", "environment.json")
DONE = "DONE"
NOTHING = -2
"""The last round of a folder that holds none; -1 is the state before the first round."""
COMPARED_BYTES = 1 << 20
"""Up to this size a side file of equal size is compared; what is larger never changes."""


@dataclass(frozen=True)
class Kept:
    """What a run may go on from: rounds up to ``last``, and the tensors of those in ``needed``."""

    last: int = NOTHING
    needed: frozenset[int] = frozenset()


class RemoteRun:
    """One folder and its copy. A single thread at a time may send; all of it raises.

    side_files: what else of the folder is sent, before the rounds.
    """

    def __init__(
        self, folder: Path, remote: RemoteFolder, side_files: Sequence[str] = SIDE_FILES
    ) -> None:
        self.folder, self.remote, self.side_files = folder, remote, side_files
        self.rounds_here, self.rounds_there = folder / "rounds", remote.child("rounds")
        self._sent: dict[str, tuple[int, int]] = {}
        self._tensors_there: set[int] | None = None
        self._last_there = NOTHING

    # -- to the URL --------------------------------------------------------------------------

    def send(self, kept: Kept) -> None:
        """Bring the copy up to ``kept``; only what it lacks is sent. May be repeated if it fails.

        StateError where somebody else has written another result of a round there.
        """
        self._send_side_files(self.side_files)
        if kept.last > NOTHING:
            try:
                self._send_rounds(kept)
            except BaseException:
                self._tensors_there = None  # looked up again the next time
                raise
        self._send_side_files((DONE,))

    def kept_here(self) -> Kept:
        """All that the folder holds."""
        last = _last({path.name for path in self.rounds_here.glob("*.json")})
        return Kept(last, frozenset(_rounds_of(p.name for p in self.rounds_here.glob("*"))))

    def remove(self) -> None:
        """Remove the copy; the first record goes first, so that it is nothing from then on."""
        self.rounds_there.remove(f"{file_stem(-1)}.json")
        self.remote.remove_all()

    def _send_side_files(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.folder / name
            if not path.exists():
                continue
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._sent.get(name) != stamp:
                content = path.read_bytes()
                if not self._is_there(name, content):
                    self.remote.write(name, content)
                self._sent[name] = stamp

    def _is_there(self, name: str, content: bytes) -> bool:
        if self.remote.size(name) != len(content):
            return False
        return len(content) > COMPARED_BYTES or self.remote.read(name) == content

    def _send_rounds(self, kept: Kept) -> None:
        there = self._look_there(kept)
        self._refuse_another(self._last_there + 1, kept)
        for round in sorted(kept.needed):
            if round not in there or round > self._last_there:
                self._send_tensors(round)
                there.add(round)
        for round in range(kept.last, self._last_there, -1):
            name = f"{file_stem(round)}.json"
            self.rounds_there.write(name, (self.rounds_here / name).read_bytes())
        self._last_there = max(kept.last, self._last_there)
        for round in sorted(r for r in there - kept.needed if r <= kept.last):
            self.rounds_there.remove(f"{file_stem(round)}.safetensors")
            there.discard(round)

    def _look_there(self, kept: Kept) -> set[int]:
        """Rounds whose tensors the copy holds. The first time it is looked up, and cleaned."""
        if self._tensors_there is None:
            names = self.rounds_there.sizes()
            self._last_there = _last(names)
            self._refuse_another(self._last_there, kept)
            for name in names:
                if name.endswith(".json") and _round_of(name) > self._last_there:
                    self.rounds_there.remove(name)  # behind a gap: an attempt that broke off
            self._tensors_there = _rounds_of(names)
        return self._tensors_there

    def _refuse_another(self, round: int, kept: Kept) -> None:
        """StateError where the copy has a round that is not the folder's."""
        theirs = self._checksum_there(round) if round > NOTHING else None
        if theirs is None:
            return
        if round > kept.last or theirs != self._checksum_here(round):
            raise StateError(
                f"{self.remote.url} holds another result of round {round}: another process, or "
                "other hardware, works on the same run there. Nothing of it was changed. Use one "
                "mirror for each of them, or one process."
            )

    def _send_tensors(self, round: int) -> None:
        path = self.rounds_here / f"{file_stem(round)}.safetensors"
        if _sha256(path) != self._checksum_here(round):
            raise StateError(f"{path} does not match the checksum in its record: it was not sent.")
        self.rounds_there.upload(path.name, path)

    def _checksum_here(self, round: int) -> str | None:
        path = self.rounds_here / f"{file_stem(round)}.json"
        return _checksum(path.read_bytes() if path.exists() else None)

    # -- from the URL ------------------------------------------------------------------------

    def restore(self) -> bool:
        """Bring the folder up to its copy where that holds more rounds; whether anything came.

        The caller holds the run's lock. StateError where the two hold different results.
        """
        names = self.rounds_there.sizes()
        last = _last(names)
        while last > NOTHING and self._checksum_there(last) is None:
            last -= 1
        if last == NOTHING:
            return False
        here = self._last_whole_here()
        common = min(here, last)
        if common > NOTHING and self._checksum_there(common) != self._checksum_here(common):
            raise StateError(
                f"{self.folder} holds another result of round {common} than {self.remote.url}, as "
                "from other hardware or versions. Neither was changed. Move the folder away to go "
                "on from the copy, or name another mirror."
            )
        if here >= last:
            return False
        (self.folder / DONE).unlink(missing_ok=True)
        self._fetch(_rounds_of(names), here, last)
        logger.info("%s was brought up to round %d from %s", self.folder, last, self.remote.url)
        return True

    def _fetch(self, with_tensors: Collection[int], here: int, last: int) -> None:
        """Tensors, then side files, then records, the last first: whole at once, as in ``send``."""
        self.rounds_here.mkdir(parents=True, exist_ok=True)
        new = {round: f"{file_stem(round)}.json" for round in range(here + 1, last + 1)}
        found = self.rounds_there.read_many(list(new.values()))
        if gone := set(new.values()) - found.keys():
            raise StateError(f"{self.rounds_there.url}/{min(gone)} went away while it was read.")
        records = {round: found[name] for round, name in new.items()}
        for round in sorted(r for r in with_tensors if r <= last):
            wanted = _checksum(records[round]) if round in records else self._checksum_here(round)
            self._fetch_tensors(round, wanted)
        self.fetch_side_files(self.side_files)
        for round in sorted(records, reverse=True):
            write_atomic(self.rounds_here / f"{file_stem(round)}.json", records[round])
        self.fetch_side_files((DONE,))

    def fetch_side_files(self, names: Iterable[str]) -> None:
        """Put the copy's side files in place, over those of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            content = self.remote.read(name)
            if content is not None:
                write_atomic(self.folder / name, content)

    def _fetch_tensors(self, round: int, wanted: str | None) -> None:
        """One round's tensors, unless they are here; what does not match its record stays away."""
        path = self.rounds_here / f"{file_stem(round)}.safetensors"
        if path.exists() and _sha256(path) == wanted:
            return
        temporary = write_synced(path, b"")
        try:
            if self.rounds_there.download(path.name, temporary) and _sha256(temporary) == wanted:
                temporary.replace(path)
                return
        finally:
            temporary.unlink(missing_ok=True)
        logger.warning("%s/%s is gone or damaged", self.rounds_there.url, path.name)

    def _last_whole_here(self) -> int:
        """The folder's last round, without one whose tensors are damaged."""
        records = RunStore(self.folder).records()
        if not records:
            return NOTHING
        path = self.rounds_here / records[-1].tensors_file
        is_whole = path.exists() and _sha256(path) == records[-1].sha256
        return records[-1].round if is_whole else records[-1].round - 1

    def _checksum_there(self, round: int) -> str | None:
        return _checksum(self.rounds_there.read(f"{file_stem(round)}.json"))


def _round_of(name: str) -> int:
    stem = name.partition(".")[0]
    return int(stem) - 1 if stem.isdecimal() else NOTHING


def _rounds_of(names: Iterable[str]) -> set[int]:
    """Rounds whose tensors are among files."""
    return {_round_of(n) for n in names if n.endswith(".safetensors")} - {NOTHING}


def _last(names: Collection[str]) -> int:
    """The last round before the first gap among files."""
    last = NOTHING
    while f"{file_stem(last + 1)}.json" in names:
        last += 1
    return last


def _checksum(record: bytes | None) -> str | None:
    """The SHA-256 of the tensors that a record names; None where it cannot be read."""
    try:
        return None if record is None else str(json.loads(record)["sha256"])
    except (ValueError, LookupError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
