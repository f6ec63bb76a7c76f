"""Files about provider jobs: `job_tracking.json`, the lines as sent, and what they asked about.

What belongs here: these exports and their words. What does not: the ledger, which stays the truth
(nothing reads these files back), and deliverables (files.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from batch_pipeline.engine.lanes.desk import model_of
from batch_pipeline.ledger.batches import Batch, stream_items
from batch_pipeline.ledger.jobs import ProviderJob, bodies_of, lines_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.providers.base import LlmRequest, WireCall
from batch_pipeline.providers.batch_clients import open_batch_api
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.sinks.files import replaced_file

TRACKING = "job_tracking.json"

REST = ".rest"
"""Ends the job id under which the tracking lists rows that no provider job answered."""

_STATE = "JOB_STATE_"
_NOT_THERE_YET = frozenset({JobState.INTENDED, JobState.UPLOADED, JobState.CREATING})
_REMOTE_WORDS = {"gone": "EXPIRED", "": "PENDING", "unknown": "RUNNING"}
_URL = "url"


def results_name(batch_id: str) -> str:
    """File name of a batch's results, as the guide has it."""
    return f"results_{batch_id}.json"


def state_word(job: ProviderJob) -> str:
    """Where a job stands in the words of Gemini's Batch API, for every provider."""
    if job.state in _NOT_THERE_YET:
        return f"{_STATE}PENDING"
    if job.state is JobState.ABANDONED:
        return f"{_STATE}FAILED"
    return _STATE + _REMOTE_WORDS.get(job.remote_state, job.remote_state.upper())


def instant(at: float | None) -> str | None:
    """A ledger time for JSON: `2026-11-21T14:00:05Z`."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tracking(batch: Batch, jobs: Sequence[ProviderJob], rest: int) -> list[dict[str, Any]]:
    """The entries of `job_tracking.json`, failed submissions included.

    Args:
        batch: the batch.
        jobs: its provider jobs.
        rest: rows that no provider job answered; they have an entry of their own, so that the
            results of all entries are the rows of the batch, each once.
    """
    entries = [_entry(batch, number, job) for number, job in enumerate(jobs, start=1)]
    if rest:
        entries.append(
            {
                **dict.fromkeys(entries[0] if entries else ()),
                "wave": 1,
                "batch_num": len(jobs) + 1,
                "batch_name": batch.batch_id,
                "job_id": f"{batch.batch_id}{REST}",
                "item_count": rest,
            }
        )
    return entries


def _entry(batch: Batch, number: int, job: ProviderJob) -> dict[str, Any]:
    # New jobs go up as soon as there is room: there is one wave, and it rolls.
    return {"wave": 1, "batch_num": number, "batch_name": batch.batch_id, **job_document(job)}


def job_document(job: ProviderJob) -> dict[str, Any]:
    """A provider job as JSON shows it."""
    return {
        "job_id": job.job_id,
        "item_count": job.item_count,
        "provider": job.provider,
        "model": model_of(job),
        "remote_name": job.remote_name,
        "state": state_word(job),
        "request_count": job.line_count,
        "succeeded": job.succeeded,
        "failed": job.failed,
        "tokens": job.tokens,
        "created_at": instant(job.created_at),
        "submitted_at": instant(job.submitted_at),
        "ended_at": instant(job.ended_at),
        "collected_at": instant(job.collected_at),
        "error_code": job.error_code,
        "error": job.error,
    }


def job_of_attempts(ledger: Ledger, jobs: Sequence[ProviderJob]) -> dict[str, str]:
    """Of each line of these jobs, the job's id by the attempt's."""
    with ledger.read() as connection:
        return {
            line.attempt_id: job.job_id for job in jobs for line in lines_of(connection, job.job_id)
        }


def write_tracking(folder: Path, ledger: Ledger, batch: Batch, jobs: Sequence[ProviderJob]) -> Path:
    """Write `job_tracking.json` of a batch; gives its path."""
    known = job_of_attempts(ledger, jobs)
    rest = sum(item.attempt_id not in known for item in stream_items(ledger, batch.batch_id))
    return _write_json(folder / TRACKING, tracking(batch, jobs, rest))


def write_requests(
    folder: Path, ledger: Ledger, batch: Batch, jobs: Sequence[ProviderJob]
) -> list[Path]:
    """Write `<batch>.jsonl`, each line as it was sent, and `<batch>_mapping.json`.

    The mapping gives for each line's name its job and the rows it asks about: row number, id, and
    URL where the table has one.
    """
    requests = folder / f"{batch.batch_id}.jsonl"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced_file(requests) as temporary, temporary.open("wb") as stream:
        for job in jobs:
            stream.writelines(text + b"\n" for text in _lines(ledger, job))
    names = {item.ordinal: _who(item.number, item.item_id, item.row) for item in
             stream_items(ledger, batch.batch_id)}  # fmt: skip
    mapping: dict[str, Any] = {}
    with ledger.read() as connection:
        for job in jobs:
            for line in lines_of(connection, job.job_id):
                mapping[line.attempt_id] = {
                    "job_id": job.job_id,
                    "items": [names[ordinal] for ordinal, _ in line.members],
                }
    return [requests, _write_json(folder / f"{batch.batch_id}_mapping.json", mapping)]


def _lines(ledger: Ledger, job: ProviderJob) -> Iterator[bytes]:
    api = open_batch_api(job.provider, key="", base_url="")
    empty = LlmRequest(model=model_of(job), system="", user="")
    url = PROVIDERS[job.provider].codec.build(empty, key="", base_url="").url
    with ledger.read() as connection:
        bodies = bodies_of(connection, job.job_id)
    for name, body in bodies:
        yield api.line(name, WireCall(url, {}, body))


def _who(number: int, item_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    who: dict[str, Any] = {"row": number, "id": item_id}
    if url := row.get(_URL):
        who["url"] = url
    return who


def _write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced_file(path) as temporary:
        temporary.write_bytes(
            orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
    return path
