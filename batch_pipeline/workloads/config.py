"""An operator's knobs: what defs.yaml, the launchpad and the CLI call by the same names.

What belongs here: the knobs' types, defaults and help, and reading a workload's defs.yaml without
Dagster. What does not: what a knob does (runner.py, engine).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.base import Workload, load_workload, workload_names
from batch_pipeline.workloads.operator_files import problems_of, read_prompt

DEFS_FOLDER = Path(__file__).resolve().parent.parent / "defs"


class ScheduleKnobs(BaseModel):
    """When a workload's nightly run starts."""

    model_config = ConfigDict(extra="forbid")

    cron: str = Field(default="0 23 * * *", description="Cron expression of the nightly run.")
    timezone: str = Field(default="UTC", description="IANA time zone that the cron is read in.")


class Knobs(BaseModel):
    """How a run of a workload goes about its work.

    Every field can be set in defs.yaml, in run config and on the CLI.
    """

    model_config = ConfigDict(extra="forbid")

    route: str = Field(
        default="google/gemini-3.1-flash-lite",
        description="Models to call, in order of preference: `provider/model, provider/model`; "
        "a provider alone stands for its default model, `auto` for every provider with a key, the "
        "cheapest first.",
    )
    fallback: bool | None = Field(
        default=None,
        description="Whether to go down a route when a model cannot answer. Empty: a route of "
        "several models is itself the permission, a row's own model is not left. `true`: rows with "
        "a model of their own fall back along the route as well. `false`: never.",
    )
    workers: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        default="auto",
        description="Requests in flight at once; `auto` follows the limits and the servers.",
    )
    budget_usd: float | None = Field(
        default=None, gt=0, description="USD that all runs of a batch together may cost."
    )
    budget_usd_per_day: float | None = Field(
        default=None, gt=0, description="USD that all batches of this workload may cost in a day."
    )
    provider_budget_usd_per_day: float | None = Field(
        default=None,
        gt=0,
        description="USD that all workloads together may spend with each provider in a day.",
    )
    rate_limit: float | None = Field(
        default=None, gt=0, description="Requests per minute of the key; empty is no limit."
    )
    input_tokens_per_min: float | None = Field(
        default=None, gt=0, description="Prompt tokens per minute of the key; empty is no limit."
    )
    output_tokens_per_min: float | None = Field(
        default=None, gt=0, description="Output tokens per minute of the key; empty is no limit."
    )
    requests_per_day: int | None = Field(
        default=None,
        ge=1,
        description="Requests in a day of the provider's reset zone; what is left waits for the "
        "next day.",
    )
    concurrent: int | None = Field(
        default=None, ge=1, description="Requests in flight at once, over all runs of the key."
    )
    search_rate_limit: float | None = Field(
        default=None,
        gt=0,
        description="Searches per minute of a search provider's key; empty is what it publishes.",
    )
    tier: str | None = Field(
        default=None,
        description="The key's tier with its provider (limits/tiers.yaml), `tier-1`, or by "
        "provider, `google=tier-1, anthropic=tier-2`: its limits hold where none is set here.",
    )
    lane: Literal["realtime", "batch", "auto"] = Field(
        default="realtime",
        description="How calls travel: `realtime`; `batch`, through the provider's Batch API at "
        "its price, within a day or so; `auto`, by price and by the time left to the deadline.",
    )
    deadline: str | None = Field(
        default=None,
        description="For lane `auto`: when every row must have ended, as a time "
        "(`2026-11-23T06:00`, UTC unless it says otherwise) or a span from now (`8h`, `90m`).",
    )
    wait: bool = Field(
        default=False,
        description="Look after provider jobs in this very run until they have ended. Otherwise "
        "the run ends once they are submitted, and a sensor collects them.",
    )
    realtime_fallback: bool = Field(
        default=True,
        description="Whether rows that provider jobs did not answer are asked in real time at "
        "last; otherwise they fail.",
    )
    lane_tries: int = Field(
        default=2, ge=1, description="Asks of a row in provider jobs before that."
    )
    enqueued_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Prompt tokens that the key may have in unfinished provider jobs; empty is "
        "what the tier says, or no limit.",
    )
    enqueued_share: float = Field(
        default=0.9, gt=0, le=1, description="Share of that limit that is used."
    )
    max_jobs: int = Field(
        default=90, ge=1, description="Unfinished provider jobs of the key at most."
    )
    job_items: int | None = Field(
        default=None,
        ge=1,
        description="Rows in a provider job at most; empty: as many as make about twenty jobs of "
        "the token limit, or 1,000.",
    )
    poll_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds between looks at a provider job; empty: a twentieth of its age, "
        "between 10 seconds and 10 minutes.",
    )
    pack: int | None = Field(
        default=None, ge=1, description="Rows per request; empty is the workload's own number."
    )
    chunk_size: int = Field(
        default=100, ge=1, description="Rows per chunk (Dagster partition); at most 200 chunks."
    )
    chunk_interval_s: float = Field(
        default=0.0, ge=0, description="Seconds between the release of two chunks."
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="Seconds until a call counts as timed out."
    )
    items_per_day: int | None = Field(
        default=None,
        ge=1,
        description="Rows of a batch to ask about in a day (UTC); the rest stay pending until a "
        "run of another day.",
    )
    limit: int | None = Field(
        default=None, ge=0, description="Ask about at most so many rows; the rest stay pending."
    )
    include_blocked: bool = Field(
        default=False, description="Ask blocked rows again as well as failed ones."
    )
    no_enrich: bool = Field(default=False, description="Export the rows without any call.")
    row_routes: bool = Field(
        default=True,
        description="Whether rows may name a route of their own; otherwise all take `route`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="What only this workload knows; its page in docs/ lists them.",
    )


