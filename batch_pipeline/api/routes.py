"""The endpoints: what is asked, what is answered, and which status says so.

What belongs here: paths, parameters and the bounded wait. What does not: the work (submitting.py,
reading.py), who may ask (guard.py).
"""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, File, Form, Path, Query, Request, Response, Security, UploadFile
from fastapi.security import HTTPBearer
from pydantic import Field, TypeAdapter, ValidationError

from batch_pipeline.api import inputs
from batch_pipeline.api.models import (
    MOST_ITEMS,
    MOST_OPTIONS,
    MOST_ROWS,
    NEWS,
    BatchName,
    Cancelled,
    ContentsSubmission,
    Health,
    Index,
    Jobs,
    JobState,
    JobStatus,
    Options,
    ReadingOptions,
    ReferenceSubmission,
    Results,
    RunOptions,
    RunStatus,
    RunSubmission,
    Submitted,
    UrlSubmission,
    WorkloadName,
)
from batch_pipeline.api.office import Office
from batch_pipeline.api.problems import ApiError, not_found, problem_responses
from batch_pipeline.api.reading import links_of
from batch_pipeline.api.records import RunRecord
from batch_pipeline.api.reviewing import add_reviewing
from batch_pipeline.ledger.batches import find_batch
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.model import BatchReport

_INGESTS_AT_ONCE = 4
_LOOK_S = 0.25
_READ_OPTIONS: TypeAdapter[Options] = TypeAdapter(
    Annotated[Options, Field(max_length=MOST_OPTIONS)]
)

JobId = Annotated[
    str,
    Path(
        description="Ours; also behind `batch_jobs/`, or a provider's own name for one of its "
        "jobs. Slashes may stand as they are or as %2F.",
        examples=["my_batch", "batch_jobs/my_batch", "batches/abc123"],
    ),
]
WaitS = Annotated[
    float,
    Query(ge=0, le=30, description="With `wait_for_completion`: seconds to wait at most."),
]
Offset = Annotated[int, Query(ge=0, le=MOST_ROWS, description="Entries to leave out.")]

# The guard asks for the token; this says so in the OpenAPI document.
_token = HTTPBearer(
    auto_error=False,
    bearerFormat="opaque",
    scheme_name="token",
    description="BATCH_PIPELINE_API_TOKEN of the server; not asked for on loopback without one.",
)

_TAKEN: dict[int | str, dict[str, Any]] = {
    200: {"model": Submitted, "description": "It has ended within the wait."},
    202: {
        "model": Submitted,
        "description": "It is on disk and will be run.",
        "headers": {"Location": {"description": "Its status.", "schema": {"type": "string"}}},
    },
}
_SUBMITTING = {**_TAKEN, **problem_responses(400, 404, 409, 413, 422, 429)}


def build_router(office: Office) -> APIRouter:
    """All endpoints of a server."""
    router = APIRouter(dependencies=[Security(_token)])
    _add_submitting(router, office)
    _add_reading(router, office)
    _add_runs(router, office)
    add_reviewing(router, office)
    return router


def build_public_router(office: Office) -> APIRouter:
    """The one endpoint that asks for no token; the page of the documents is another."""
    router = APIRouter()
    _add_health(router, office)
    return router


# ---- submitting ----------------------------------------------------------------------------------


