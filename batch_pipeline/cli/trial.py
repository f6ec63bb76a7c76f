"""`try`: a prompt loop. A few rows now, side by side for two prompts or models, with their cost.

What belongs here: variants and their comparison. What does not: asking (the engine, without
Dagster: nothing of a trial is worth a partition). Answers land in the cache, so what was tried is
not paid again by a run with the same prompt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import (
    INTERRUPTED,
    OK,
    ONLY_BLOCKED,
    SOME_FAILED,
    Output,
    cut,
    duration,
    grid,
    usd,
    usd_of,
)
from batch_pipeline.cli.read import TRIAL_PREFIX
from batch_pipeline.errors import BatchPipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_pipeline.engine.job import Job, RunDone
    from batch_pipeline.ledger.batches import Batch, Item, NewItem
    from batch_pipeline.ledger.overview import AttemptLine
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Realm, Settings
    from batch_pipeline.workloads.base import Workload
    from batch_pipeline.workloads.config import WorkloadConfig

_MOST_CELL_CHARS = 600
_PROMPT_HELP = "File with a system prompt to try instead of the workload's prompt.md."


@dataclass(frozen=True)
class _Answer:
    """What one variant gave for one row. Cost is the row's share of the calls that answered it."""

    number: int
    outcome: str
    output: Mapping[str, Any] | None
    shown: Mapping[str, Any] | None
    error: str
    cost_usd: float
    latency_s: float | None
    cached: bool


@dataclass(frozen=True)
class _Variant:
    """One prompt and route, and what it gave."""

    name: str
    prompt: str
    route: str
    batch_id: str
    answers: list[_Answer]
    status: str
    message: str
    paid_now_usd: float
    requests: int


