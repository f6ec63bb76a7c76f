"""How the command line speaks: what goes to stdout, what to stderr, and how figures are written.

What belongs here: consoles, JSON, number formats, questions. What does not: any command's content.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batch_pipeline.cli.plain import make_plain
from batch_pipeline.errors import UsageError
from batch_pipeline.settings import Realm

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OK = 0
SOME_FAILED = 1
ONLY_BLOCKED = 2
LIMIT_REACHED = 3
"""A budget or a daily limit: what is left waits for more money or another day."""
USAGE = 64
INTERRUPTED = 130

_ENDED_WELL = frozenset({"done", "exported", "submitted"})

SIMULATED_NOTICE = "SIMULATED: no provider was called and nothing was paid."

_NANO = 1_000_000_000


@dataclass(frozen=True)
class Output:
    """One command's voice.

    Attributes:
        json: one JSON object on stdout, everything else on stderr.
        verbose: tracebacks, and more detail where a command has some.
    """

    json: bool = False
    verbose: bool = False

    @cached_property
    def out(self) -> Console:
        """Where results go; nothing is shown here with `--json`."""
        from rich.console import Console

        make_plain(sys.stdout)
        # A pipe or a file has no width: tables keep their columns there.
        width = None if sys.stdout.isatty() else 160
        return Console(quiet=self.json, highlight=False, width=width)

    @cached_property
    def err(self) -> Console:
        """Where messages, progress and questions go."""
        from rich.console import Console

        make_plain(sys.stderr)
        width = None if sys.stderr.isatty() else 160
        return Console(stderr=True, highlight=False, soft_wrap=True, width=width)

    def note(self, text: str) -> None:
        """A message on stderr."""
        self.err.print(text, markup=False)

    def emit(self, document: dict[str, Any]) -> None:
        """The command's one JSON object, where it is wanted."""
        if self.json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")

    def realm_notice(self, realm: Realm) -> None:
        """Say so when what follows is simulated."""
        if realm == "simulated":
            self.note(SIMULATED_NOTICE)

    def confirm(self, question: str, *, yes: bool, option: str = "--yes") -> bool:
        """Ask a person; `yes` answers beforehand.

        Raises:
            UsageError: there is nobody to ask.
        """
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError(question, f"Nobody can be asked here: add {option} to go ahead.")
        self.err.print(f"{question} \\[y/N] ", end="")
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def grid(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """A table with these column heads; those in `right` hold figures."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            # Names that are copied into the next command stay in one piece.
            no_wrap=column in ("Batch", "Chunk", "Call"),
        )
    return table


def usd(amount: float | None) -> str:
    """Money as a person writes it: `$12.34`, `$0.0093`; `unknown` for a model without a price."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    return (
        f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}" if amount >= 0.0001 else "<$0.0001"
    )


def usd_of(nano: float | None) -> float:
    """USD of nano-USD."""
    return (nano or 0) / _NANO


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"


def moment(at: float | None) -> str:
    """A ledger time as `2026-11-21 14:00:05` UTC; empty for none."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str | None:
    """A ledger time for JSON: `2026-11-21T14:00:05Z`."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def share(part: int, whole: int) -> str:
    """`75/150 (50.0%)`."""
    percent = f" ({100 * part / whole:.1f}%)" if whole else ""
    return f"{part:,}/{whole:,}{percent}"


def cut(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def exit_code(status: str, outcomes: dict[str, int]) -> int:
    """130 before 3 before 1 before 2.

    Skipped rows, and those that --limit left pending or provider jobs still ask about, are no
    failure.
    """
    if status == "interrupted":
        return INTERRUPTED
    if status in ("budget", "daily_limit"):
        return LIMIT_REACHED
    if status not in _ENDED_WELL or outcomes.get("failed"):
        return SOME_FAILED
    return ONLY_BLOCKED if outcomes.get("blocked") else OK