def _add_submitting(router: APIRouter, office: Office) -> None:
    submissions = office.submissions
    limiter = CapacityLimiter(_INGESTS_AT_ONCE)

    @router.post(
        "/batch/submit",
        tags=["batch"],
        status_code=202,
        response_model=Submitted,
        responses=_SUBMITTING,
        operation_id="submit_urls",
        summary="Submit URLs: pages are fetched, then classified",
    )
    async def submit_urls(
        body: UrlSubmission, response: Response, request: Request, wait_s: WaitS = 20.0
    ) -> Submitted:
        def take() -> RunRecord:
            submissions.check_room()
            given = inputs.keep_urls(submissions.uploads, body.batch_name, body.urls)
            return submissions.submit(
                NEWS, given, name=body.batch_name, shown="the list", knobs=body.knobs()
            )

        record = await run_sync(take, limiter=limiter)
        return await _answer(office, request, response, record, body.wait_for_completion, wait_s)

    @router.post(
        "/batch/submit-contents",
        tags=["batch"],
        status_code=202,
        response_model=Submitted,
        responses=_SUBMITTING,
        operation_id="submit_contents",
        summary="Submit articles that are known already",
    )
    async def submit_contents(
        body: ContentsSubmission, response: Response, request: Request, wait_s: WaitS = 20.0
    ) -> Submitted:
        def take() -> RunRecord:
            submissions.check_room()
            rows = [article.model_dump(exclude_unset=True) for article in body.contents]
            given = inputs.keep_rows(submissions.uploads, body.batch_name, rows)
            return submissions.submit(
                NEWS, given, name=body.batch_name, shown="the contents", knobs=body.knobs()
            )

        record = await run_sync(take, limiter=limiter)
        return await _answer(office, request, response, record, body.wait_for_completion, wait_s)

    @router.post(
        "/batch/submit-file",
        tags=["batch"],
        status_code=202,
        response_model=Submitted,
        responses=_SUBMITTING,
        operation_id="submit_file",
        summary="Upload a table: JSON, JSONL, CSV, TSV, Parquet, or a .txt list of URLs",
    )
    async def submit_file(
        response: Response,
        request: Request,
        file: Annotated[UploadFile, File(description="The table; its ending names the format.")],
        batch_name: Annotated[BatchName | None, Form()] = None,
        workload: Annotated[WorkloadName, Form()] = NEWS,
        wait_for_completion: Annotated[bool, Form()] = False,
        lane: Annotated[Literal["realtime", "batch", "auto"] | None, Form()] = None,
        route: Annotated[str | None, Form(max_length=500)] = None,
        budget_usd: Annotated[float | None, Form(gt=0, le=1_000_000)] = None,
        deadline: Annotated[str | None, Form(max_length=40)] = None,
        limit: Annotated[int | None, Form(ge=1, le=MOST_ROWS)] = None,
        row_routes: Annotated[
            bool | None, Form(description="`false`: all rows take `route`.")
        ] = None,
        options: Annotated[
            str | None,
            Form(
                max_length=10_000,
                description="The workload's own options, as a JSON object.",
                examples=['{"strategy": "single_shot"}'],
            ),
        ] = None,
        encoding: Annotated[str | None, Form(max_length=40)] = None,
        delimiter: Annotated[str | None, Form(min_length=1, max_length=1)] = None,
        reading: Annotated[
            str | None,
            Form(
                max_length=10_000,
                description="How the workload is to read the table, as a JSON object.",
                examples=['{"category": "001_cybersecurity"}'],
            ),
        ] = None,
        wait_s: WaitS = 20.0,
    ) -> Submitted:
        run = RunOptions(
            lane=lane,
            route=route,
            budget_usd=budget_usd,
            deadline=deadline,
            limit=limit,
            row_routes=row_routes,
            options=_options("options", options, '{"strategy": "single_shot"}'),
        )
        how = ReadingOptions(
            encoding=encoding,
            delimiter=delimiter,
            reading=_options("reading", reading, '{"category": "001_cybersecurity"}'),
        )
        shown = (file.filename or "the file").replace("\\", "/").rpartition("/")[2]

        def take() -> RunRecord:
            submissions.check_room()
            submissions.check(workload, run.knobs())
            given = inputs.keep_upload(submissions.uploads, batch_name, shown, file.file)
            return submissions.submit(
                workload,
                given,
                name=batch_name,
                shown=shown,
                knobs=run.knobs(),
                reading=how.how_to_read(),
            )

        record = await run_sync(take, limiter=limiter)
        return await _answer(office, request, response, record, wait_for_completion, wait_s)

    @router.post(
        "/batch/submit-reference",
        tags=["batch"],
        status_code=202,
        response_model=Submitted,
        responses=_SUBMITTING,
        operation_id="submit_reference",
        summary="Submit a table that lies on the server, inside one of its allowed folders",
    )
    async def submit_reference(
        body: ReferenceSubmission, response: Response, request: Request, wait_s: WaitS = 20.0
    ) -> Submitted:
        def take() -> RunRecord:
            submissions.check_room()
            return submissions.submit(
                body.workload,
                inputs.find_reference(office.config.roots, body.path),
                name=body.batch_name,
                shown=body.path,
                knobs=body.knobs(),
                reading=body.how_to_read(),
            )

        record = await run_sync(take, limiter=limiter)
        return await _answer(office, request, response, record, body.wait_for_completion, wait_s)

    @router.post(
        "/runs",
        tags=["runs"],
        status_code=202,
        response_model=Submitted,
        responses=_SUBMITTING,
        operation_id="start_run",
        summary="Run any workload: new rows, a file on the server, or a batch of before",
    )
    async def start_run(
        body: RunSubmission, response: Response, request: Request, wait_s: WaitS = 20.0
    ) -> Submitted:
        rows = body.rows if body.jobs is None else body.jobs
        if sum(given is not None for given in (body.batch, body.path, body.rows, body.jobs)) != 1:
            raise ApiError(
                422,
                "invalid",
                "A run needs exactly one of batch, path, rows and jobs.",
                "Give `batch` for one that was ingested before, else `path`, `rows` or `jobs`.",
            )

        def take() -> RunRecord:
            submissions.check_room()
            if body.batch is not None:
                return submissions.run_again(body.workload, body.batch, body.knobs())
            if rows is not None:
                given = inputs.keep_rows(submissions.uploads, body.batch_name, rows)
                shown = "the rows" if body.jobs is None else "the jobs"
            else:
                shown = body.path or ""
                given = inputs.find_reference(office.config.roots, shown)
            return submissions.submit(
                body.workload,
                given,
                name=body.batch_name,
                shown=shown,
                knobs=body.knobs(),
                reading=body.how_to_read(),
            )

        record = await run_sync(take, limiter=limiter)
        return await _answer(office, request, response, record, body.wait_for_completion, wait_s)


