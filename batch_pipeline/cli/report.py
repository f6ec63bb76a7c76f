"""`report`: a batch's summary with its report files written anew, or reports that were written.

What belongs here: choosing what to show and where to write. What does not: the report (reports/),
how article jobs look (job_report.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.workloads.articles.batch_report import ArticleReport, JobResult


def report(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="BATCH|FILE...",
            help="A batch id, or batch_report_*.json files of article jobs.",
        ),
    ],
    details: Annotated[
        bool, typer.Option("--details", help="Show each job (articles) as well.")
    ] = False,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Print a batch's summary and write its report files, or show reports that were written.

    BATCH writes the report anew (JSON, HTML, Markdown; for articles the files of each job too, so
    that people's decisions are in them). FILE... shows batch reports of article jobs as they are.
    """
    voice = Output(json, verbose)
    files = [Path(word) for word in what if _names_a_file(word)]
    if not files and len(what) == 1:
        return _batch(voice, what[0], details, simulate, output)
    if len(files) < len(what):
        raise UsageError(
            f"{what} are not all report files.",
            "Name one batch id, or any number of batch_report_<stamp>.json files.",
        )
    return _files(voice, files, details)


def _names_a_file(word: str) -> bool:
    """Whether a word means a file: batch ids have neither a separator nor an ending."""
    return word.endswith(".json") or "/" in word


def _files(voice: Output, paths: list[Path], details: bool) -> int:
    from batch_pipeline.cli.job_report import print_job_report, print_sums, sums_of
    from batch_pipeline.workloads.articles.batch_report import read_batch_report

    reports = sorted(((path, read_batch_report(path)) for path in dict.fromkeys(paths)), key=_age)
    if len(reports) == 1:
        voice.emit(reports[0][1].model_dump(mode="json"))
    else:
        voice.emit(
            {
                "reports": [
                    {"file": str(path), **one.model_dump(mode="json")} for path, one in reports
                ],
                "sums": sums_of(reports),
            }
        )
    if not voice.json:
        for path, one in reports:
            if len(reports) > 1:
                voice.out.print(str(path), markup=False, soft_wrap=True)
            print_job_report(voice, one, details=details)
            voice.out.print()
        if len(reports) > 1:
            print_sums(voice, reports)
    return OK


def _age(report: tuple[Path, ArticleReport]) -> tuple[str, str]:
    """What orders reports in time: when they were made, else what their name or batch says."""
    path, read = report
    meta = read.batch_meta
    return meta.created_at or meta.completed_at or meta.started_at or "", path.name


def _batch(
    voice: Output, batch: str, details: bool, simulate: bool | None, output: str | None
) -> int:
    from batch_pipeline.cli.job_report import print_jobs
    from batch_pipeline.ledger.overview import find_realm
    from batch_pipeline.reports.build import build_report
    from batch_pipeline.reports.console import print_summary
    from batch_pipeline.reports.files import write_reports
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.articles.batch_report import job_result
    from batch_pipeline.workloads.articles.reading import read_jobs
    from batch_pipeline.workloads.runner import batch_folder

    settings = load_settings()
    ledger, found = find_realm(settings, batch, simulate)
    jobs: list[JobResult] = []
    with ledger:
        folder = (
            Path(output).expanduser().resolve()
            if output
            else batch_folder(settings, ledger.realm, found.workload, batch)
        )
        if details:
            _require_jobs(found)
        further = _write_files_of_rows(ledger, found, folder)
        tables = (
            path
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.is_file() and not path.name.startswith(("batch_report", "job_"))
        )
        made = build_report(ledger, found, deliverables=sorted([*tables, *further]))
        if details:
            jobs = [job_result(job, folder) for job in read_jobs(ledger, found)]
    files = write_reports(made, folder)
    voice.realm_notice(ledger.realm)
    document: dict[str, Any] = {
        "batch": batch,
        "report_json": str(files.json_path),
        "report_html": str(files.html_path),
        "report_markdown": str(files.markdown_path),
        "report": made.model_dump(mode="json"),
    }
    if details:
        document["jobs"] = [job.model_dump(mode="json") for job in jobs]
    voice.emit(document)
    if not voice.json:
        print_summary(made, voice.out)
        if details:
            print_jobs(voice, jobs)
        voice.out.print(f"Report: {files.html_path}", markup=False, soft_wrap=True)
    return OK


def _write_files_of_rows(ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
    """Write anew what the workload gives for single rows: a decision may have moved it."""
    from batch_pipeline.workloads.base import DeliversFiles, load_workload

    try:
        workload = load_workload(batch.workload)
    except UsageError:  # a user's class that is not here: its rows can be reported all the same
        return []
    if not isinstance(workload, DeliversFiles):
        return []
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return workload.deliver_files(ledger, batch, folder)


def _require_jobs(batch: Batch) -> None:
    from batch_pipeline.workloads.articles.reading import WORKLOAD

    if batch.workload != WORKLOAD:
        raise UsageError(
            f"--details is for batches of articles; {batch.batch_id} is one of {batch.workload}.",
            f"`batch-pipeline failed {batch.batch_id}` lists its failed and blocked rows.",
        )
