"""`BatchProcessor` and `process_batch_workflow`: the guide's names for classifying news.

What belongs here: those names, mapped onto runs and the ledger. What does not: any logic of its
own; new code calls doors.py, or the `batch-pipeline batches` commands.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import ConfigDict

from batch_pipeline.doors import RunRequest, run_batch
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, find_batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.settings import load_settings
from batch_pipeline.sinks.exports import instant, write_requests, write_tracking
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.job_results import named_job, require_ended, rows_of_job
from batch_pipeline.workloads.lane import (
    LaneStatus,
    due_batches,
    last_knobs,
    read_status,
    refresh,
    resolve_job,
)
from batch_pipeline.workloads.news.model import NewsClassification
from batch_pipeline.workloads.runner import ingest_batch, open_ledger

WORKLOAD = "news"
MAX_BATCH_SIZE = 1000

_KEY_VARIABLE = "GOOGLE_API_KEY"
_SUCCEEDED = "JOB_STATE_SUCCEEDED"
_PAUSED = "JOB_STATE_PAUSED"

Item = Mapping[str, Any]
"""An article: `id`, `title` and `contents`."""


class ClassificationResultFromText(NewsClassification):
    """The answer for one article, and which article it is."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    id: str
    url: str | None = None
    page_title: str | None = None
    extracted_characters: int = 0


class BatchProcessor:
    """Classifies news through a provider's Batch API.

    Args:
        gemini_key: used by this process as GOOGLE_API_KEY, and kept nowhere; None leaves the
            environment as it is.
        batch_dir: where batch files and exports go.
        max_batch_size: articles in a batch at most.
        batch_model: a Gemini model, or `provider/model`; None is the workload's own route.
        simulate: work in the simulated realm; None leaves it to BATCH_PIPELINE_SIMULATE.
    """

    def __init__(
        self,
        gemini_key: str | None = None,
        batch_dir: str | Path = "./batch_jobs",
        max_batch_size: int = MAX_BATCH_SIZE,
        batch_model: str | None = None,
        *,
        simulate: bool | None = None,
    ) -> None:
        if gemini_key:
            os.environ[_KEY_VARIABLE] = gemini_key
        self.batch_dir = Path(batch_dir)
        self.max_batch_size = max_batch_size
        self._route = (
            batch_model if batch_model is None or "/" in batch_model else f"google/{batch_model}"
        )
        self._settings = load_settings()
        self._realm = self._settings.realm(simulate)

    async def prepare_batch_from_urls(self, urls: Sequence[str], batch_name: str) -> str:
        """Fetch pages and ingest their text; gives the batch file's path for `submit_batch`.

        Raises:
            ValueError: more than `max_batch_size` URLs.
            UsageError: the name cannot be used, or belongs to another batch.
        """
        self._check_size(len(urls))
        path = self._batch_file(batch_name, ".txt")
        path.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
        await asyncio.to_thread(self._ingest, path)
        return str(path)

    def prepare_batch_from_contents(self, contents: Sequence[Item], batch_name: str) -> str:
        """Ingest articles whose text is at hand; gives the batch file's path for `submit_batch`.

        Raises:
            ValueError: more than `max_batch_size` articles.
            UsageError: the name cannot be used, or belongs to another batch.
        """
        self._check_size(len(contents))
        path = self._batch_file(batch_name, ".json")
        path.write_bytes(orjson.dumps(list(contents), option=orjson.OPT_INDENT_2))
        self._ingest(path)
        return str(path)

    def submit_batch(self, batch_file_path: str | Path) -> str:
        """Submit a prepared batch; gives its job id, which is the batch's name.

        Beside the batch file it leaves the request lines as sent (`<name>.jsonl`), what each of
        them asks about (`<name>_mapping.json`) and `job_tracking.json`.
        """
        path = Path(batch_file_path)
        with self._ledger() as ledger, ledger.read() as connection:
            known = find_batch(connection, ledger.realm, path.stem)
        self._run(path.stem, {"lane": "batch", "route": self._route}, None if known else path)
        with self._ledger() as ledger:
            batch = resolve_job(ledger, path.stem)
            jobs = read_status(ledger, batch).provider_jobs
            write_requests(path.parent, ledger, batch, jobs)
            write_tracking(path.parent, ledger, batch, jobs)
        return batch.batch_id

    def check_status(self, job_id: str) -> dict[str, Any]:
        """Where a job stands, as its provider says now.

        Returns:
            `job_id`, `state` (`JOB_STATE_...`), `completed_count`, `total_count`,
            `progress_percent`, `created_at`, `updated_at` and `message`.
        """
        with self._ledger() as ledger:
            batch = resolve_job(ledger, job_id)
            refresh(self._settings, ledger, batch)
            return _status_document(read_status(ledger, batch))

    def wait_for_completion(
        self, job_id: str, poll_interval: float = 60.0, max_wait_time: float = 3600.0
    ) -> bool:
        """Stay until a job has ended, collecting what its provider is done with.

        Args:
            job_id: the job.
            poll_interval: seconds between looks.
            max_wait_time: seconds after which to give up; the job goes on.

        Returns:
            True when every article succeeded or was skipped; False after any other end, when
            nothing more would happen by itself (a budget is used up), and when time is up.
        """
        until = time.monotonic() + max_wait_time
        while True:
            status = self._look(job_id)
            if status.ended or status.state == _PAUSED:
                return status.state == _SUCCEEDED
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(poll_interval, left))

    def retrieve_results(self, job_id: str, batch_name: str) -> list[ClassificationResultFromText]:
        """The answers of a job that has ended, in the order of its articles.

        Args:
            job_id: the job; of a provider job, only what it answered.
            batch_name: its batch.

        Raises:
            NotReadyError: the job has not ended.
            UsageError: there is no such job, or the batch is another one.
        """
        with self._ledger() as ledger:
            batch = named_job(ledger, job_id, batch_name)
            require_ended(read_status(ledger, batch))
            return [
                ClassificationResultFromText.model_validate(row)
                for row in rows_of_job(ledger, batch, job_id)
                if row["outcome"] == "succeeded"
            ]

    def _check_size(self, count: int) -> None:
        if count > self.max_batch_size:
            raise ValueError(
                f"{count:,} articles are more than max_batch_size ({self.max_batch_size:,}): split "
                "them, or use process_with_batch_api, which takes any number."
            )

    def _batch_file(self, name: str, ending: str) -> Path:
        self.batch_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.batch_dir.resolve() / f"{Path(name).name}{ending}"

    def _ledger(self) -> Ledger:
        return open_ledger(self._settings, self._realm)

    def _ingest(self, path: Path) -> Batch:
        with self._ledger() as ledger:
            config = load_workload_config(WORKLOAD)
            return ingest_batch(ledger, config, str(path), batch_id=path.stem)[0]

    def _look(self, job_id: str) -> LaneStatus:
        """Ask the provider, do what is due (collect, submit what waits for room), and look."""
        with self._ledger() as ledger:
            batch = resolve_job(ledger, job_id)
            refresh(self._settings, ledger, batch)
            due = any(one.batch.batch_id == batch.batch_id for one in due_batches(ledger, WORKLOAD))
            knobs = last_knobs(ledger, batch)
        if due:
            self._run(batch.batch_id, knobs)
        with self._ledger() as ledger:
            return read_status(ledger, batch)

    def _run(self, batch_id: str, knobs: Mapping[str, Any], source: Path | None = None) -> None:
        request = RunRequest(
            workload=WORKLOAD,
            source=None if source is None else str(source),
            batch_id=batch_id,
            knobs=knobs,
            simulate=self._realm == "simulated",
        )
        result = run_batch(request)
        if result.status == "stopped":
            raise UsageError(f"Batch {batch_id} was not submitted: {result.message}")


