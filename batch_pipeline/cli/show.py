"""`show`: everything the ledger has on one row, the exact request and reply included.

What belongs here: naming the row and laying it out. What does not: SQL (ledger/overview.py), what
a workload makes of a row (workloads/reviews.py). Stored requests hold bodies only, so no key can be
among them.
"""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, cut, duration, grid, iso, moment, usd, usd_of
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_pipeline.ledger.batches import Item
    from batch_pipeline.ledger.documents import Document
    from batch_pipeline.ledger.overview import AttemptLine
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.base import Workload
    from batch_pipeline.workloads.reviews import Case


def show(
    item: Annotated[
        str, typer.Argument(metavar="ITEM", help="An item id, or BATCH:ROW such as jobs-3f2a:17.")
    ],
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Show one row: its outcome, every attempt with cost, the exact request, the reply, the result.

    Prints the bodies of the attempt that decided the row; with --verbose those of all its attempts.
    """
    from batch_pipeline.ledger.batches import find_batch
    from batch_pipeline.ledger.documents import documents_of
    from batch_pipeline.ledger.overview import attempts_of
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.results import outputs_of
    from batch_pipeline.workloads.reviews import read_case
    from batch_pipeline.workloads.runner import batch_folder

    voice = Output(json, verbose)
    settings = load_settings()
    ledger, batch_id, found = _find(settings, item, simulate)
    with ledger:
        with ledger.read() as connection:
            lines = attempts_of(connection, ledger.realm, batch_id, found)
            batch = find_batch(connection, ledger.realm, batch_id)
        assert batch is not None, "its row is there"
        result = outputs_of(ledger, batch, _workload(batch.workload), [found]).get(found.ordinal)
        documents = list(documents_of(ledger, batch_id, found.ordinal).values())
        documents.sort(key=lambda document: document.made_at)
        folder = batch_folder(settings, ledger.realm, batch.workload, batch_id)
        case = read_case(ledger, batch, found, folder)
    voice.realm_notice(ledger.realm)
    voice.emit(
        {
            "batch": batch_id,
            "row": found.number,
            "item_id": found.item_id,
            "name": case.name,
            "simulated": ledger.realm == "simulated",
            "outcome": found.outcome.value,
            "cached": bool(found.cached),
            "model": found.model,
            "error": found.error,
            "cost_usd": usd_of(found.cost_nano),
            "input": found.row,
            "result": result,
            "attempts": [_document(line) for line in lines],
            "documents": [_kept_document(document) for document in documents],
            "files": [str(path) for path in case.files],
        }
    )
    if not json:
        _print(voice, case, lines, documents, result)
    return OK


def _workload(name: str) -> Workload | None:
    """The workload; None where it is gone."""
    from batch_pipeline.workloads.base import load_workload

    try:
        return load_workload(name)
    except UsageError:
        return None


def _find(settings: Settings, name: str, simulate: bool | None) -> tuple[Ledger, str, Item]:
    """Ledger, batch id and item that `name` means; the caller closes the ledger."""
    from batch_pipeline.ledger.batches import find_items
    from batch_pipeline.ledger.overview import REALMS, find_realm, item_by_number
    from batch_pipeline.ledger.store import Ledger

    batch_id, colon, number = name.rpartition(":")
    if colon and number.isdigit():
        ledger, _ = find_realm(settings, batch_id, simulate)
        with ledger.read() as connection:
            item_id = item_by_number(connection, ledger.realm, batch_id, int(number))
            items = find_items(connection, ledger.realm, item_id) if item_id is not None else []
        for of_batch, item in items:
            if of_batch == batch_id and item.number == int(number):
                return ledger, batch_id, item
        ledger.close()
        raise UsageError(
            f"Batch {batch_id} has no row {number}.", "Rows count from 1, without the header."
        )
    first = settings.realm(simulate)
    wanted = [first] if simulate is not None else [first, *(r for r in REALMS if r != first)]
    for realm in wanted:
        ledger = Ledger(settings.ledger_url, realm)
        with ledger.read() as connection:
            items = find_items(connection, realm, name)
        if items:
            return ledger, *items[0]
        ledger.close()
    raise UsageError(
        f"There is no item {name!r}.",
        "Name it by its item id, or as BATCH:ROW, for example jobs:17.",
    )


def _print(
    voice: Output,
    case: Case,
    lines: list[AttemptLine],
    documents: list[Document],
    result: Mapping[str, Any] | None,
) -> None:
    item = case.item

    def say(text: str, style: str | None = None) -> None:
        voice.out.print(text, markup=False, soft_wrap=True, style=style)

    cached = ", from the cache" if item.cached else ""
    named = f" · {case.name}" if case.name else ""
    say(f"Row {item.number:,} of batch {case.batch.batch_id} · item {item.item_id}{named}", "bold")
    say(f"Outcome: {item.outcome.value}{cached} · cost {usd(usd_of(item.cost_nano))}")
    if item.error:
        say(f"Error: {item.error}", "red")
    _section(voice, "Row")
    for name, value in item.row.items():
        say(f"{name}: {value}")
    if not lines:
        _section(voice, "Attempts")
        say("None: no call asked about this row.")
    else:
        _attempts(voice, lines, steps=bool(documents))
    if documents:
        _documents(voice, documents)
        _section(voice, "Made of")
        for label, text in case.facts.summary:
            say(f"{label}: {text if voice.verbose else cut(text, 400)}")
        _section(voice, "Issues")
        for one in case.facts.why:
            say(f"{' '.join(filter(None, (one.severity, one.category)))}: {one.message}")
        if not case.facts.why:
            say("None.")
    decided = [line for line in lines if line.attempt_id == item.attempt_id] or lines[-1:]
    for line in lines if voice.verbose else decided:
        place = "" if line.place is None else f'; this row is id "{line.place}" in it'
        _section(voice, f"Request of {moment(line.sent_at)} ({line.item_count} rows{place})")
        say(_pretty(line.request))
        _section(voice, f"Reply (HTTP {line.status})" if line.status else "Reply")
        say(_pretty(line.reply) if line.reply is not None else "None came back.")
    if case.facts.text:
        _section(voice, "Written")
        say(case.facts.text)
    elif not documents:
        _section(voice, "Result")
        say("None." if result is None else json_.dumps(result, ensure_ascii=False, indent=2))
    if case.files:
        _section(voice, "Files")
        for path in case.files:
            say(str(path))


def _documents(voice: Output, documents: list[Document]) -> None:
    from rich.markup import escape

    table = grid("Made (UTC)", "Step", "The row", "Size", "Edited by", title="Documents",
                 right=("Size",))  # fmt: skip
    for document in documents:
        ended = document.outcome.value
        table.add_row(
            moment(document.made_at),
            document.step,
            "went on" if ended == "succeeded" else f"ended there: {ended}",
            f"{_size(document):,} bytes",
            escape(document.editor),
        )
    voice.out.print()
    voice.out.print(table)
    voice.out.print("What local steps gave; --json has it whole.")


def _attempts(voice: Output, lines: list[AttemptLine], *, steps: bool) -> None:
    figures = ("Rows", "HTTP", "Input", "Output", "Cost", "Latency")
    steps = steps or len({line.step for line in lines}) > 1
    table = grid("Sent (UTC)", *(["Step"] if steps else []), "Why", "Model", "State", *figures,
                 title="Attempts", right=figures)  # fmt: skip
    for line in lines:
        state = f"{line.state}: {line.error_kind}" if line.error_kind else line.state
        table.add_row(
            moment(line.sent_at),
            *([line.step] if steps else []),
            line.reason,
            line.model,
            state,
            str(line.item_count),
            str(line.status or ""),
            f"{line.input_tokens:,}",
            f"{line.output_tokens:,}",
            usd(usd_of(line.cost_nano)),
            "" if line.latency_s is None else duration(line.latency_s),
        )
    voice.out.print()
    voice.out.print(table)
    voice.out.print("Tokens and cost are of the whole request; a row bears its equal share.")
    for line in lines:
        if line.error:
            voice.out.print(f"{moment(line.sent_at)}: {line.error}", markup=False)


def _section(voice: Output, title: str) -> None:
    voice.out.print(f"\n{title}", markup=False, style="bold")


def _pretty(body: bytes) -> str:
    text = body.decode("utf-8", errors="replace")
    try:
        return json_.dumps(json_.loads(text), ensure_ascii=False, indent=2)
    except ValueError:
        return text


def _parsed(body: bytes | None) -> Any:
    """A body as JSON where it is JSON, else as text."""
    if body is None:
        return None
    text = body.decode("utf-8", errors="replace")
    try:
        return json_.loads(text)
    except ValueError:
        return text


def _size(document: Document) -> int:
    """Bytes of a document as JSON."""
    return len(json_.dumps(document.content, ensure_ascii=False).encode())


def _kept_document(document: Document) -> dict[str, Any]:
    return {
        "step": document.step,
        "outcome": document.outcome.value,
        "made_at": iso(document.made_at),
        "run_id": document.run_id,
        "editor": document.editor,
        "bytes": _size(document),
        "content": document.content,
    }


def _document(line: AttemptLine) -> dict[str, Any]:
    return {
        "attempt_id": line.attempt_id,
        "batch": line.batch_id,
        "run_id": line.run_id,
        "step": line.step,
        "lane": line.lane,
        "sent_at": iso(line.sent_at),
        "reason": line.reason,
        "model": line.model,
        "answered_model": line.answered_model,
        "key_id": line.key_id,
        "state": line.state,
        "status": line.status,
        "error_kind": line.error_kind,
        "error": line.error,
        "rows": line.item_count,
        "id_in_request": None if line.place is None else str(line.place),
        "input_tokens": line.input_tokens,
        "cached_input_tokens": line.cached_input_tokens,
        "output_tokens": line.output_tokens,
        "cost_usd": usd_of(line.cost_nano),
        "latency_s": line.latency_s,
        "rate_wait_s": line.rate_wait_s,
        "request": _parsed(line.request),
        "reply": _parsed(line.reply),
    }
