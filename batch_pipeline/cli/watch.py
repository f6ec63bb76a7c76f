"""`watch`: batches while runs go on, in whatever process; it only reads the ledger.

What belongs here: choosing batches, looking again and again, showing. What does not: SQL
(ledger/watching.py), starting or stopping anything.
"""

from __future__ import annotations

import json as json_
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import (
    OK,
    Output,
    cut,
    duration,
    grid,
    iso,
    usd,
    usd_of,
)
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.ledger.watching import EndedRow, WatchedBatch
    from batch_pipeline.settings import Realm, Settings

INTERVAL_S = 10.0

_COMMIT_S = 5.0
_MOST_TOLD = 20_000
_BAR_CELLS = 12
_SHOWN_EVENTS = 10
_EVENTS_IN_LINE = 5
_ARTICLES = "articles"
_JOB_WORDS = {"succeeded": "delivered", "failed": "aborted"}
_SYMBOLS = {"succeeded": "✓", "blocked": "⚠", "failed": "✗", "skipped": "-"}


def watch(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[BATCH|DIR]",
            help="One batch, or the folder that batches write to; default: all that run.",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")
    ] = INTERVAL_S,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when nothing is at work any more.")
    ] = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Watch batches while they run: rows, outcomes, calls, cost, waits, what has just ended.

    Works while runs go on in other processes. Ctrl-C ends the watching (and nothing else) with 0.
    With --json, each look is one JSON object on a line of its own.
    """
    from batch_pipeline.ledger.overview import REALMS
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings

    voice = Output(json, verbose)
    settings = load_settings()
    realms = REALMS if simulate is None else (settings.realm(simulate),)
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger(settings.ledger_url, realm)) for realm in realms]
        aim = _find_aim(settings, ledgers, what)
        if aim.note:
            voice.note(aim.note)
        watcher = _Watcher(settings, ledgers, aim, interval)
        try:
            _loop(voice, watcher, interval, once=once, until_done=until_done)
        except KeyboardInterrupt:
            # Stopping to look is no failure: the runs go on.
            return OK
    return OK


@dataclass(frozen=True)
class _Aim:
    """What to watch.

    Attributes:
        batches: (realm, batch id) of these; None is all that run.
        always: they are shown whether they run or not.
        note: what to say about the choice.
    """

    batches: frozenset[tuple[Realm, str]] | None = None
    always: bool = False
    note: str = ""


def _find_aim(settings: Settings, ledgers: list[Ledger], what: str | None) -> _Aim:
    from batch_pipeline.ledger.batches import find_batch, list_batches
    from batch_pipeline.workloads.runner import batch_folder

    if what is None:
        return _Aim()
    first = settings.realm()
    # An id may stand in both realms: the environment's comes first, as in other reads.
    for ledger in sorted(ledgers, key=lambda one: one.realm != first):
        with ledger.read() as connection:
            if find_batch(connection, ledger.realm, what) is not None:
                return _Aim(frozenset({(ledger.realm, what)}), always=True)
    if "/" not in what and not Path(what).is_dir():
        raise UsageError(
            f"There is no batch {what!r}, and no folder of that name.",
            "`batch-pipeline status` lists batches; without a name, all that run are watched.",
        )
    folder = Path(what).expanduser().resolve()
    found: dict[tuple[Realm, str], Path] = {}
    for ledger in ledgers:
        with ledger.read() as connection:
            for batch in list_batches(connection, ledger.realm):
                found[ledger.realm, batch.batch_id] = batch_folder(
                    settings, ledger.realm, batch.workload, batch.batch_id
                )
    below = frozenset(key for key, path in found.items() if folder in (path, *path.parents))
    exact = frozenset(key for key, path in found.items() if path == folder)
    if exact:
        return _Aim(exact, always=True)
    if below:
        return _Aim(below)
    return _Aim(note=f"No batch is known to write to {what}: all batches that run are watched.")


@dataclass
class _Look:
    """What one look saw."""

    at: float
    batches: list[WatchedBatch]
    at_work: bool
    reports: dict[tuple[Realm, str], Path] = field(default_factory=dict)


class _Watcher:
    """Looks at the ledgers; remembers what ran, so that its end is seen as well.

    A row bears the time at which its transaction began and is there once that is committed, which
    may be after the next look: each look goes some seconds further back than the last one, and
    leaves out what was told.

    Args:
        settings: the installation.
        ledgers: of each realm to look at.
        aim: what to watch.
        interval: how far back the first look goes for rows that ended (seconds).
    """

    def __init__(
        self, settings: Settings, ledgers: list[Ledger], aim: _Aim, interval: float
    ) -> None:
        self._settings = settings
        self._ledgers = ledgers
        self._aim = aim
        self._since = {ledger.realm: ledger.now() - interval for ledger in ledgers}
        self._seen: dict[tuple[Realm, str], None] = {}
        self._told: dict[tuple[Realm, str, int, float], None] = {}

    def look(self) -> _Look:
        """The batches as they stand."""
        from batch_pipeline.ledger.watching import look, running_batches
        from batch_pipeline.workloads.runner import batch_folder

        seen = _Look(time.time(), [], at_work=False)
        for ledger in self._ledgers:
            realm = ledger.realm
            with ledger.read() as connection:
                now = ledger.now(connection)
                running = [
                    batch_id
                    for batch_id in running_batches(connection, now, realm)
                    if self._aim.batches is None or (realm, batch_id) in self._aim.batches
                ]
                if self._aim.always and self._aim.batches is not None:
                    chosen = [batch_id for of, batch_id in self._aim.batches if of == realm]
                else:
                    self._seen.update(dict.fromkeys((realm, batch_id) for batch_id in running))
                    chosen = [batch_id for of, batch_id in self._seen if of == realm]
                found = look(connection, now, realm, chosen, since=self._since[realm])
                seen.batches += map(self._untold, found)
                seen.at_work |= bool(running)
                self._since[realm] = max(self._since[realm], now - _COMMIT_S)
        for batch in seen.batches:
            folder = batch_folder(self._settings, batch.realm, batch.workload, batch.batch_id)
            if newest := _newest_report(folder):
                seen.reports[batch.realm, batch.batch_id] = newest
        return seen

    def _untold(self, batch: WatchedBatch) -> WatchedBatch:
        """A batch without the rows that an earlier look has told of."""
        new = []
        for row in batch.ended:
            key = (batch.realm, batch.batch_id, row.number, row.at)
            if key not in self._told:
                self._told[key] = None
                new.append(row)
        while len(self._told) > _MOST_TOLD:
            self._told.pop(next(iter(self._told)))
        told = len(batch.ended) - len(new)
        return replace(batch, ended=new, ended_count=max(len(new), batch.ended_count - told))


def _newest_report(folder: Path) -> Path | None:
    """The newest report in a batch's folder; that of the workload itself comes first."""
    stamped = sorted(folder.glob("batch_report_*.json"))
    plain = folder / "batch_report.json"
    return stamped[-1] if stamped else plain if plain.is_file() else None


