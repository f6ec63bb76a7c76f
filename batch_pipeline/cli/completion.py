"""`completion status`, `failed`, `reset`, `clear`, `export`: flashcards topic by topic.

What belongs here: the commands. What does not: what a topic's state is, and how it is changed
(workloads/flashcards/completion_status.py over the ledger, the one truth).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, cut, grid, iso, moment, usd
from batch_pipeline.errors import UsageError
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from batch_pipeline.settings import Realm
    from batch_pipeline.workloads.flashcards.completion_status import TopicStatus

app = typer.Typer(
    help="Flashcards topic by topic, over all batches: what is completed, what failed.",
    no_args_is_help=True,
)

_COMPLETED = "completed"
_NOT_COMPLETED = ("failed", "blocked")
_SHOWN = 200
_NEAR = 3

Topics = Annotated[
    list[str],
    typer.Option("--topic", metavar="PATH", help="A topic by its path; give it again for several."),
]


@app.callback()
def _group() -> None:
    """Of each topic its newest batch counts; batches of `try` do not."""


@dataclass
class _Sum:
    """What some topics come to."""

    by_status: dict[str, int] = field(default_factory=dict)
    started_at: float | None = None
    updated_at: float | None = None
    cards: int = 0
    cost_usd: float = 0.0

    @classmethod
    def of(cls, topics: Iterable[TopicStatus]) -> _Sum:
        found = cls()
        for one in topics:
            found.by_status[one.status] = found.by_status.get(one.status, 0) + 1
            found.cards += one.flashcard_count
            found.cost_usd += one.cost_usd
            for at in (one.started_at, one.completed_at):
                if at is not None:
                    found.started_at = min(at, found.started_at or at)
                    found.updated_at = max(at, found.updated_at or at)
        return found

    @property
    def total(self) -> int:
        return sum(self.by_status.values())

    def count(self, status: str) -> int:
        return self.by_status.get(status, 0)


@app.command("status")
def status(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """Count topics by how they ended, with cards and cost."""
    from batch_pipeline.workloads.flashcards.completion_status import read_completion

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger:
        found = _Sum.of(read_completion(ledger))
    voice.realm_notice(realm)
    voice.emit(
        {
            "simulated": realm == "simulated",
            "topics": found.total,
            "completed": found.count(_COMPLETED),
            "failed": found.count("failed"),
            "blocked": found.count("blocked"),
            "skipped": found.count("skipped"),
            "remaining": found.count("pending"),
            "flashcards": found.cards,
            "cost_usd": round(found.cost_usd, 9),
            "started_at": iso(found.started_at),
            "updated_at": iso(found.updated_at),
        }
    )
    if not found.total:
        voice.out.print("No topic yet: `batch-pipeline run flashcards --input TOPICS` makes some.")
        return OK
    table = grid("what", "figure", right=("figure",))
    table.show_header = False
    for label, value in _lines(found):
        table.add_row(label, value)
    voice.out.print(table)
    if any(found.count(kind) for kind in _NOT_COMPLETED):
        voice.out.print("`batch-pipeline completion failed` says which, why, and what to do.")
    return OK


def _lines(found: _Sum) -> Iterator[tuple[str, str]]:
    yield "Started (UTC)", moment(found.started_at) or "not yet"
    yield "Last updated (UTC)", moment(found.updated_at) or "not yet"
    yield "Topics", f"{found.total:,}"
    share = f" ({100 * found.count(_COMPLETED) / found.total:.1f} %)"
    yield "  completed", f"{found.count(_COMPLETED):,}{share}"
    for name in (*_NOT_COMPLETED, "skipped"):
        if found.count(name) or name == "failed":
            yield f"  {name}", f"{found.count(name):,}"
    yield "  remaining", f"{found.count('pending'):,}"
    yield "Flashcards", f"{found.cards:,}"
    yield "Cost", usd(found.cost_usd)


@app.command("failed")
def failed(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """List topics that failed or are blocked: which, why, and what to do."""
    from batch_pipeline.reports.advice import next_step
    from batch_pipeline.workloads.flashcards.completion_status import read_completion

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger:
        bad = [one for one in read_completion(ledger) if one.status in _NOT_COMPLETED]
    voice.realm_notice(realm)
    voice.emit(
        {
            "simulated": realm == "simulated",
            "topics": [
                {
                    "topic": one.topic_path,
                    "status": one.status,
                    "kind": one.error_kind,
                    "error": _why(one),
                    "batch": one.batch_id,
                    "row": one.number,
                    "cost_usd": round(one.cost_usd, 9),
                    "next_step": next_step(one.error_kind, one.batch_id, one.number),
                }
                for one in bad
            ],
        }
    )
    if not bad:
        voice.out.print("No topic has failed and none is blocked.")
        return OK
    from rich.markup import escape

    table = grid("Topic", "Batch", "Row", "Status", "Why", right=("Row",))
    shown = bad if verbose else bad[:_SHOWN]
    for one in shown:
        why = _why(one) if verbose else cut(_why(one), 200)
        table.add_row(
            escape(one.topic_path), one.batch_id, f"{one.number:,}", one.status, escape(why)
        )
    voice.out.print(table)
    if len(shown) < len(bad):
        voice.out.print(f"… and {len(bad) - len(shown):,} more: --verbose or --json has all.")
    groups: dict[tuple[str, str, str], list[TopicStatus]] = {}
    for one in bad:
        groups.setdefault((one.batch_id, one.status, one.error_kind), []).append(one)
    for (batch, ended, kind), those in groups.items():
        advice = next_step(kind, batch, those[0].number)
        voice.out.print(f"{len(those):,} {ended} in {batch} ({kind}): {advice}", markup=False)
    return OK


def _why(topic: TopicStatus) -> str:
    # The row is named beside it.
    return topic.error_message.removeprefix(f"Row {topic.number} ({topic.topic_path}): ")


@app.command("reset")
def reset(
    topic: Topics,
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Have topics made anew by the next run of their batches, and paid anew.

    What was spent stays on record.
    """
    from batch_pipeline.workloads.flashcards.completion_status import (
        ResetTopic,
        read_completion,
        reset_topics,
    )

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    voice.realm_notice(realm)
    done: list[ResetTopic] = []
    with ledger:
        chosen = _named(topic, read_completion(ledger))
        found = _Sum.of(chosen)
        sure = voice.confirm(
            f"Reset {plural(found.total, 'topic')} ({found.count(_COMPLETED):,} completed)? "
            f"{_paid_again(found, realm)}",
            yes=yes,
        )
        if sure:
            done = reset_topics(ledger, [one.topic_path for one in chosen])
    batches = sorted({one.batch_id for one in done})
    voice.emit(
        {
            **_document(realm, found),
            "reset": [
                {
                    "topic": one.topic_path,
                    "batch": one.batch_id,
                    "row": one.number,
                    "was": one.status,
                }
                for one in done
            ],
            "batches": batches,
        }
    )
    if done:
        count = len({one.topic_path for one in done})
        commands = ", ".join(f"`batch-pipeline retry {batch}`" for batch in batches)
        voice.note(f"{plural(count, 'topic')} {_are(count)} open again: {commands}.")
    else:
        voice.note("Nothing was reset." if not sure else "Nothing had to be reset.")
    return OK


