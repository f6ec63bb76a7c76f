"""`batches`: work through the providers' Batch APIs: submit, look, collect, cancel, results.

What belongs here: options, and which steps a command takes. What does not: what is printed
(batches_show.py), runs (doors.py), provider jobs (workloads/lane.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import batches_show as show
from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import INTERRUPTED, OK, SOME_FAILED, Output
from batch_pipeline.errors import BatchPipelineError, UsageError

if TYPE_CHECKING:
    from batch_pipeline.doors import RunRequest, RunResult
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.lane import LaneStatus

app = typer.Typer(
    no_args_is_help=True,
    help="Work through the providers' Batch APIs, at their price: submit, look, collect, results.",
)

_URL_LIST = ".txt"
_PREVIEWED = 3

_Name = Annotated[
    str | None,
    typer.Option(
        "--name", help="The batch's name, which is its job's id too; default: batch_<date>_<time>."
    ),
]
_Workload = Annotated[str, typer.Option("--workload", help="What to do with the rows.")]
_Wait = Annotated[
    bool, typer.Option("--wait", help="Stay until the provider jobs have ended and are collected.")
]
_Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="The batch's name, batch_jobs/<name>, a provider job's id, or the provider's own.",
    ),
]


@app.command()
def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A list of URLs (.txt), or a table.")],
    name: _Name = None,
    wait: _Wait = False,
    workload: _Workload = "news",
    lane: opt.Lane = None,
    deadline: opt.Deadline = None,
    route: opt.Route = None,
    budget: opt.Budget = None,
    daily_budget: opt.DailyBudget = None,
    provider_daily_budget: opt.ProviderDailyBudget = None,
    items_per_day: opt.ItemsPerDay = None,
    limit: opt.Limit = None,
    pack: opt.Pack = None,
    chunk_size: opt.ChunkSize = None,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    encoding: opt.Encoding = None,
    delimiter: opt.Delimiter = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Submit a list of URLs, whose pages are fetched first, or any table the workload reads."""
    knobs = opt.given(
        lane=lane or "batch",
        deadline=deadline,
        wait=wait,
        route=route,
        budget_usd=budget,
        budget_usd_per_day=daily_budget,
        provider_budget_usd_per_day=provider_daily_budget,
        items_per_day=items_per_day,
        limit=limit,
        pack=pack,
        chunk_size=chunk_size,
    )
    reading = opt.given(encoding=encoding, delimiter=delimiter)
    return _submit(Output(json, verbose), file, name, workload, knobs, reading, simulate, output)


@app.command("submit-contents")
def submit_contents(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON: a list of {id, title, contents}.")
    ],
    name: _Name = None,
    wait: _Wait = False,
    lane: opt.Lane = None,
    deadline: opt.Deadline = None,
    route: opt.Route = None,
    budget: opt.Budget = None,
    items_per_day: opt.ItemsPerDay = None,
    limit: opt.Limit = None,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Submit articles whose text is at hand: nothing is fetched."""
    if Path(file).suffix.lower() == _URL_LIST:
        raise UsageError(
            f"{file} is a list of URLs, not articles.",
            f"Use `batch-pipeline batches submit {file}`.",
        )
    knobs = opt.given(
        lane=lane or "batch",
        deadline=deadline,
        wait=wait,
        route=route,
        budget_usd=budget,
        items_per_day=items_per_day,
        limit=limit,
    )
    return _submit(Output(json, verbose), file, name, "news", knobs, {}, simulate, output)


@app.command()
def status(
    job: _Job,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until it has ended.")] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between looks of --watch.")
    ] = 10.0,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Show where a job stands, as its provider says now."""
    voice = Output(json, verbose)
    with _opened(job, simulate) as (settings, ledger, batch):
        voice.realm_notice(ledger.realm)
        found = _look(voice, settings, ledger, batch)
        said = ""
        while watch and show.is_under_way(found):
            line = f"{found.state} · {found.completed:,}/{found.total:,} ({found.percent:.1f}%)"
            if line != said:
                voice.note(line)
            said = line
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                return INTERRUPTED
            found = _look(voice, settings, ledger, batch)
    voice.emit(show.status_document(found))
    show.print_status(voice, found)
    failed = found.ended and found.state != show.SUCCEEDED
    return SOME_FAILED if watch and failed else OK


