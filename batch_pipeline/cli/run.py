"""`run`, `retry` and `demo`: start a run through Dagster, show it, and say what it came to.

What belongs here: options, questions, progress and the closing words. What does not: running
(doors.py), numbers (reports).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import (
    INTERRUPTED,
    LIMIT_REACHED,
    OK,
    Output,
    exit_code,
    usd,
    usd_of,
)
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.doors import RunRequest, RunResult
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.config import WorkloadConfig

_STAGES = {
    "load": "Loading Dagster …",
    "ingest": "Reading the table …",
    "llm": "Asking …",
    "report": "Writing the report and the deliverables …",
}
_RESUMES = (
    "--resume: every run resumes. Finished rows cost nothing, failed and pending ones are asked, "
    "blocked ones only with --include-blocked."
)
# A route is checked against some address: nothing is sent there.
_SOME_SIMULATOR = "http://127.0.0.1"
_DEMO_SAMPLE = "platform-engineer.csv"
_DEMO_RATE = 240.0
# What a retry does not take over from the run before: they bounded or widened that run only.
_ONE_RUN_ONLY = frozenset(
    {"workload", "realm", "left_out", "limit", "include_blocked", "no_enrich", "chunk_size"}
)


def run(
    workload: opt.Workload,
    input_: opt.Input = None,
    batch: opt.Batch = None,
    roadmap: opt.Roadmap = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the roadmaps that --roadmap finds, and stop.")
    ] = False,
    route: opt.Route = None,
    workers: opt.Workers = None,
    rate_limit: opt.RateLimit = None,
    search_rate_limit: opt.SearchRateLimit = None,
    budget: opt.Budget = None,
    daily_budget: opt.DailyBudget = None,
    provider_daily_budget: opt.ProviderDailyBudget = None,
    fallback: opt.Fallback = None,
    provider: opt.Provider = None,
    model: opt.Model = None,
    strategy: opt.Strategy = None,
    no_ahrefs: opt.NoAhrefs = False,
    mode: opt.Mode = None,
    num_flashcards: opt.NumFlashcards = None,
    option: opt.Options = None,
    pack: opt.Pack = None,
    chunk_size: opt.ChunkSize = None,
    batch_delay: opt.BatchDelay = None,
    limit: opt.Limit = None,
    items_per_day: opt.ItemsPerDay = None,
    lane: opt.Lane = None,
    deadline: opt.Deadline = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Look after provider jobs until they have ended.")
    ] = False,
    include_blocked: opt.IncludeBlocked = False,
    force: Annotated[
        bool, typer.Option("--force", help="Ask finished rows again, and pay for them again.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="As every run does: finished rows are not asked again.")
    ] = False,
    cleanup: Annotated[
        bool,
        typer.Option(
            "--cleanup",
            help="First delete the batch's output folder; asks. Answers are kept: nothing is paid "
            "again.",
        ),
    ] = False,
    yes: opt.Yes = False,
    no_enrich: Annotated[
        bool, typer.Option("--no-enrich", help="Export the rows without any call.")
    ] = False,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    encoding: opt.Encoding = None,
    delimiter: opt.Delimiter = None,
    category: opt.Category = None,
    domain: opt.Domain = None,
    subdomain: opt.Subdomain = None,
    worksheet: opt.Worksheet = None,
    write_back: opt.WriteBack = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Put a table through a workload: ingest, ask, check, deliver, report.

    Running the same table again costs nothing for rows that are done.
    """
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.config import load_workload_config

    voice = Output(json, verbose)
    config = load_workload_config(workload)
    if list_:
        return _list_roadmaps(voice, config)
    source = opt.choose_source(config, input_, roadmap, batch)
    knobs = opt.given(
        route=route,
        workers=workers,
        rate_limit=rate_limit,
        search_rate_limit=search_rate_limit,
        budget_usd=budget,
        budget_usd_per_day=daily_budget,
        provider_budget_usd_per_day=provider_daily_budget,
        pack=pack,
        chunk_size=chunk_size,
        chunk_interval_s=batch_delay,
        limit=limit,
        items_per_day=items_per_day,
        lane=lane,
        deadline=deadline,
        wait=wait,
        include_blocked=include_blocked,
        no_enrich=no_enrich,
    ) | ({} if fallback is None else {"fallback": fallback})
    knobs |= opt.overrides(
        provider, model, strategy, no_ahrefs, option, mode=mode, num_flashcards=num_flashcards
    )
    request = RunRequest(
        workload=workload,
        source=source,
        batch_id=batch,
        knobs=knobs,
        reading=opt.reading_options(
            encoding,
            delimiter,
            category=category,
            domain=domain,
            subdomain=subdomain,
            worksheet=worksheet,
            write_back=write_back,
        ),
        simulate=load_settings().realm(simulate) == "simulated",
        force=force,
        output=Path(output).expanduser().resolve() if output else None,
        verbose=verbose,
    )
    settings = load_settings()
    config = config.with_options(knobs)
    check_before(settings, config, request)
    for line in opt.overrides_said(workload, knobs):
        voice.note(line)
    if resume:
        voice.note(_RESUMES)
    if force and not _may_force(voice, settings, config, request, yes):
        voice.note("Nothing was done.")
        return OK
    old_files = _old_files(settings, config, request) if cleanup else None
    if old_files is not None and not _may_delete(voice, old_files, yes):
        voice.note("Nothing was done.")
        return OK
    return carry_out(voice, settings, request, old_files)