def try_rows(
    workload: opt.Workload,
    input_: opt.Input = None,
    roadmap: opt.Roadmap = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, max=100, help="How many rows, from the top.")
    ] = 5,
    prompt: Annotated[Path | None, typer.Option("--prompt", help=_PROMPT_HELP)] = None,
    prompt_b: Annotated[
        Path | None, typer.Option("--prompt-b", help="A second prompt, shown beside the first.")
    ] = None,
    route: opt.Route = None,
    route_b: Annotated[
        str | None, typer.Option("--route-b", help="A second route, shown beside the first.")
    ] = None,
    simulate: opt.Simulate = None,
    encoding: opt.Encoding = None,
    delimiter: opt.Delimiter = None,
    category: opt.Category = None,
    domain: opt.Domain = None,
    subdomain: opt.Subdomain = None,
    worksheet: opt.Worksheet = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Ask about a few rows now, and show two prompts or models side by side with their cost."""
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.config import load_workload_config
    from batch_pipeline.workloads.runner import (
        new_items,
        open_input,
        open_ledger,
        resolve_route,
        simulator_url,
    )

    voice = Output(json, verbose)
    settings = load_settings()
    realm = settings.realm(simulate)
    config = load_workload_config(workload)
    source = opt.choose_source(config, input_, roadmap, None)
    assert source is not None
    first = _variant(config, prompt, route)
    configs = {"A": first}
    if prompt_b or route_b:
        configs["B"] = _variant(first, prompt_b, route_b)
    if realm == "live":
        for variant in configs.values():
            resolve_route(variant, None)
    reading = opt.reading_options(
        encoding,
        delimiter,
        category=category,
        domain=domain,
        subdomain=subdomain,
        worksheet=worksheet,
    )
    with open_ledger(settings, realm) as ledger:
        locate = partial(simulator_url, settings, realm)
        table = open_input(config.domain, source, reading, ledger, locate)
        items = list(islice(new_items(config.domain, table), rows))
    if not items:
        raise UsageError(f"{source} has no rows.", "Check that it is the file you meant.")
    voice.realm_notice(realm)
    simulator = simulator_url(settings, realm)
    made = []
    for name, variant in configs.items():
        shown_prompt = (prompt_b if name == "B" and prompt_b else prompt) or variant.prompt_file
        made.append(
            _ask(voice, settings, realm, variant, items, name, str(shown_prompt), source, simulator)
        )
        if made[-1].status == "interrupted":
            voice.note("Interrupted. Answers so far are kept.")
            return INTERRUPTED
    voice.emit(
        {
            "workload": workload,
            "simulated": realm == "simulated",
            "input": source,
            "variants": [_document(variant) for variant in made],
        }
    )
    if not json:
        _print(voice, items, made)
    outcomes = {answer.outcome for variant in made for answer in variant.answers}
    if "failed" in outcomes or "pending" in outcomes:
        return SOME_FAILED
    return ONLY_BLOCKED if "blocked" in outcomes else OK


def _variant(config: WorkloadConfig, prompt: Path | None, route: str | None) -> WorkloadConfig:
    path = None if prompt is None else str(prompt.expanduser().resolve())
    changed = config.with_options({"prompt_file": path, "route": route})
    # Read now: a missing prompt file is said before anything is asked.
    assert changed.prompt
    return changed


def _ask(
    voice: Output,
    settings: Settings,
    realm: Realm,
    config: WorkloadConfig,
    items: list[NewItem],
    name: str,
    prompt: str,
    source: str,
    simulator: str | None,
) -> _Variant:
    import uuid

    from batch_pipeline.ledger.batches import TRIAL, ingest, list_chunks
    from batch_pipeline.workloads.runner import open_ledger, plan_job

    mark = "\x1f".join(
        [config.workload, config.prompt, config.route, *_files(config), *(i.item_id for i in items)]
    )
    batch_id = TRIAL_PREFIX + hashlib.sha256(mark.encode()).hexdigest()[:10]
    with open_ledger(settings, realm) as ledger:
        batch, _ = ingest(
            ledger,
            batch_id=batch_id,
            workload=config.workload,
            table_name=batch_id,
            source=source,
            columns=list(items[0].row),
            rows=items,
            options={},
            chunk_size=len(items),
            launch=TRIAL,
            warnings=[],
        )
        with ledger.read() as connection:
            keys = [chunk.chunk_key for chunk in list_chunks(connection, realm, batch_id)]
        job = plan_job(
            config,
            run_id=f"try-{uuid.uuid4()}",
            batch=batch,
            chunk_keys=keys,
            realm=realm,
            simulator=simulator,
            log_folder=settings.logs,
        )
        voice.note(f"{name}: asking {config.route} about {len(items)} rows …")
        done = _run(voice, settings, realm, job)
        if isinstance(done.error, BatchPipelineError):
            raise done.error
        if done.error is not None:
            raise BatchPipelineError(done.message) from done.error
        answers = _answers(ledger, batch, config.domain)
    return _Variant(
        name=name,
        prompt=prompt,
        route=config.route,
        batch_id=batch_id,
        answers=answers,
        status=done.status,
        message=done.message,
        paid_now_usd=done.tally.cost_usd,
        requests=done.tally.requests,
    )


def _files(config: WorkloadConfig) -> list[str]:
    """What else the operator edits beside the prompt: another text is another trial."""
    files = sorted(path for path in config.folder.iterdir() if path.is_file())
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


def _run(voice: Output, settings: Settings, realm: Realm, job: Job) -> RunDone:
    from batch_pipeline.engine.job import RunDone
    from batch_pipeline.engine.thread import EngineThread
    from batch_pipeline.workloads.runner import open_ledger

    thread = EngineThread(lambda: open_ledger(settings, realm), job).start()
    try:
        last = [event for event in thread.events() if isinstance(event, RunDone)]
    except KeyboardInterrupt:
        voice.note("Stopping: waiting for calls in flight.")
        return thread.stop_and_drain()
    return last[-1]


def _answers(ledger: Ledger, batch: Batch, workload: Workload) -> list[_Answer]:
    from batch_pipeline.ledger.batches import read_items
    from batch_pipeline.ledger.overview import attempts_of
    from batch_pipeline.workloads.results import outputs_of

    answers = []
    with ledger.read() as connection:
        items = read_items(connection, ledger.realm, batch.batch_id, 0, 1_000)
        asked = {
            item.ordinal: attempts_of(connection, ledger.realm, batch.batch_id, item)
            for item in items
        }
    outputs = outputs_of(ledger, batch, workload, items)
    for item in items:
        decided = _deciding(item, asked[item.ordinal])
        answers.append(
            _Answer(
                number=item.number,
                outcome=item.outcome.value,
                output=outputs.get(item.ordinal),
                shown=_shown(workload, item, outputs.get(item.ordinal)),
                error=item.error or "",
                cost_usd=sum(usd_of(line.cost_nano) / line.item_count for line in decided),
                latency_s=max((line.latency_s for line in decided if line.latency_s), default=None),
                cached=bool(item.cached),
            )
        )
    return answers


def _deciding(item: Item, lines: list[AttemptLine]) -> list[AttemptLine]:
    """Of each of a row's steps the attempt that answered it, or the last one."""
    by_step: dict[str, AttemptLine] = {}
    for line in lines:
        before = by_step.get(line.step)
        if before is None or before.attempt_id != item.attempt_id:
            by_step[line.step] = line
    return list(by_step.values())


