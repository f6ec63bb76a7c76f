"""`process_with_batch_api` and `process_with_realtime_api`: the guide's names for large news sets.

What belongs here: those names and their console blocks, filled with real figures. What does not:
waves, limits, retries (the engine and its batch lane), or any other logic of its own.

    python -m batch_pipeline.process_large_batch batch|realtime FILE
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from batch_pipeline.batch_processor import WORKLOAD, ClassificationResultFromText, Item
from batch_pipeline.cli import options as opt
from batch_pipeline.cli.batches_show import icon, say
from batch_pipeline.cli.estimate import estimate_request
from batch_pipeline.cli.output import OK, Output, usd, usd_of
from batch_pipeline.cli.progress import ProgressView
from batch_pipeline.cli.run import ended_with
from batch_pipeline.doors import RunRequest, RunResult, run_batch
from batch_pipeline.engine.lanes.batch import JOBS_OF_A_WINDOW, MOST_ITEMS
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.pricing.prices import Lane
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.settings import Realm, load_settings
from batch_pipeline.sinks.exports import results_name, write_tracking
from batch_pipeline.sinks.files import write_json
from batch_pipeline.workloads.base import load_workload
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.estimate import Amount, Estimate
from batch_pipeline.workloads.job_results import rows_of_job
from batch_pipeline.workloads.lane import LaneStatus, read_status
from batch_pipeline.workloads.runner import enqueued_tokens_of, open_ledger, require_batch

_RULE = "=" * 80
_ITEMS_FILE = "articles.json"
_MILLION = 1_000_000


async def process_with_batch_api(
    items: Sequence[Item],
    output_dir: str | Path = "./batch_results",
    wait_for_waves: bool = True,
    *,
    route: str | None = None,
    budget_usd: float | None = None,
    simulate: bool | None = None,
) -> list[str]:
    """Classify any number of articles through the provider's Batch API.

    There are no waves that wait for each other: a new provider job goes up as soon as its tokens
    fit under the limit. The same articles again resume, and cost nothing where they are done.

    Args:
        items: articles with `id`, `title` and `contents`.
        output_dir: where `job_tracking.json` goes, and the articles themselves.
        wait_for_waves: stay until all provider jobs have ended and are collected; else return once
            what fits under the limit is submitted, and the sensor goes on.
        route: models to try, in order; None is the workload's own.
        budget_usd: what it may cost; None is no bound.
        simulate: work in the simulated realm; None leaves it to BATCH_PIPELINE_SIMULATE.

    Returns:
        The ids of the provider jobs (ours), as in `job_tracking.json`.
    """
    knobs = {"lane": "batch", "wait": wait_for_waves, "route": route, "budget_usd": budget_usd}
    large = _Large(_write_items(items, output_dir), Path(output_dir), knobs, simulate, Output())
    result = await asyncio.to_thread(large.by_batch_api)
    return [job.job_id for job in large.status(result).provider_jobs]


async def process_with_realtime_api(
    items: Sequence[Item],
    rpm_limit: float | None = None,
    items_per_day: int | None = None,
    *,
    output_dir: str | Path = "./batch_results",
    route: str | None = None,
    budget_usd: float | None = None,
    simulate: bool | None = None,
) -> list[ClassificationResultFromText]:
    """Classify any number of articles in real time, at once or so many a day.

    Every answer is kept as it comes; the same articles again, another day, go on where it stopped.

    Args:
        items: articles with `id`, `title` and `contents`.
        rpm_limit: requests per minute; None is what the key's tier allows.
        items_per_day: articles a day (UTC); None is no bound.
        output_dir: where `results_<batch>.json` goes, and the articles themselves.
        route: models to try, in order; None is the workload's own.
        budget_usd: what it may cost; None is no bound.
        simulate: work in the simulated realm; None leaves it to BATCH_PIPELINE_SIMULATE.

    Returns:
        The answers so far, in the order of the articles.
    """
    knobs = {
        "lane": "realtime",
        "rate_limit": rpm_limit,
        "items_per_day": items_per_day,
        "route": route,
        "budget_usd": budget_usd,
    }
    large = _Large(_write_items(items, output_dir), Path(output_dir), knobs, simulate, Output())
    result = await asyncio.to_thread(large.in_real_time)
    return [
        ClassificationResultFromText.model_validate(row)
        for row in large.rows(result)
        if row["outcome"] == "succeeded"
    ]


def _write_items(items: Sequence[Item], output_dir: str | Path) -> Path:
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder.resolve() / _ITEMS_FILE
    path.write_bytes(orjson.dumps(list(items)))
    return path


@dataclass
class _Large:
    """One large set: its table, its folder, its run.

    Attributes:
        table: the articles, in any form that the workload reads.
        folder: for what is exported.
        knobs: the run's.
        simulate: the realm asked for.
        voice: where the blocks go.
    """

    table: Path
    folder: Path
    knobs: Mapping[str, Any]
    simulate: bool | None
    voice: Output

    @property
    def realm(self) -> Realm:
        return load_settings().realm(self.simulate)

    @property
    def config(self) -> WorkloadConfig:
        return load_workload_config(WORKLOAD).with_options(dict(self.knobs))

    def by_batch_api(self) -> RunResult:
        """Blocks, the run, the tracking file."""
        self._banner("PROCESSING WITH BATCH API")
        self._plan("batch")
        result = self._run()
        status = self.status(result)
        ended = {"done": "ALL JOBS COLLECTED", "submitted": "ALL JOBS SUBMITTED"}
        self._close(result, status, ended)
        settings = load_settings()
        with open_ledger(settings, result.realm) as ledger:
            batch = require_batch(ledger, result.batch_id)
            path = write_tracking(self.folder, ledger, batch, status.provider_jobs)
        self._say()
        self._say(f"{icon(self.voice, 'status')}Job tracking saved to: {path}")
        return result

    def in_real_time(self) -> RunResult:
        """Blocks, the run, the results file."""
        self._banner("PROCESSING WITH REAL-TIME API")
        self._plan("realtime")
        result = self._run()
        self._close(result, self.status(result), {"done": "DONE"})
        path = self.folder / results_name(result.batch_id)
        columns = load_workload(WORKLOAD).deliverable_columns
        write_json(path, columns, self.rows(result))
        self._say()
        self._say(f"{icon(self.voice, 'save')}Results saved to: {path}")
        return result

    def status(self, result: RunResult) -> LaneStatus:
        """Where the batch stands."""
        with open_ledger(load_settings(), result.realm) as ledger:
            return read_status(ledger, require_batch(ledger, result.batch_id))

    def rows(self, result: RunResult) -> list[dict[str, Any]]:
        """All rows of the batch."""
        with open_ledger(load_settings(), result.realm) as ledger:
            batch = require_batch(ledger, result.batch_id)
            return list(rows_of_job(ledger, batch, batch.batch_id))

    def _run(self) -> RunResult:
        request = self.request
        with ProgressView(self.voice) as view:
            return run_batch(request, on_progress=view.update)

    @property
    def request(self) -> RunRequest:
        """The run."""
        return RunRequest(
            workload=WORKLOAD,
            source=str(self.table),
            knobs=self.knobs,
            simulate=self.realm == "simulated",
        )

    def _plan(self, lane: Lane) -> None:
        """Limits, strategy and cost, from what each article's text comes to."""
        settings = load_settings()
        found, known = estimate_request(
            settings, self.config, self.realm, source=str(self.table), batch_id=None, reading={}
        )
        average = found.expected.input_tokens / found.to_ask if found.to_ask else 0.0
        self.voice.realm_notice(self.realm)
        self._say()
        if lane == "batch":
            self._limits(found, average)
        self._say(f"{icon(self.voice, 'submit')}Processing Strategy:")
        self._say(f"   Total articles: {found.rows:,}")
        if known:
            self._say(f"   Batch {known} goes on: {found.done:,} are done")
        self._say(f"   To ask now: {found.to_ask:,} in {found.requests:,} requests")
        if lane == "batch":
            self._strategy(found, average)
        elif found.bound_by:
            self._say(f"   Time: about {found.seconds / 60:,.0f} min, by {found.bound_by}")
        self._say()
        amount: Amount = found.expected
        self._say(f"{icon(self.voice, 'cost')}Estimated cost: {usd(found.cost_usd)}")
        for label, tokens in (("Input", amount.input_tokens), ("Output", amount.output_tokens)):
            short = f" ({tokens / _MILLION:.1f}M)" if tokens >= _MILLION else ""
            self._say(f"   {label}: {tokens:,} tokens{short}")
        self._say()

    def _limits(self, found: Estimate, average: float) -> None:
        config, ref = self.config, parse_route(found.model.partition("@")[0])[0]
        whole = enqueued_tokens_of(config.with_options({"enqueued_share": 1.0}), ref)
        safe = enqueued_tokens_of(config, ref)
        self._say(f"{icon(self.voice, 'status')}Batch Limits of {ref}:")
        if whole is None or safe is None:
            self._say("   Max enqueued tokens: no limit is known (see `tier`)")
        else:
            self._say(f"   Max enqueued tokens: {whole:,}")
            self._say(f"   Safe enqueued tokens: {safe:,} ({config.enqueued_share:.0%} of limit)")
        self._say(f"   Max open jobs: {config.max_jobs:,}")
        self._say(f"   Avg tokens per article: {average:,.0f} (counted from each article)")
        self._say()

    def _strategy(self, found: Estimate, average: float) -> None:
        config, ref = self.config, parse_route(found.model.partition("@")[0])[0]
        safe = enqueued_tokens_of(config, ref)
        size = config.job_items or MOST_ITEMS
        if config.job_items is None and safe is not None and average:
            size = max(1, min(size, int(safe / JOBS_OF_A_WINDOW / average)))
        self._say(f"   Articles per provider job: at most {size:,}")
        self._say(f"   Provider jobs: about {math.ceil(found.to_ask / size):,}")
        self._say("   No waves: a job goes up as soon as its tokens fit under the limit")

    def _close(self, result: RunResult, status: LaneStatus, ended: Mapping[str, str]) -> None:
        """The end block; its title says how the run ended, by its status."""
        sign = "done" if result.status in ended else "bad"
        self._banner(ended.get(result.status, f"STOPPED: {result.status.upper()}"), sign=sign)
        counts = ", ".join(f"{count:,} {name}" for name, count in status.outcomes.items())
        jobs = status.provider_jobs
        if jobs:
            still_open = sum(job.is_open for job in jobs)
            self._say(f"   Provider jobs: {len(jobs):,} ({still_open:,} still open)")
        self._say(f"   Total articles: {status.total:,} ({counts})")
        self._say(f"   Cost of this run: {usd(usd_of(result.summary.get('cost_nano')))}")
        if result.message:
            self._say(f"   {result.message}")

    def _banner(self, title: str, *, sign: str | None = None) -> None:
        self._say(_RULE)
        self._say(f"{icon(self.voice, sign) if sign else ''}{title}")
        self._say(_RULE)

    def _say(self, text: str = "") -> None:
        say(self.voice, text)


