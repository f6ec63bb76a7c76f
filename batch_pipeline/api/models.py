"""What goes in and out over HTTP, as pydantic models; the OpenAPI document is made of them.

What belongs here: fields, bounds, examples. What does not: what is done with them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_ITEMS = 1_000
MOST_ROWS = 2**31 - 1
MOST_OPTIONS = 50

NEWS = "news"

JobState = Literal[
    "JOB_STATE_PENDING",
    "JOB_STATE_QUEUED",
    "JOB_STATE_RUNNING",
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLING",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_PAUSED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_UPDATING",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
    "JOB_STATE_UNSPECIFIED",
]

GOING_ON = frozenset(
    {
        "JOB_STATE_PENDING",
        "JOB_STATE_QUEUED",
        "JOB_STATE_RUNNING",
        "JOB_STATE_CANCELLING",
        "JOB_STATE_UPDATING",
    }
)
"""States that change by themselves; every other one is an end."""

BatchName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,119}$",
        description="Name of the batch, which is its job id too: letters, digits, - and _.",
        examples=["nov-news"],
    ),
]
Url = Annotated[
    str,
    Field(
        pattern=r"^https?://[^\s#][^\s]*$",
        max_length=2_048,
        examples=["https://example.com/article1"],
    ),
]
WorkloadName = Annotated[
    str, Field(max_length=100, description="What to do with the table.", examples=["news"])
]

Options = dict[
    Annotated[str, Field(max_length=100)],
    Annotated[str, Field(max_length=500)] | bool | int | float | None,
]


class RunOptions(BaseModel):
    """How to run a batch; what is left out is as in the workload's defs.yaml."""

    model_config = ConfigDict(extra="forbid")

    lane: Literal["realtime", "batch", "auto"] | None = Field(
        default=None,
        description="How calls travel: real time, the provider's Batch API, or by price and time.",
    )
    route: str | None = Field(
        default=None,
        max_length=500,
        description="Models to try, in order: `provider/model, provider/model`.",
        examples=["google/gemini-3.1-flash-lite"],
    )
    budget_usd: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="What all runs of the batch may cost together, in USD.",
    )
    deadline: str | None = Field(
        default=None,
        max_length=40,
        description="For lane `auto`: when every row must have ended, as `8h` or a UTC time.",
        examples=["8h"],
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=MOST_ROWS,
        description="Ask about at most so many rows; the rest stay pending.",
    )
    row_routes: bool | None = Field(
        default=None,
        description="`false`: all rows take `route`, also those that name one of their own.",
    )
    options: Options | None = Field(
        default=None,
        max_length=MOST_OPTIONS,
        description="What only this workload knows; for articles `strategy`, `country`, "
        "`use_ahrefs`, `enable_llm_profiling`, which win over what the rows say.",
        examples=[{"strategy": "single_shot", "use_ahrefs": False}],
    )

    def knobs(self) -> dict[str, Any]:
        """The options that were given."""
        found = {name: getattr(self, name) for name in RunOptions.model_fields}
        return {name: value for name, value in found.items() if value is not None}


class ReadingOptions(BaseModel):
    """How to read a table; what is left out is found out."""

    model_config = ConfigDict(extra="forbid")

    encoding: str | None = Field(default=None, max_length=40, description="Where it is not UTF-8.")
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    reading: Options | None = Field(
        default=None,
        max_length=MOST_OPTIONS,
        description="What only this workload knows; for flashcards `category`, `domain`, "
        "`subdomain`, for brands `worksheet`.",
        examples=[{"category": "001_cybersecurity"}],
    )

    def how_to_read(self) -> dict[str, Any]:
        """All of it as one, None where nothing was said."""
        return {
            **(self.reading or {}),
            "encoding": self.encoding,
            "delimiter": self.delimiter,
        }


class _Submission(RunOptions):
    batch_name: BatchName | None = Field(
        default=None, description="Left out: one is made of the content."
    )
    wait_for_completion: bool = Field(
        default=False,
        description="Answer when the batch has ended, or after `wait_s` seconds: 202 with a "
        "Location then.",
    )