class WorkloadConfig(Knobs):
    """A workload's defs.yaml."""

    workload: str = Field(description="Which workload: a package below batch_pipeline/workloads.")
    prompt_file: str = Field(default="prompt.md", description="System prompt, beside defs.yaml.")
    route_column: str = Field(
        default="route", description="Column in which a row may name its own route."
    )
    schedule: ScheduleKnobs = Field(default_factory=ScheduleKnobs)
    min_share_succeeded: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="The asset check `share_succeeded` warns below this share of rows, 0 to 1.",
    )
    folder: Path = Field(default=DEFS_FOLDER, exclude=True, description="Where defs.yaml is.")

    @cached_property
    def prompt(self) -> str:
        """The system prompt's text.

        Raises:
            UsageError: the file is missing or empty.
        """
        return read_prompt(self.folder / self.prompt_file)

    @property
    def domain(self) -> Workload:
        """The workload's Python side."""
        return load_workload(self.workload)

    def with_options(self, options: dict[str, Any]) -> WorkloadConfig:
        """A copy in which the options that are given (not None) win.

        Of `options`, those that are given win one by one.

        Raises:
            UsageError: an option has a value it cannot have.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "options" in given:
            given["options"] = {**self.options, **given["options"]}
        try:
            return WorkloadConfig.model_validate(
                {**self.model_dump(exclude={"folder"}), **given, "folder": self.folder}
            )
        except ValidationError as error:
            raise UsageError(f"{problems_of(error)}.") from error


def load_workload_config(workload: str) -> WorkloadConfig:
    """The knobs of a workload as its defs.yaml has them.

    Raises:
        UsageError: no such workload, or its defs.yaml cannot be used.
    """
    folder = DEFS_FOLDER / workload
    path = folder / "defs.yaml"
    if not workload.isidentifier() or not path.is_file():
        raise UsageError(
            f"There is no workload {workload!r}.", f"There are: {', '.join(workload_names())}."
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return WorkloadConfig.model_validate({**document["attributes"], "folder": folder})
    except ValidationError as error:
        raise UsageError(f"{path}: {problems_of(error)}.", "Correct defs.yaml.") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a component file: {error}.", "It needs `type:` and `attributes:`."
        ) from error