@app.command("list")
def list_jobs(
    all_: Annotated[
        bool, typer.Option("--all", help="Batches of the realtime lane as well.")
    ] = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """List jobs with their present states, newest first."""
    from batch_pipeline.cli.read import TRIAL_PREFIX
    from batch_pipeline.ledger.batches import list_batches
    from batch_pipeline.ledger.overview import REALMS
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.lane import last_knobs, read_status
    from batch_pipeline.workloads.runner import open_ledger

    voice = Output(json, verbose)
    settings = load_settings()
    found: list[LaneStatus] = []
    for realm in REALMS if simulate is None else (settings.realm(simulate),):
        with open_ledger(settings, realm) as ledger:
            _refresh(voice, settings, ledger, None)
            with ledger.read() as connection:
                batches = list_batches(connection, realm)
            for batch in batches:
                if batch.batch_id.startswith(TRIAL_PREFIX):
                    continue
                one = read_status(ledger, batch)
                knobs = last_knobs(ledger, batch)
                waits = not knobs or knobs.get("lane", "realtime") != "realtime"
                if all_ or one.provider_jobs or waits:
                    found.append(one)
    found.sort(key=lambda one: one.created_at, reverse=True)
    voice.emit({"jobs": [show.status_document(one) for one in found], "total": len(found)})
    show.print_list(voice, found)
    return OK


@app.command()
def results(
    job: _Job,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The batch's name.")],
    show_preview: Annotated[
        bool, typer.Option("--show-preview", help="Show the first three results.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what there is before the job has ended.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Folder of the file; default: the batch's outputs."),
    ] = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Write results_NAME.json, every row with its id, and sum it up.

    Results come into the ledger with `collect`, or by the sensor; nothing is paid here.
    """
    from itertools import islice

    from batch_pipeline.sinks.exports import results_name
    from batch_pipeline.sinks.files import write_json
    from batch_pipeline.workloads.base import load_workload
    from batch_pipeline.workloads.job_results import named_job, require_ended
    from batch_pipeline.workloads.results import deliverable_rows
    from batch_pipeline.workloads.summary import summarize_batch

    voice = Output(json, verbose)
    with _opened(job, simulate) as (settings, ledger, batch):
        named_job(ledger, job, name)
        voice.realm_notice(ledger.realm)
        show.say(voice, f"{show.icon(voice, 'read')}Retrieving results for job {job} …")
        found = _look(voice, settings, ledger, batch)
        if not partial:
            require_ended(found)
        workload = load_workload(batch.workload)
        columns = list(
            dict.fromkeys([*_own_id(workload.item_id_column), *workload.deliverable_columns,
                           "outcome", "error"])
        )  # fmt: skip
        path = _folder(settings, ledger, batch, output) / results_name(batch.batch_id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = write_json(path, columns, deliverable_rows(ledger, workload, batch))
        retrieved = found.outcomes.get("succeeded", 0)
        good = (r for r in deliverable_rows(ledger, workload, batch) if r["outcome"] == "succeeded")
        preview = (
            [{name: row.get(name) for name in columns} for row in islice(good, _PREVIEWED)]
            if show_preview
            else []
        )
        summary = summarize_batch(ledger, batch)
    voice.emit(
        {
            **show.status_document(found),
            "retrieved_count": retrieved,
            "results_json": str(path),
            "summary": None if summary is None else summary.model_dump(mode="json"),
            **({"preview": preview} if show_preview else {}),
        }
    )
    show.say(voice)
    show.say(voice, f"{show.icon(voice, 'tick')}Retrieved {retrieved:,} results of {rows:,} rows")
    show.say(voice, f"{show.icon(voice, 'save')}Results saved to: {path}")
    show.say(voice)
    show.print_summary(voice, summary, found.outcomes)
    if preview:
        show.print_preview(voice, preview)
    return OK


@app.command()
def export(
    job: _Job,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Folder of the files; default: the batch's outputs."),
    ] = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Write job_tracking.json, the request lines as sent, and what each of them asks about."""
    from batch_pipeline.sinks.exports import write_requests, write_tracking
    from batch_pipeline.workloads.lane import read_status

    voice = Output(json, verbose)
    with _opened(job, simulate) as (settings, ledger, batch):
        voice.realm_notice(ledger.realm)
        jobs = read_status(ledger, batch).provider_jobs
        folder = _folder(settings, ledger, batch, output)
        files = [
            write_tracking(folder, ledger, batch, jobs),
            *write_requests(folder, ledger, batch, jobs),
        ]
    voice.emit({"batch_name": batch.batch_id, "files": [str(path) for path in files]})
    for path in files:
        show.say(voice, f"{show.icon(voice, 'save')}{path}")
    return OK


@app.command()
def cancel(
    job: _Job,
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Ask the providers to cancel a batch's open jobs; what they answered by then is kept."""
    from batch_pipeline.workloads.lane import cancel as cancel_jobs
    from batch_pipeline.workloads.lane import read_status

    voice = Output(json, verbose)
    with _opened(job, simulate) as (settings, ledger, batch):
        voice.realm_notice(ledger.realm)
        still_open = [one for one in read_status(ledger, batch).provider_jobs if one.is_open]
        if still_open and not voice.confirm(
            f"Cancel {len(still_open)} provider jobs of batch {batch.batch_id}, with "
            f"{sum(one.item_count for one in still_open):,} rows? What is answered by then is "
            "paid and kept.",
            yes=yes,
        ):
            voice.note("Nothing was done.")
            return OK
        count = cancel_jobs(settings, ledger, batch) if still_open else 0
        found = read_status(ledger, batch)
    voice.emit({**show.status_document(found), "cancelled_jobs": count})
    if not still_open:
        show.say(voice, f"Batch {batch.batch_id} has no open provider job.")
        return OK
    show.say(voice, f"{show.icon(voice, 'tick')}Asked to cancel {count} provider jobs.")
    show.print_status(voice, found)
    return OK


@app.command()
def collect(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job, by any of its names.")
    ] = None,
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="Every batch with provider jobs not collected yet: the default."
        ),
    ] = False,
    wait: _Wait = False,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Collect ended provider jobs and submit what waits for room: what the sensor does by itself.

    The run goes on with the settings of the batch's last one.
    """
    from batch_pipeline.cli.run import ended_with, execute, interrupted, run_document
    from batch_pipeline.settings import load_settings

    if job is not None and all_:
        raise UsageError("One job and --all were both given.", "Give one of them.")
    voice = Output(json, verbose)
    settings = load_settings()
    documents: list[dict[str, Any]] = []
    codes: list[int] = []
    for request in _to_collect(settings, job, simulate, wait, output, verbose):
        try:
            result = execute(voice, settings, request, on_stage=lambda _: None)
        except KeyboardInterrupt:
            return interrupted(voice)
        codes.append(ended_with(voice, settings, request, result))
        found = _after(settings, result)
        documents.append({"run": run_document(result), "job": show.status_document(found)})
        if result.message:
            voice.note(result.message)
        show.print_status(voice, found)
    if not documents:
        show.say(voice, "There is no provider job to collect.")
    voice.emit({"batches": documents})
    return _worst(codes)


# ---- what the commands share ---------------------------------------------------------------------


def default_name(at: float) -> str:
    """The name of a batch that was given none: `batch_20261122_050000` (UTC)."""
    return datetime.fromtimestamp(at, UTC).strftime("batch_%Y%m%d_%H%M%S")


def _submit(
    voice: Output,
    file: str,
    name: str | None,
    workload: str,
    knobs: dict[str, Any],
    reading: dict[str, Any],
    simulate: bool | None,
    output: str | None,
) -> int:
    from batch_pipeline.cli.run import (
        check_before,
        ended_with,
        execute,
        interrupted,
        run_document,
        say_of_table,
    )
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.config import load_workload_config
    from batch_pipeline.workloads.runner import open_ledger, require_batch

    settings = load_settings()
    realm = settings.realm(simulate)
    batch_id = name or default_name(time.time())
    path = Path(file).expanduser().resolve()
    request = RunRequest(
        workload=workload,
        source=str(path),
        batch_id=batch_id,
        knobs=knobs,
        reading=reading,
        simulate=realm == "simulated",
        output=Path(output).expanduser().resolve() if output else None,
        verbose=voice.verbose,
    )
    config = load_workload_config(workload).with_options(knobs)
    urls = path.suffix.lower() == _URL_LIST
    # A list of URLs would be fetched here, before anything says so.
    check_before(settings, config, request, look_into=not urls)

    def announce(stage: str) -> None:
        if stage == "ingest":
            voice.note("Fetching the pages …" if urls else "Reading the table …")
        elif stage == "llm":
            with open_ledger(settings, realm) as ledger:
                rows = require_batch(ledger, batch_id).row_count
            what = "URLs" if urls else "pre-crawled items" if workload == "news" else "rows"
            sign = show.icon(voice, "submit")
            show.say(voice, f"{sign}Submitting batch with {rows:,} {what} …")

    try:
        result = execute(voice, settings, request, announce)
    except KeyboardInterrupt:
        return interrupted(voice)
    found = _after(settings, result)
    voice.emit({"job": show.status_document(found), "run": run_document(result)})
    say_of_table(voice, result)
    if result.status == "submitted":
        show.say(voice, f"{show.icon(voice, 'tick')}Batch submitted successfully!")
        show.say(voice, f"  Job ID: {found.job_id}")
        show.say(voice, f"  Batch name: {found.batch_id}")
        show.say(voice, f"Check status with: batch-pipeline batches status {found.job_id}")
    elif result.message:
        voice.note(result.message)
    show.print_status(voice, found)
    return ended_with(voice, settings, request, result)


@contextmanager
def _opened(job: str, simulate: bool | None) -> Iterator[tuple[Settings, Ledger, Batch]]:
    """The ledger in which a job is, and its batch; without a wish, in either realm.

    Raises:
        UsageError: there is no such job.
    """
    from batch_pipeline.ledger.overview import REALMS
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.lane import resolve_job
    from batch_pipeline.workloads.runner import open_ledger

    settings = load_settings()
    first = settings.realm(simulate)
    realms = [first] if simulate is not None else [first, *(r for r in REALMS if r != first)]
    missing: UsageError | None = None
    for realm in realms:
        with open_ledger(settings, realm) as ledger:
            try:
                batch = resolve_job(ledger, job)
            except UsageError as error:
                missing = missing or error
                continue
            yield settings, ledger, batch
            return
    assert missing is not None
    raise missing


def _refresh(voice: Output, settings: Settings, ledger: Ledger, batch: Batch | None) -> None:
    """Ask the providers; what the ledger knows is shown where they cannot be asked."""
    from batch_pipeline.workloads.lane import refresh

    try:
        refresh(settings, ledger, batch)
    except BatchPipelineError as error:
        voice.note(f"The provider could not be asked; this is what is known: {error}")


def _look(voice: Output, settings: Settings, ledger: Ledger, batch: Batch) -> LaneStatus:
    from batch_pipeline.workloads.lane import read_status

    _refresh(voice, settings, ledger, batch)
    return read_status(ledger, batch)


def _after(settings: Settings, result: RunResult) -> LaneStatus:
    """Where a job stands after a run of it."""
    from batch_pipeline.workloads.lane import read_status
    from batch_pipeline.workloads.runner import open_ledger, require_batch

    with open_ledger(settings, result.realm) as ledger:
        return read_status(ledger, require_batch(ledger, result.batch_id))


def _own_id(column: str | None) -> list[str]:
    """The id's column, where the deliverables have none of their own."""
    return [] if column else ["item_id"]


def _folder(settings: Settings, ledger: Ledger, batch: Batch, output: str | None) -> Path:
    from batch_pipeline.workloads.runner import batch_folder

    if output:
        return Path(output).expanduser().resolve()
    return batch_folder(settings, ledger.realm, batch.workload, batch.batch_id)


def _to_collect(
    settings: Settings,
    job: str | None,
    simulate: bool | None,
    wait: bool,
    output: str | None,
    verbose: bool,
) -> list[RunRequest]:
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.ledger.overview import REALMS
    from batch_pipeline.workloads.lane import last_knobs
    from batch_pipeline.workloads.runner import open_ledger, require_batch

    def request(ledger: Ledger, batch: Batch) -> RunRequest:
        return RunRequest(
            workload=batch.workload,
            batch_id=batch.batch_id,
            knobs=last_knobs(ledger, batch) | ({"wait": True} if wait else {}),
            simulate=ledger.realm == "simulated",
            output=Path(output).expanduser().resolve() if output else None,
            verbose=verbose,
        )

    if job is not None:
        with _opened(job, simulate) as (_, ledger, batch):
            return [request(ledger, batch)]
    found: list[RunRequest] = []
    for realm in REALMS if simulate is None else (settings.realm(simulate),):
        with open_ledger(settings, realm) as ledger:
            for batch_id in _with_open_jobs(ledger):
                found.append(request(ledger, require_batch(ledger, batch_id)))
    return found


def _with_open_jobs(ledger: Ledger) -> list[str]:
    """Batches with a provider job that is not collected, or that wait for room for more."""
    from batch_pipeline.ledger.jobs import list_jobs as find_jobs
    from batch_pipeline.ledger.overview import last_runs
    from batch_pipeline.ledger.tables import OPEN_JOB_STATES, JobState

    with ledger.read() as connection:
        jobs = find_jobs(connection, ledger.realm, states=[*OPEN_JOB_STATES, JobState.ENDED])
        runs = last_runs(connection, ledger.now(connection), ledger.realm)
    waiting = [batch_id for batch_id, run in runs.items() if run.status == "submitted"]
    return list(dict.fromkeys([*(job.batch_id for job in jobs), *waiting]))


def _worst(codes: list[int]) -> int:
    """The exit code of several runs: 130 before 3 before 1 before 2."""
    order = [INTERRUPTED, 3, SOME_FAILED, 2]
    return next((code for code in order if code in codes), OK)