def _options(field: str, text: str | None, example: str) -> Options | None:
    """The options of a form's field.

    Raises:
        ApiError: it is no JSON object of options.
    """
    if text is None:
        return None
    try:
        return _READ_OPTIONS.validate_json(text)
    except ValidationError as error:
        said = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise ApiError(
            422,
            "invalid",
            f"The field {field} is no JSON object of options: {said}.",
            f"Write it like {example}.",
        ) from error


async def _answer(
    office: Office,
    request: Request,
    response: Response,
    record: RunRecord,
    wait: bool,
    wait_s: float,
) -> Submitted:
    """202 and where to look; 200 where a job that is waited for has ended in time."""
    job_id = record.job_id
    links = links_of(job_id, record.run_id)
    status = "SUBMITTED"
    message = f"Batch submitted. Use GET {links.status} to check progress"
    count = record.item_count
    if wait:
        job = await _ended(office, request, job_id, wait_s)
        status, count = job.state, job.total_count
        if job.done:
            response.status_code = 200
            message = job.message or f"Ended. Use GET {links.results} to read the results"
    response.headers["Location"] = links.status
    return Submitted(
        job_id=job_id,
        run_id=record.run_id,
        batch_name=job_id,
        workload=record.workload,
        item_count=count,
        url_count=count,
        status=status,  # type: ignore[arg-type]  # pydantic checks the word
        message=message,
        simulated=office.desk.simulated,
        links=links,
    )


async def _ended(office: Office, request: Request, job_id: str, wait_s: float) -> JobStatus:
    """The job's status once it has ended, or after `wait_s` seconds at most."""
    until = time.monotonic() + wait_s
    while True:
        status = await run_sync(lambda: office.desk.status(office.desk.find(job_id)))
        if status.done or time.monotonic() >= until or await request.is_disconnected():
            return status
        await asyncio.sleep(_LOOK_S)


# ---- reading and cancelling ----------------------------------------------------------------------