def retry(
    batch: opt.BatchId,
    include_blocked: opt.IncludeBlocked = False,
    route: opt.Route = None,
    workers: opt.Workers = None,
    rate_limit: opt.RateLimit = None,
    search_rate_limit: opt.SearchRateLimit = None,
    budget: opt.Budget = None,
    daily_budget: opt.DailyBudget = None,
    provider_daily_budget: opt.ProviderDailyBudget = None,
    fallback: opt.Fallback = None,
    provider: opt.Provider = None,
    model: opt.Model = None,
    strategy: opt.Strategy = None,
    no_ahrefs: opt.NoAhrefs = False,
    mode: opt.Mode = None,
    num_flashcards: opt.NumFlashcards = None,
    option: opt.Options = None,
    pack: opt.Pack = None,
    batch_delay: opt.BatchDelay = None,
    limit: opt.Limit = None,
    write_back: opt.WriteBack = None,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Run a batch again: failed and pending rows are asked, finished rows cost nothing.

    The settings are those of its last run, unless given here.
    """
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.ledger.overview import find_realm, last_runs
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.config import Knobs, load_workload_config

    voice = Output(json, verbose)
    settings = load_settings()
    ledger, found = find_realm(settings, batch, simulate)
    with ledger, ledger.read() as connection:
        last = last_runs(connection, ledger.now(connection), ledger.realm, batch).get(batch)
    kept = {
        name: value
        for name, value in (last.settings if last else {}).items()
        if name in Knobs.model_fields and name not in _ONE_RUN_ONLY and value is not None
    }
    own = opt.overrides(
        provider, model, strategy, no_ahrefs, option, mode=mode, num_flashcards=num_flashcards
    )
    if "options" in own:
        own["options"] = {**kept.get("options", {}), **own["options"]}
    knobs = (
        kept
        | opt.given(
            route=route,
            workers=workers,
            rate_limit=rate_limit,
            search_rate_limit=search_rate_limit,
            budget_usd=budget,
            budget_usd_per_day=daily_budget,
            provider_budget_usd_per_day=provider_daily_budget,
            pack=pack,
            chunk_interval_s=batch_delay,
            limit=limit,
            include_blocked=include_blocked,
        )
        | ({} if fallback is None else {"fallback": fallback})
        | own
    )
    request = RunRequest(
        workload=found.workload,
        source=None,
        batch_id=batch,
        knobs=knobs,
        reading=opt.reading_options(write_back=write_back),
        simulate=ledger.realm == "simulated",
        output=Path(output).expanduser().resolve() if output else None,
        verbose=verbose,
    )
    check_before(settings, load_workload_config(found.workload).with_options(knobs), request)
    for line in opt.overrides_said(found.workload, knobs):
        voice.note(line)
    return carry_out(voice, settings, request)


def demo(json: opt.Json = False, verbose: opt.Verbose = False) -> int:
    """Run the roadmaps sample from end to end, simulated: no key, no cost, under a minute."""
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.settings import load_settings, project_root
    from batch_pipeline.workloads.base import default_sample

    voice = Output(json, verbose)
    sample = default_sample("roadmaps", project_root()) / _DEMO_SAMPLE
    request = RunRequest(
        workload="roadmaps",
        source=str(sample),
        batch_id=None,
        knobs={"rate_limit": _DEMO_RATE},
        reading={},
        simulate=True,
        verbose=verbose,
    )
    voice.note(
        f"A demonstration with {sample.name}: everything is simulated. A local server stands in "
        "for the provider; costs are what the provider would have charged."
    )
    code = carry_out(voice, load_settings(), request)
    voice.out.print()
    voice.out.print("[bold]Next[/bold]")
    program = "batch-pipeline" if shutil.which("batch-pipeline") else ".venv/bin/batch-pipeline"
    voice.out.print(f"  Run it again, and every row comes from the cache: {program} demo")
    voice.out.print(
        "  See the assets and runs in the Dagster UI:        make dev, then http://127.0.0.1:3000"
    )
    voice.out.print(
        "  Try a table of your own, still simulated:         "
        f"{program} run roadmaps --input TABLE.csv --simulate"
    )
    return code


def _list_roadmaps(voice: Output, config: WorkloadConfig) -> int:
    from batch_pipeline.workloads.roadmaps.folder import list_roadmaps

    found = list_roadmaps(opt.roadmap_folders(config, "--list"))
    voice.emit({"roadmaps": [{"name": name, "topics": topics} for name, topics in found]})
    for name, topics in found:
        size = "cannot be read" if topics is None else f"{topics:,} topics"
        voice.out.print(f"{name:<40} {size}", markup=False)
    voice.out.print(f"{len(found)} roadmaps; run one with --roadmap NAME.")
    return OK


def check_before(
    settings: Settings, config: WorkloadConfig, request: RunRequest, *, look_into: bool = True
) -> None:
    """Find what would stop the run: before Dagster loads, and before anything is ingested.

    Args:
        settings: the installation's.
        config: the workload, with the run's options.
        request: the run.
        look_into: open the table as well.

    Raises:
        UsageError: no key, no such batch, or a table that cannot be read.
    """
    from batch_pipeline.workloads.inputs import WRITE_BACK
    from batch_pipeline.workloads.runner import (
        check_batch_id,
        check_ready,
        open_input,
        open_ledger,
        require_batch,
        resolve_step,
        simulator_url,
    )

    resolve_step(config)
    realm = settings.realm(request.simulate)
    if not config.no_enrich:
        check_ready(config, None if realm == "live" else _SOME_SIMULATOR)
    if request.batch_id is not None:
        check_batch_id(request.batch_id)
    if request.source is not None and look_into:
        with open_ledger(settings, realm) as ledger:
            simulator = partial(simulator_url, settings, realm)
            open_input(config.domain, request.source, request.reading, ledger, simulator)
    elif request.source is None and (senseless := sorted(set(request.reading) - {WRITE_BACK})):
        raise UsageError(
            f"A batch that was ingested before keeps its rows: {', '.join(senseless)} would change "
            "nothing.",
            "Name its table with --input to read it otherwise, under another --batch.",
        )
    elif request.source is None and request.batch_id is not None:
        with open_ledger(settings, realm) as ledger:
            batch = require_batch(ledger, request.batch_id)
        if batch.workload != config.workload:
            raise UsageError(
                f"Batch {batch.batch_id} belongs to the workload {batch.workload}.",
                f"Use `batch-pipeline run {batch.workload} --batch {batch.batch_id}`.",
            )


def _may_force(
    voice: Output, settings: Settings, config: WorkloadConfig, request: RunRequest, yes: bool
) -> bool:
    """Name what a forced run pays again, and ask."""
    from batch_pipeline.cli.estimate import estimate_request

    if yes:
        return True
    realm = settings.realm(request.simulate)
    estimate, _ = estimate_request(
        settings,
        config,
        realm,
        source=request.source,
        batch_id=request.batch_id,
        reading=request.reading,
        force=True,
    )
    what = "simulated, nothing is paid" if realm == "simulated" else "paid again"
    return voice.confirm(
        f"--force asks {estimate.to_ask:,} rows again in {estimate.requests:,} requests: about "
        f"{usd(estimate.cost_usd)} ({what}). Go ahead?",
        yes=yes,
    )


def _old_files(settings: Settings, config: WorkloadConfig, request: RunRequest) -> Path:
    """The folder that earlier runs of the batch wrote to.

    Raises:
        UsageError: it is not the batch's own.
    """
    from batch_pipeline.workloads.runner import batch_folder

    if request.output is not None:
        raise UsageError(
            f"--cleanup deletes a batch's own folder, and {request.output} is yours.",
            "Leave --cleanup or --output out, or empty that folder by hand.",
        )
    realm = settings.realm(request.simulate)
    batch_id = request.batch_id or _content_id(settings, config, request)
    return batch_folder(settings, realm, config.workload, batch_id)


def _may_delete(voice: Output, folder: Path, yes: bool) -> bool:
    """Whether the files of a folder may go.

    Raises:
        UsageError: there is nobody to ask.
    """
    from rich.filesize import decimal

    files = _files_of(folder)
    if not files:
        voice.note(f"--cleanup: nothing was written to {folder} yet.")
        return True
    size = decimal(sum(path.lstat().st_size for path in files))
    return voice.confirm(
        f"--cleanup deletes {len(files):,} files ({size}) in {folder}. The ledger keeps answers "
        "and spend: the run writes the files anew, and no finished row is paid again. Go ahead?",
        yes=yes,
    )


def _delete(voice: Output, folder: Path) -> None:
    """Delete what earlier runs wrote.

    Raises:
        UsageError: it cannot be deleted.
    """
    files = _files_of(folder)
    if not files:
        return
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be deleted: {error.strerror or error}.",
            "Delete it by hand, or run without --cleanup.",
        ) from error
    voice.note(f"{len(files):,} files of {folder} were deleted.")


def _files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _content_id(settings: Settings, config: WorkloadConfig, request: RunRequest) -> str:
    """The id of a batch that was given none."""
    from batch_pipeline.workloads.inputs import Input
    from batch_pipeline.workloads.runner import open_ledger, simulator_url

    assert request.source is not None
    realm = settings.realm(request.simulate)
    simulator = partial(simulator_url, settings, realm)
    with open_ledger(settings, realm) as ledger:
        named = Input(config.domain, request.source, request.reading, ledger, simulator)
        return named.content_id()


def carry_out(
    voice: Output, settings: Settings, request: RunRequest, old_files: Path | None = None
) -> int:
    """Run a batch, say what it came to, and give the exit code; `old_files`: see `execute`."""
    try:
        result = execute(voice, settings, request, old_files=old_files)
    except KeyboardInterrupt:
        return interrupted(voice)
    _close(voice, settings, result)
    return ended_with(voice, settings, request, result)


def execute(
    voice: Output,
    settings: Settings,
    request: RunRequest,
    on_stage: Callable[[str], None] | None = None,
    old_files: Path | None = None,
) -> RunResult:
    """Run a batch with its progress on stderr.

    Args:
        voice: where to.
        settings: the installation's.
        request: what to run.
        on_stage: called with each of doors.STAGES as it begins; None announces the stages, and
            what the run is about to do.
        old_files: a folder to delete once the table has been read: not for one that is refused.
    """
    from batch_pipeline.cli.plan import show_plan
    from batch_pipeline.cli.progress import ProgressView
    from batch_pipeline.doors import run_batch

    def on_batch(batch: Batch) -> None:
        if old_files is not None:
            _delete(voice, old_files)
        if on_stage is None:
            show_plan(voice, settings, request, batch)

    voice.realm_notice(settings.realm(request.simulate))
    with ProgressView(voice) as view:
        return run_batch(
            request,
            on_progress=view.update,
            on_stage=on_stage or (lambda stage: view.stage(_STAGES.get(stage, ""))),
            on_batch=on_batch,
        )


def interrupted(voice: Output) -> int:
    """Say that Ctrl-C ended a run, before there was anything to report."""
    voice.note("Interrupted. What was paid is kept: run again to resume.")
    voice.emit({"error": {"message": "Interrupted.", "next_step": "Run again to resume."}})
    return INTERRUPTED


def ended_with(voice: Output, settings: Settings, request: RunRequest, result: RunResult) -> int:
    """The exit code of a run; says so where the rows of a day are used up."""
    from batch_pipeline.workloads.config import load_workload_config
    from batch_pipeline.workloads.daily import read_today
    from batch_pipeline.workloads.runner import open_ledger

    code = exit_code(result.status, result.outcomes)
    config = load_workload_config(request.workload).with_options(dict(request.knobs))
    with open_ledger(settings, result.realm) as ledger:
        today = read_today(ledger, result.batch_id, config)
    if today is None or not today.is_full:
        return code
    voice.note(today.words)
    return code if code == INTERRUPTED else LIMIT_REACHED


def say_of_table(voice: Output, result: RunResult) -> None:
    """Say what reading the table gave to say."""
    for note in result.notes:
        voice.note(note)
    for warning in result.warnings:
        voice.note(f"Warning: {warning}")


def _close(voice: Output, settings: Settings, result: RunResult) -> None:
    voice.emit(run_document(result))
    say_of_table(voice, result)
    if not voice.json:
        _print_summary(voice, settings, result)
    elif result.message and result.status != "submitted":
        voice.note(result.message)
    if result.status == "interrupted":
        voice.note("Interrupted. What was paid is kept: run again to resume.")
    elif result.status == "submitted":
        voice.note(
            f"{result.message} `batch-pipeline batches list` shows the provider jobs; the sensor "
            "of `make dev` collects them, or `batch-pipeline batches collect --all`.".strip()
        )
    elif result.outcomes.get("failed") or result.outcomes.get("blocked"):
        voice.note(f"`batch-pipeline failed {result.batch_id}` lists the rows and what to do.")


def _print_summary(voice: Output, settings: Settings, result: RunResult) -> None:
    from batch_pipeline.reports.build import build_report
    from batch_pipeline.reports.console import print_summary
    from batch_pipeline.workloads.runner import open_ledger, require_batch

    realm = settings.realm(result.realm == "simulated")
    with open_ledger(settings, realm) as ledger:
        batch = require_batch(ledger, result.batch_id)
        report = build_report(ledger, batch, run_id=result.run_id, deliverables=result.deliverables)
    print_summary(report, voice.out)
    for label, path in (
        ("Report", result.report_html),
        ("Report as JSON", result.report_json),
        ("Logs of runs", settings.logs),
    ):
        if path:
            voice.out.print(f"{label + ':':<16} {path}", markup=False, soft_wrap=True)


def run_document(result: RunResult) -> dict[str, Any]:
    """The one JSON object of a run: outcomes of the batch, counts and cost of this run."""
    outcomes = dict(result.outcomes)
    summary = result.summary
    return {
        "batch": result.batch_id,
        "workload": result.workload,
        "simulated": result.realm == "simulated",
        "run_id": result.run_id,
        "status": result.status,
        "message": result.message,
        "rows": result.row_count,
        "outcomes": {
            name: int(outcomes.get(name, 0))
            for name in ("succeeded", "blocked", "failed", "skipped")
        },
        "pending": int(outcomes.get("pending", 0)),
        "cache_hits": int(summary.get("cache_hits", 0)),
        "requests": int(summary.get("requests", 0)),
        "attempts": int(summary.get("attempts", 0)),
        "input_tokens": int(summary.get("input_tokens", 0)),
        "cached_input_tokens": int(summary.get("cached_input_tokens", 0)),
        "output_tokens": int(summary.get("output_tokens", 0)),
        "cost_usd": usd_of(summary.get("cost_nano")),
        "lost_cost_usd": usd_of(summary.get("lost_nano")),
        "wall_s": round(float(summary.get("wall_s", 0.0)), 3),
        "rate_wait_s": round(float(summary.get("rate_wait_s", 0.0)), 3),
        "report_json": str(result.report_json) if result.report_json else None,
        "report_html": str(result.report_html) if result.report_html else None,
        "deliverables": [str(path) for path in result.deliverables],
        "warnings": list(result.warnings),
        "notes": list(result.notes),
    }