class UrlSubmission(_Submission):
    """Pages to be fetched and classified."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "urls": ["https://example.com/article1", "https://example.com/article2"],
                "batch_name": "my_batch",
                "wait_for_completion": False,
            }
        }
    )

    urls: list[Url] = Field(min_length=1, max_length=MOST_ITEMS)


class Article(BaseModel):
    """An article that is known already. Other fields are kept with its row."""

    model_config = ConfigDict(extra="allow")

    id: str | int | None = Field(
        default=None, description="Your id; it comes back with the result.", examples=["article_1"]
    )
    title: str = Field(default="", max_length=10_000, examples=["Article Title"])
    contents: str = Field(max_length=5_000_000, examples=["Full article text..."])


class ContentsSubmission(_Submission):
    """Articles to be classified."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "contents": [{"id": "1", "title": "Test", "contents": "Test content..."}],
                "batch_name": "test_batch",
                "wait_for_completion": False,
            }
        }
    )

    contents: list[Article] = Field(min_length=1, max_length=MOST_ITEMS)


class ReferenceSubmission(_Submission, ReadingOptions):
    """A table on the server's disk."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"path": "nov.parquet", "batch_name": "nov-news"}}
    )

    path: str = Field(
        min_length=1,
        max_length=4_096,
        description="Inside one of the server's allowed folders; relative to the first of them, "
        "or absolute.",
        examples=["nov.parquet"],
    )
    workload: WorkloadName = NEWS


class RunSubmission(RunOptions, ReadingOptions):
    """A run of any workload: of rows given here, of a file on the server, or of a known batch."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "workload": "roadmaps",
                "batch_name": "week-1",
                "rows": [{"Topic": "Indexes", "Description": "What they cost."}],
                "budget_usd": 1.5,
            }
        }
    )

    workload: WorkloadName
    batch: BatchName | None = Field(
        default=None, description="A batch that was ingested before: run what is left of it."
    )
    path: str | None = Field(
        default=None, min_length=1, max_length=4_096, description="As in /batch/submit-reference."
    )
    rows: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, max_length=MOST_ITEMS, description="Rows of a new batch."
    )
    jobs: list[dict[str, Any]] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_ITEMS,
        description="The same as `rows`, by the name that a file of article jobs has for them: "
        "such a file with `workload` beside its `jobs` is a submission.",
    )
    batch_name: BatchName | None = Field(default=None, description="Of a new batch.")
    wait_for_completion: bool = False


class Links(BaseModel):
    """Where to go on."""

    status: str
    results: str
    run: str
    report: str


class Submitted(BaseModel):
    """What was taken."""

    job_id: str = Field(description="Ours; known before anything goes to a provider.")
    run_id: str = Field(description="This run of the job.")
    batch_name: str
    workload: str
    item_count: int = Field(description="URLs or rows; lines of a file that is yet to be read.")
    url_count: int = Field(description="The same, under the name that clients of old know.")
    status: Literal["SUBMITTED"] | JobState = Field(
        description="`SUBMITTED`; after a wait, the job's state."
    )
    message: str
    simulated: bool
    links: Links

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "job_id": "my_batch",
                "run_id": "my_batch.r0001",
                "batch_name": "my_batch",
                "workload": "news",
                "item_count": 2,
                "url_count": 2,
                "status": "SUBMITTED",
                "message": "Batch submitted. Use GET /batch/status/my_batch to check progress",
                "simulated": True,
                "links": {
                    "status": "/batch/status/my_batch",
                    "results": "/batch/results/my_batch/my_batch",
                    "run": "/runs/my_batch.r0001",
                    "report": "/batches/my_batch/report",
                },
            }
        }
    )


class ProviderJobView(BaseModel):
    """A job at a provider's Batch API."""

    job_id: str = Field(description="Ours, for example `nov-news.j0001`.")
    provider: str
    model: str
    name: str | None = Field(description="The provider's own name, once it has one.")
    state: str = Field(description="Where we stand with it.")
    remote_state: str = Field(description="What the provider says.")
    item_count: int
    submitted_at: str | None
    ended_at: str | None
    error: str


class JobStatus(BaseModel):
    """Where a job stands now."""

    job_id: str
    batch_name: str
    workload: str
    state: JobState
    done: bool = Field(description="Whether it has ended, well or not.")
    completed_count: int = Field(description="Rows that have ended.")
    total_count: int
    progress_percent: float = Field(description="0 to 100, one decimal.")
    outcomes: dict[str, int] = Field(description="Rows by how they ended.")
    created_at: str
    updated_at: str
    message: str
    run_id: str | None = Field(description="Its latest run by this API.")
    simulated: bool
    provider_jobs: list[ProviderJobView]

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "job_id": "my_batch",
                "batch_name": "my_batch",
                "workload": "news",
                "state": "JOB_STATE_RUNNING",
                "done": False,
                "completed_count": 45,
                "total_count": 100,
                "progress_percent": 45.0,
                "outcomes": {"succeeded": 45, "pending": 55},
                "created_at": "2026-11-22T10:30:00Z",
                "updated_at": "2026-11-22T10:35:00Z",
                "message": "",
                "run_id": "my_batch.r0001",
                "simulated": True,
                "provider_jobs": [],
            }
        }
    )