def _loop(
    voice: Output, watcher: _Watcher, interval: float, *, once: bool, until_done: bool
) -> None:
    """Look and show until there is nothing more to wait for."""

    def looks() -> Iterator[_Look]:
        while True:
            seen = watcher.look()
            yield seen
            if once or (until_done and not seen.at_work):
                return
            time.sleep(interval)

    if voice.json:
        for seen in looks():
            sys.stdout.write(json_.dumps(_document(seen), ensure_ascii=False) + "\n")
            sys.stdout.flush()
    elif once or voice.out.is_terminal:
        from rich.live import Live

        if once:
            for seen in looks():
                voice.out.print(_face(seen))
            return
        with Live(console=voice.out, auto_refresh=False) as live:
            for seen in looks():
                live.update(_face(seen), refresh=True)
    else:
        for seen in looks():
            for line in _lines(seen):
                voice.out.print(line, markup=False, soft_wrap=True)
            voice.out.file.flush()


# ---- faces ---------------------------------------------------------------------------------------


def _face(seen: _Look) -> RenderableType:
    """A table of the batches, then what has just ended, then where the reports are."""
    from rich.console import Group
    from rich.text import Text

    stamp = _clock(seen.at)
    if not seen.batches:
        return Text(f"{stamp} UTC: no batch runs. `batch-pipeline status` lists all of them.")
    table = grid("Batch and state", "Rows", "Ended", "Calls", "Left", title=f"{stamp} UTC")
    for batch in seen.batches:
        table.add_row(
            Text(f"{batch.batch_id}\n{batch.workload}\n{_state(batch)}"),
            Text(f"{_bar(batch)}\n{batch.done:,}/{batch.rows:,}\n{_pace(batch)}"),
            Text("\n".join(_outcomes(batch)) or "none yet"),
            Text(
                f"{batch.in_flight:,} in flight\n{batch.attempts:,} sent\n"
                f"waited {duration(batch.rate_wait_s)}"
            ),
            Text(f"{_left(batch)}\n{_money(batch)}"),
        )
    parts: list[RenderableType] = [table]
    events = [(batch, row) for batch in seen.batches for row in batch.ended]
    events.sort(key=lambda event: -event[1].at)
    for batch, row in events[:_SHOWN_EVENTS]:
        why = f": {cut(row.error, 60)}" if row.error else ""
        symbol = _SYMBOLS.get(row.outcome.value, "·")
        parts.append(
            Text(f"{_clock(row.at)} {symbol} {_name(batch, row)} {_word(batch, row)}{why}")
        )
    more = sum(batch.ended_count for batch in seen.batches) - len(events[:_SHOWN_EVENTS])
    if more > 0:
        parts.append(Text(f"… and {more:,} more since the last look"))
    parts += [Text(f"Report: {path}") for path in seen.reports.values()]
    return Group(*parts)


