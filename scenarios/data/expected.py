"""What a whole copy of a published data set holds, and how a copy that is not whole is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_core.errors import DataError
from scenarios.data.draft import NUM_LISTED
from scenarios.data.folder import Entry

MAX_FAULTS = 20


@dataclass(frozen=True)
class Expected:
    """Counts that loading checks.

    ``rows``: rows of each part (a split, a domain, or both as "clipart train"). ``totals``: the
    allowed sums over all parts where several editions were published.
    """

    num_classes: int
    rows: Mapping[str, int] = field(default_factory=dict)
    totals: tuple[int, ...] = ()
    num_clients: int | None = None

    def faults(self, entries: Sequence[Entry], parts: Iterable[str]) -> Iterator[str]:
        """Every count that differs; ``parts`` names the part of each entry."""
        found = Counter(parts)
        num_classes = len({entry.label for entry in entries})
        if num_classes != self.num_classes:
            yield f"{num_classes} classes, but {self.num_classes} are expected."
        for part, count in self.rows.items():
            if found[part] != count:
                yield f"{found[part]:,} rows of {part}, but {count:,} are expected."
        if self.totals and len(entries) not in self.totals:
            allowed = " or ".join(f"{total:,}" for total in self.totals)
            yield f"{len(entries):,} rows in all, but {allowed} are expected."
        num_clients = len({entry.client for entry in entries if entry.client is not None})
        if self.num_clients is not None and num_clients != self.num_clients:
            yield f"{num_clients:,} clients, but {self.num_clients:,} are expected."


class Faults(list[str]):
    """Everything that is wrong with one copy of a published data set."""

    def __init__(self, name: str, root: Path) -> None:
        super().__init__()
        self.name, self.root = name, root

    def raise_if_any(self) -> None:
        """DataError that lists all of them."""
        if self:
            found = list(dict.fromkeys(self))
            listed = "\n  ".join(found[:MAX_FAULTS])
            if len(found) > MAX_FAULTS:
                listed += f"\n  and {len(found) - MAX_FAULTS:,} more."
            raise DataError(
                f"{self.name} in {self.root} is not as published:\n  {listed}\n"
                f"docs/data.md says under `{self.name}` how the folder looks and where each file "
                "comes from."
            )

    def need(self, *paths: Path) -> bool:
        """Whether all of these files and folders are there; the others are noted."""
        missing = [path for path in paths if not path.exists()]
        self.extend(f"{path} is missing." for path in missing)
        return not missing

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file that hold something; a file that is no UTF-8 text is noted."""
        try:
            held = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.append(f"{path} cannot be read: {error}.")
            return []
        return [line.strip() for line in held.splitlines() if line.strip()]

    def need_images(self, root: Path, entries: Sequence[Entry]) -> None:
        """Note the images that are named but not there."""
        missing = [entry.file for entry in entries if not (root / entry.file).is_file()]
        if missing:
            self.append(
                f"{len(missing):,} of {len(entries):,} images are missing: "
                f"{', '.join(missing[:NUM_LISTED])}."
            )


def find_root(place: Path, folders: Sequence[str]) -> Path:
    """The data set's own folder: ``place`` itself, or one of ``folders`` in it."""
    place = place.expanduser().resolve()
    return next((place / name for name in folders if (place / name).is_dir()), place)