def _shown(
    workload: Workload, item: Item, output: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """An answer for the table: of a workload with steps of its own, what a person would read."""
    if output is None or getattr(workload, "result_step", None) is None:
        return output
    cells = workload.deliverable_row(item.row, output)
    return {name: value for name, value in cells.items() if value and name not in item.row}


def _print(voice: Output, items: list[NewItem], variants: list[_Variant]) -> None:
    from rich.markup import escape

    table = grid(
        "Row", "Input", *(f"{v.name}: {escape(v.route)}" for v in variants), right=("Row",)
    )
    table.show_lines = True
    for place, item in enumerate(items):
        text = " · ".join(str(value) for value in item.row.values() if value)
        cells = [_cell(variant.answers[place]) for variant in variants]
        table.add_row(str(item.number), escape(cut(text, 160)), *(escape(cell) for cell in cells))
    voice.out.print(table)
    figures = ("Rows done", "Cost of these answers", "Paid now", "Requests now", "Slowest call")
    totals = grid("", "Prompt", *figures, right=figures)
    for variant in variants:
        done = sum(answer.outcome == "succeeded" for answer in variant.answers)
        slowest = max((a.latency_s for a in variant.answers if a.latency_s), default=0.0)
        totals.add_row(
            variant.name,
            escape(variant.prompt),
            f"{done}/{len(variant.answers)}",
            usd(sum(answer.cost_usd for answer in variant.answers)),
            usd(variant.paid_now_usd),
            str(variant.requests),
            duration(slowest),
        )
    voice.out.print(totals)
    for variant in variants:
        if variant.message:
            voice.note(f"{variant.name}: {variant.message}")
    voice.out.print(
        "`batch-pipeline show BATCH:ROW` has the exact request and reply; the batches are "
        f"{', '.join(variant.batch_id for variant in variants)}."
    )


def _cell(answer: _Answer) -> str:
    if answer.shown is None:
        return f"{answer.outcome}: {answer.error}" if answer.error else answer.outcome
    return "\n".join(
        f"{name}: {cut(str(value), _MOST_CELL_CHARS)}" for name, value in answer.shown.items()
    )


def _document(variant: _Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "prompt": variant.prompt,
        "route": variant.route,
        "batch": variant.batch_id,
        "status": variant.status,
        "message": variant.message,
        "requests": variant.requests,
        "paid_now_usd": variant.paid_now_usd,
        "cost_usd": sum(answer.cost_usd for answer in variant.answers),
        "rows": [
            {
                "row": answer.number,
                "outcome": answer.outcome,
                "cached": answer.cached,
                "output": answer.output,
                "error": answer.error,
                "cost_usd": answer.cost_usd,
                "latency_s": answer.latency_s,
            }
            for answer in variant.answers
        ],
    }