async def process_batch_workflow(
    items: Sequence[str] | Sequence[Item],
    batch_name: str | None = None,
    *,
    gemini_key: str | None = None,
    batch_dir: str | Path = "./batch_jobs",
    poll_interval: float = 60.0,
    max_wait_time: float = 86_400.0,
    simulate: bool | None = None,
) -> list[ClassificationResultFromText]:
    """Prepare, submit, wait and retrieve in one call.

    Args:
        items: URLs, or articles with `id`, `title` and `contents`.
        batch_name: the batch's name; None is `batch_<date>_<time>` (UTC).
        gemini_key: as for BatchProcessor.
        batch_dir: as for BatchProcessor.
        poll_interval: seconds between looks.
        max_wait_time: seconds after which to give up.
        simulate: as for BatchProcessor.

    Raises:
        NotReadyError: time was up; the job goes on, and `retrieve_results` has them later.
    """
    name = batch_name or datetime.now(UTC).strftime("batch_%Y%m%d_%H%M%S")
    processor = BatchProcessor(gemini_key, batch_dir, len(items), simulate=simulate)
    urls = [item for item in items if isinstance(item, str)]
    if urls:
        path = await processor.prepare_batch_from_urls(urls, name)
    else:
        contents = [item for item in items if not isinstance(item, str)]
        path = await asyncio.to_thread(processor.prepare_batch_from_contents, contents, name)
    job_id = await asyncio.to_thread(processor.submit_batch, path)
    await asyncio.to_thread(processor.wait_for_completion, job_id, poll_interval, max_wait_time)
    return processor.retrieve_results(job_id, name)


def _status_document(status: LaneStatus) -> dict[str, Any]:
    return {
        "job_id": status.job_id,
        "state": status.state,
        "completed_count": status.completed,
        "total_count": status.total,
        "progress_percent": status.percent,
        "created_at": instant(status.created_at),
        "updated_at": instant(status.updated_at),
        "message": status.message,
    }