class Mode(StrEnum):
    """How articles travel."""

    BATCH = "batch"
    REALTIME = "realtime"


def main(
    mode: Annotated[Mode, typer.Argument(help="Through the Batch API, or in real time.")],
    file: Annotated[Path, typer.Argument(help="Articles: JSON, JSONL, CSV, TSV or Parquet.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="For what is exported.")] = Path(
        "batch_results"
    ),
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit what fits, and let the sensor go on.")
    ] = False,
    rpm: Annotated[
        float | None, typer.Option("--rpm", help="Requests per minute (realtime).")
    ] = None,
    items_per_day: opt.ItemsPerDay = None,
    route: opt.Route = None,
    budget: opt.Budget = None,
    simulate: opt.Simulate = None,
) -> None:
    """Classify a large set of news articles."""
    knobs = {
        "lane": mode.value,
        "wait": mode is Mode.BATCH and not no_wait,
        "rate_limit": rpm,
        "items_per_day": items_per_day,
        "route": route,
        "budget_usd": budget,
    }
    voice = Output()
    large = _Large(file.expanduser().resolve(), output_dir, knobs, simulate, voice)
    try:
        result = large.by_batch_api() if mode is Mode.BATCH else large.in_real_time()
        code = ended_with(voice, load_settings(), large.request, result)
    except BatchPipelineError as error:
        voice.err.print(f"Error: {error.message}", markup=False, style="red")
        if error.next_step:
            voice.note(error.next_step)
        code = error.exit_code
    if code != OK:
        sys.exit(code)


if __name__ == "__main__":
    typer.run(main)