@app.command("clear")
def clear(
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Have all topics made anew by the next runs of their batches, and paid anew.

    What was spent stays on record.
    """
    from batch_pipeline.workloads.flashcards import completion_status

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    voice.realm_notice(realm)
    rows, sure = 0, False
    with ledger:
        found = _Sum.of(completion_status.read_completion(ledger))
        if not found.total:
            voice.note(f"There is no topic in the {realm} realm.")
        elif sure := voice.confirm(
            f"Clear the completion of {plural(found.total, 'topic')} of the {realm} realm "
            f"({found.count(_COMPLETED):,} completed)? {_paid_again(found, realm)}",
            yes=yes,
        ):
            rows = completion_status.clear(ledger)
            voice.note(f"{rows:,} rows of {plural(found.total, 'topic')} are open again.")
        else:
            voice.note("Nothing was cleared.")
    voice.emit({**_document(realm, found), "cleared": sure, "rows_open_again": rows})
    return OK


@app.command("export")
def export(
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="A .db (SQLite) or a .csv file.")
    ],
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Write the state of every topic to a file: SQLite or CSV, by its ending."""
    from batch_pipeline.workloads.flashcards.completion_status import export_completion

    voice = Output(json, verbose)
    path = output.expanduser().resolve()
    realm, ledger = opt.open_ledger(simulate)
    with ledger:
        if path.exists() and not voice.confirm(f"{path} exists. Write it anew?", yes=yes):
            voice.note("Nothing was written.")
            return OK
        count = export_completion(ledger, path)
    voice.realm_notice(realm)
    voice.emit({"simulated": realm == "simulated", "topics": count, "file": str(path)})
    voice.out.print(
        f"{plural(count, 'topic')} were written to {path}.", markup=False, soft_wrap=True
    )
    return OK


def _named(paths: Sequence[str], topics: Iterable[TopicStatus]) -> list[TopicStatus]:
    """The topics of these paths; a path may also lead to the topic's file from anywhere.

    Raises:
        UsageError: there is no such topic.
    """
    import difflib

    known = {one.topic_path: one for one in topics}
    found: dict[str, TopicStatus] = {}
    for path in paths:
        parts = path.strip().replace("\\", "/").strip("/").split("/")
        tails = ("/".join(parts[at:]) for at in range(len(parts)))
        name = next((tail for tail in tails if tail in known), None)
        if name is None:
            near = difflib.get_close_matches("/".join(parts), known, n=_NEAR)
            raise UsageError(
                f"There is no topic {path!r}.",
                f"Did you mean {' or '.join(near)}?"
                if near
                else "`batch-pipeline completion export --output topics.csv` lists them all.",
            )
        found[name] = known[name]
    return list(found.values())


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _paid_again(found: _Sum, realm: Realm) -> str:
    paid = "would be paid again" if realm == "live" else "simulated, nothing is paid"
    return (
        f"The next run asks anew: last time that cost {usd(found.cost_usd)} ({paid}). The spend "
        "history is kept."
    )


def _document(realm: Realm, found: _Sum) -> dict[str, Any]:
    return {
        "simulated": realm == "simulated",
        "topics": found.total,
        "completed": found.count(_COMPLETED),
        "cost_usd": round(found.cost_usd, 9),
    }
