"""`report`: a batch's summary, with its report files written anew.

What belongs here: choosing the batch and the folder. What does not: the report (reports/).
"""

from __future__ import annotations

from pathlib import Path

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output


def report(
    batch: opt.BatchId,
    simulate: opt.Simulate = None,
    output: opt.OutputFolder = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Print a batch's summary and write its report files (JSON, HTML, Markdown)."""
    from batch_pipeline.ledger.overview import find_realm
    from batch_pipeline.reports.build import build_report
    from batch_pipeline.reports.console import print_summary
    from batch_pipeline.reports.files import write_reports
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.runner import batch_folder

    voice = Output(json, verbose)
    settings = load_settings()
    ledger, found = find_realm(settings, batch, simulate)
    with ledger:
        folder = (
            Path(output).expanduser().resolve()
            if output
            else batch_folder(settings, ledger.realm, found.workload, batch)
        )
        deliverables = sorted(
            path
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.is_file() and not path.name.startswith("batch_report")
        )
        made = build_report(ledger, found, deliverables=deliverables)
    files = write_reports(made, folder)
    voice.realm_notice(ledger.realm)
    voice.emit(
        {
            "batch": batch,
            "report_json": str(files.json_path),
            "report_html": str(files.html_path),
            "report_markdown": str(files.markdown_path),
            "report": made.model_dump(mode="json"),
        }
    )
    if not json:
        print_summary(made, voice.out)
        voice.out.print(f"Report: {files.html_path}", markup=False, soft_wrap=True)
    return OK