class Results(BaseModel):
    """A page of a job's rows, in the order of the input."""

    job_id: str
    batch_name: str
    state: JobState
    results: list[dict[str, Any]] = Field(
        description="The workload's columns, and `item_id`, `outcome` and `error` of each row."
    )
    total_count: int = Field(description="Rows of the batch.")
    offset: int
    next: str | None = Field(description="The next page; null on the last one.")
    simulated: bool

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "job_id": "my_batch",
                "batch_name": "my_batch",
                "state": "JOB_STATE_SUCCEEDED",
                "results": [
                    {
                        "item_id": "article_1",
                        "outcome": "succeeded",
                        "error": "",
                        "id": "article_1",
                        "page_title": "Article Title",
                        "is_financial": "Yes",
                        "country": ["United States"],
                        "sector": ["Technology", "Banking"],
                        "companies": ["Apple", "Goldman Sachs"],
                        "sentiment": "Positive",
                        "confident_score": 9.5,
                        "summary_en": "...",
                        "summary_tr": "...",
                    }
                ],
                "total_count": 1,
                "offset": 0,
                "next": None,
                "simulated": True,
            }
        }
    )


class JobLine(BaseModel):
    """One job in the list; its status is today's, not the one at submission."""

    job_id: str
    batch_name: str
    workload: str
    batch_file: str = Field(description="Name of the table it was read from.")
    submitted_at: str
    status: JobState
    completed_count: int
    total_count: int
    simulated: bool


class Jobs(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobLine]
    total: int = Field(description="Jobs on all pages.")
    offset: int
    next: str | None

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "jobs": [
                    {
                        "job_id": "my_batch",
                        "batch_name": "my_batch",
                        "workload": "news",
                        "batch_file": "my_batch.jsonl",
                        "submitted_at": "2026-11-22T10:30:00Z",
                        "status": "JOB_STATE_SUCCEEDED",
                        "completed_count": 100,
                        "total_count": 100,
                        "simulated": True,
                    }
                ],
                "total": 1,
                "offset": 0,
                "next": None,
            }
        }
    )


class Cancelled(BaseModel):
    """What a cancellation came to; finished rows stay."""

    job_id: str
    state: JobState
    provider_jobs: int = Field(description="Jobs that providers were asked to cancel.")
    message: str


class RunStatus(BaseModel):
    """One run of a job."""

    run_id: str
    job_id: str
    workload: str
    state: Literal["waiting", "running", "submitted", "ended", "failed", "cancelled"] = Field(
        description="`submitted`: its provider jobs are under way."
    )
    message: str
    dagster_run_id: str | None = Field(description="In the Dagster UI, once it has begun.")
    created_at: str
    updated_at: str
    simulated: bool
    summary: dict[str, Any] = Field(description="What it came to, once it has ended.")
    links: Links

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "run_id": "my_batch.r0001",
                "job_id": "my_batch",
                "workload": "news",
                "state": "ended",
                "message": "",
                "dagster_run_id": "0b0c0a7e-7a3f-4b2b-9a53-4f1b5a5f6f0e",
                "created_at": "2026-11-22T10:30:00Z",
                "updated_at": "2026-11-22T10:35:00Z",
                "simulated": True,
                "summary": {"requests": 100, "cost_usd": 0.02},
                "links": {
                    "status": "/batch/status/my_batch",
                    "results": "/batch/results/my_batch/my_batch",
                    "run": "/runs/my_batch.r0001",
                    "report": "/batches/my_batch/report",
                },
            }
        }
    )


class Health(BaseModel):
    """That the server works."""

    status: Literal["ok"]
    version: str
    simulated: bool
    waiting: int = Field(description="Submissions that wait for their turn.")
    running: int = Field(description="Runs going on.")


class Index(BaseModel):
    """Where everything is."""

    name: str
    version: str
    simulated: bool
    docs: str
    openapi: str
    endpoints: list[str]