def _lines(seen: _Look) -> Iterator[str]:
    """One line for each batch, for logs and pipes."""
    stamp = _clock(seen.at)
    if not seen.batches:
        yield f"{stamp} no batch runs"
    for batch in seen.batches:
        parts = [
            f"{batch.batch_id} ({batch.workload}, {_state(batch)})",
            f"{batch.done:,}/{batch.rows:,} rows",
            *([", ".join(_outcomes(batch))] if batch.done else []),
            f"{batch.in_flight:,} in flight",
            f"{batch.attempts:,} calls",
            _money(batch),
            f"waited {duration(batch.rate_wait_s)}",
        ]
        if batch.per_minute is not None:
            parts.append(_pace(batch))
        if batch.left_s is not None:
            parts.append(f"{duration(batch.left_s)} left")
        if batch.ended:
            shown = batch.ended[:_EVENTS_IN_LINE]
            named = ", ".join(f"{_name(batch, row)} {_word(batch, row)}" for row in shown)
            more = batch.ended_count - len(shown)
            parts.append(f"new: {named}" + (f" and {more:,} more" if more > 0 else ""))
        yield f"{stamp} {' · '.join(parts)}"


def _document(seen: _Look) -> dict[str, Any]:
    return {
        "at": iso(seen.at),
        "at_work": seen.at_work,
        "batches": [
            {
                "batch": batch.batch_id,
                "workload": batch.workload,
                "simulated": batch.realm == "simulated",
                "state": batch.run.status if batch.run else None,
                "run_id": batch.run.run_id if batch.run else None,
                "rows": batch.rows,
                "done": batch.done,
                "outcomes": {outcome.value: n for outcome, n in batch.outcomes.items()},
                "in_flight": batch.in_flight,
                "attempts": batch.attempts,
                "cost_usd": usd_of(batch.cost_nano),
                "lost_cost_usd": usd_of(batch.lost_nano),
                "rate_wait_s": batch.rate_wait_s,
                "rows_per_minute": batch.per_minute,
                "left_s": batch.left_s,
                "ended": [
                    {
                        "name": _name(batch, row),
                        "row": row.number,
                        "item_id": row.item_id,
                        "outcome": row.outcome.value,
                        "error_kind": row.error_kind or None,
                        "error": row.error or None,
                        "at": iso(row.at),
                    }
                    for row in batch.ended
                ],
                "ended_count": batch.ended_count,
                "report": str(report)
                if (report := seen.reports.get((batch.realm, batch.batch_id)))
                else None,
            }
            for batch in seen.batches
        ],
    }


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))


def _state(batch: WatchedBatch) -> str:
    status = "not started" if batch.run is None else batch.run.status
    if batch.in_jobs and not batch.running:
        status = "in provider jobs"
    return f"{status}, SIMULATED" if batch.realm == "simulated" else status


def _bar(batch: WatchedBatch) -> str:
    full = _BAR_CELLS * batch.done // batch.rows if batch.rows else 0
    return "█" * full + "░" * (_BAR_CELLS - full)


def _pace(batch: WatchedBatch) -> str:
    return "" if batch.per_minute is None else f"{batch.per_minute:,.1f} rows/min"


def _left(batch: WatchedBatch) -> str:
    if batch.done == batch.rows:
        return "done"
    return "not known" if batch.left_s is None else duration(batch.left_s)


def _money(batch: WatchedBatch) -> str:
    lost = f" + up to {usd(usd_of(batch.lost_nano))} lost" if batch.lost_nano else ""
    return f"{usd(usd_of(batch.cost_nano))}{lost}"


def _outcomes(batch: WatchedBatch) -> list[str]:
    return [
        f"{count:,} {_words(batch).get(outcome.value, outcome.value)}"
        for outcome, count in batch.outcomes.items()
        if count and outcome.value != "pending"
    ]


def _words(batch: WatchedBatch) -> dict[str, str]:
    """Articles have words of their own for how jobs end."""
    return _JOB_WORDS if batch.workload == _ARTICLES else {}


def _word(batch: WatchedBatch, row: EndedRow) -> str:
    return _words(batch).get(row.outcome.value, row.outcome.value)


def _name(batch: WatchedBatch, row: EndedRow) -> str:
    """What files and reports call the row."""
    if batch.workload == _ARTICLES:
        from batch_pipeline.workloads.articles.record import job_id

        return job_id(batch.batch_id, batch.created_at, row.item_id)
    return f"row {row.number:,} ({cut(row.item_id, 40)})"