def _add_reading(router: APIRouter, office: Office) -> None:
    desk = office.desk

    @router.get(
        "/batch/status/{job_id:path}",
        tags=["batch"],
        responses=problem_responses(404, 422),
        operation_id="get_status",
        summary="Where a job stands now",
    )
    def get_status(job_id: JobId) -> JobStatus:
        return desk.status(desk.find(job_id))

    @router.get(
        "/batch/results/{job_id:path}/{batch_name}",
        tags=["batch"],
        responses=problem_responses(400, 404, 422),
        operation_id="get_results",
        summary="The rows of a job that has ended, page by page",
    )
    def get_results(
        job_id: JobId,
        batch_name: Annotated[str, Path(description="The last part of the path.")],
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = MOST_ITEMS,
        partial: Annotated[
            bool, Query(description="Give what there is while the job goes on.")
        ] = False,
    ) -> Results:
        job = desk.find(job_id)
        if batch_name != job.job_id:
            raise not_found(
                f"Job {job_id!r} is the batch {job.job_id!r}, not {batch_name!r}.",
                f"GET {links_of(job.job_id, '').results}.",
            )
        return desk.results(job, job_id, offset, limit, partial=partial)

    @router.get(
        "/batch/jobs",
        tags=["batch"],
        responses=problem_responses(422),
        operation_id="list_jobs",
        summary="All jobs, newest first, each with its state of today",
    )
    def list_jobs(
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 100,
        workload: Annotated[str | None, Query(max_length=100)] = None,
        state: Annotated[JobState | None, Query()] = None,
    ) -> Jobs:
        return desk.jobs(offset, limit, workload, state)

    @router.post(
        "/batch/cancel/{job_id:path}",
        tags=["batch"],
        responses=problem_responses(404, 409, 422),
        operation_id="cancel_job",
        summary="Cancel a job; finished rows are kept",
    )
    def cancel_job(job_id: JobId) -> Cancelled:
        job = desk.find(job_id)
        asked, message = office.cancel(job)
        state = desk.status(desk.find(job.job_id), ask_providers=False).state
        return Cancelled(job_id=job.job_id, state=state, provider_jobs=asked, message=message)

    @router.get(
        "/batches/{batch_id}/report",
        tags=["batch"],
        responses=problem_responses(404, 422),
        operation_id="get_report",
        summary="A batch's report: rows, money, tokens, latency, errors (docs/report.md)",
    )
    def get_report(batch_id: str) -> BatchReport:
        with office.ledger.read() as connection:
            batch = find_batch(connection, office.ledger.realm, batch_id)
        if batch is None:
            raise not_found(f"There is no batch {batch_id!r}.")
        return build_report(office.ledger, batch)


# ---- runs and the server -------------------------------------------------------------------------


def _add_runs(router: APIRouter, office: Office) -> None:
    @router.get(
        "/runs/{run_id}",
        tags=["runs"],
        responses=problem_responses(404, 422),
        operation_id="get_run",
        summary="One run of a job",
    )
    def get_run(run_id: str) -> RunStatus:
        return office.desk.run(run_id)


def _add_health(router: APIRouter, office: Office) -> None:
    @router.get(
        "/health",
        tags=["server"],
        responses=problem_responses(),
        operation_id="get_health",
        summary="Whether the server and its ledger work",
    )
    def get_health() -> Health:
        with office.ledger.read() as connection:
            office.ledger.now(connection)
            find_batch(connection, office.ledger.realm, "-")
        waiting, running = office.records.counts()
        return Health(
            status="ok",
            version=version("batch-pipeline"),
            simulated=office.desk.simulated,
            waiting=waiting,
            running=running,
        )


def build_index_router(office: Office, endpoints: list[str]) -> APIRouter:
    """`/`: what this is, and where everything is."""
    router = APIRouter(dependencies=[Security(_token)])

    @router.get(
        "/",
        tags=["server"],
        responses=problem_responses(),
        operation_id="get_index",
        summary="What is here",
    )
    def get_index() -> Index:
        return Index(
            name="batch_pipeline",
            version=version("batch-pipeline"),
            simulated=office.desk.simulated,
            docs="/docs",
            openapi="/openapi.json",
            endpoints=endpoints,
        )

    return router
