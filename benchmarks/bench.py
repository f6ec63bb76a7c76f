"""What every part of a benchmark run is given, and the shape of what it gives back.

What belongs here: the run's scratch folder, its clients, a Markdown table. What does not: parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.clients import Client


@dataclass
class Bench:
    """One benchmark run.

    Attributes:
        scratch: a folder that is removed afterwards.
        floor: the bare loop, or None where it cannot be installed.
        ours: our client.
        peers: the others that can be installed.
        missing: peers that cannot, and why.
        quick: small counts, to see that everything works.
        say: reports progress.
    """

    scratch: Path
    floor: Client | None
    ours: Client
    peers: Sequence[Client]
    missing: dict[str, str]
    quick: bool
    say: Callable[[str], None]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def folder(self, name: str) -> Path:
        """A new folder."""
        folder = self.scratch / f"{name}-{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder

    def count(self, whole: int, quick: int) -> int:
        """A count, or the small one."""
        return quick if self.quick else whole


@dataclass(frozen=True)
class Part:
    """What a part found: its heading, what was done in plain words, and tables as Markdown."""

    heading: str
    lines: list[str]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, with an empty line after it."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def notes(failures: dict[str, str]) -> list[str]:
    """Lines about clients that failed."""
    return [*(f"- {why}" for why in failures.values()), ""] if failures else []
