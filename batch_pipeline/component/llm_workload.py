"""LlmWorkload: turns one defs.yaml into a workload's assets, checks, jobs, sensors and schedule.

What belongs here: how a workload looks in Dagster. What does not: what its assets do
(materialize.py), when runs start by themselves (automation.py), the knobs (workloads/config.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import dagster as dg
from pydantic import Field, create_model

from batch_pipeline.component.automation import INGEST_ONLY, WorkloadJobs, build_sensors
from batch_pipeline.component.materialize import (
    RESOURCE_KEYS,
    TAG_WORKLOAD,
    check_specs,
    ingest_table,
    report_batch,
    run_chunks,
    submit_chunks,
)
from batch_pipeline.component.polling import build_polling
from batch_pipeline.component.review_queue import build_review_queue
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.workloads.config import Knobs, WorkloadConfig
from batch_pipeline.workloads.reviews import has_review_queue

OWNERS = ["team:batch-pipeline"]

POOL = "llm"
"""Pool of every LLM run; unlimited until an operator limits it."""

_SIMULATE = Field(
    default=None,
    description="Against the local simulator, without keys or cost. Empty: as the batch or the "
    "environment says.",
)


# Dagster's config has neither "number or word" nor a choice of words; the knobs check them
_IN_DAGSTER: dict[str, Any] = {"workers": Any, "lane": str | None}


def _optional_knobs(*left_out: str) -> dict[str, Any]:
    """Every knob as an optional config field: empty means what defs.yaml says."""
    return {
        name: (
            _IN_DAGSTER.get(name, cast(Any, field.annotation) | None),
            Field(default=None, description=field.description),
        )
        for name, field in Knobs.model_fields.items()
        if name not in left_out
    }


class _IngestBase(dg.Config):
    source: str = Field(
        description="The table: path of a CSV, TSV, JSON, JSONL or Parquet file, or what else the "
        "workload understands, such as `sheets:<id>/<worksheet>`."
    )
    batch: str | None = Field(
        default=None, description="Batch id; empty makes one of the table's name and content."
    )
    encoding: str | None = Field(default=None, description="Text encoding; empty: found out.")
    delimiter: str | None = Field(default=None, description="CSV delimiter; empty: found out.")
    reading: dict[str, Any] | None = Field(
        default=None,
        description="How else to read the table, by what only this workload knows; its page in "
        "docs/ lists that. For a sheet, `write_back: false` leaves it as it is.",
    )
    launch: str = Field(
        default="sensor",
        description="`sensor`: the LLM run starts by itself within a minute. `door`: whoever "
        "ingests starts it.",
    )
    force: bool = Field(
        default=False, description="Ask a new batch's rows whatever earlier batches know of them."
    )
    simulate: bool | None = _SIMULATE


class _RunBase(dg.Config):
    simulate: bool | None = _SIMULATE
    force: bool = Field(
        default=False, description="Ask finished rows again, and pay for them again."
    )


class ReportConfig(dg.Config):
    """Launchpad fields of batch_report."""

    batch: str | None = Field(default=None, description="Batch id; empty is the newest batch.")
    simulate: bool | None = _SIMULATE
    output: str | None = Field(default=None, description="Folder for the files; empty: outputs/.")
    no_enrich: bool = Field(default=False, description="Export the rows without any output.")
    run_id: str | None = Field(default=None, description="The run this report is about.")


IngestConfig = create_model("IngestConfig", __base__=_IngestBase, **_optional_knobs())
RunConfig = create_model("RunConfig", __base__=_RunBase, **_optional_knobs(*INGEST_ONLY))


class LlmWorkload(WorkloadConfig, dg.Component, dg.Resolvable):
    """A table through an LLM, as four assets.

    `input_table` reads the table into the ledger; `provider_jobs` sends chunks of rows to a Batch
    API, where that lane is chosen; `llm_outputs` asks the model or collects, one partition per
    chunk; `batch_report` writes deliverables and the report. Its attributes are the knobs that the
    launchpad and the command line have too.
    """

    folder: Annotated[Path, dg.Resolver(lambda _, value: Path(value), model_field_type=str)] = (
        Field(default=Path(), exclude=True, description="Set by the loader: where defs.yaml is.")
    )

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """How the component shows in `dg list components`."""
        return dg.ComponentTypeSpec(
            description="A table through an LLM: input_table, provider_jobs and llm_outputs in "
            "chunks, batch_report.",
            owners=OWNERS,
            tags=["llm", "batch"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets, checks, jobs, sensors and schedule."""
        config = self.model_copy(update={"folder": Path(context.path)})
        partitions = dg.DynamicPartitionsDefinition(name=f"{config.workload}_chunks")
        assets = {
            "input_table": _input_table(config, partitions.name or ""),
            "provider_jobs": _provider_jobs(config, partitions),
            "llm_outputs": _llm_outputs(config, partitions),
            "batch_report": _batch_report(config),
        }
        reviewed = has_review_queue(config.domain)
        if reviewed:
            common = _common(config, "review_queue")
            assets["review_queue"] = build_review_queue(config, common)
        made = {
            name: dg.define_asset_job(
                f"{config.workload}_{name}",
                # the queue changes with whatever a report is made of
                selection=[assets[asset], assets["review_queue"]]
                if reviewed and name == "report"
                else [assets[asset]],
                description=description,
                tags={TAG_WORKLOAD: config.workload},
            )
            for name, (asset, description) in _JOBS.items()
        }
        jobs = WorkloadJobs(
            config.workload,
            partitions.name or "",
            config.lane,
            ingest=made["ingest"],
            run=made["run"],
            submit=made["submit"],
            report=made["report"],
        )
        return dg.Definitions.merge(
            dg.Definitions(assets=list(assets.values()), jobs=list(made.values())),
            build_sensors(jobs, config.schedule),
            build_polling(jobs),
        )


_JOBS = {
    "ingest": ("input_table", "Reads a table into a batch; the sensor then starts its LLM run."),
    "submit": (
        "provider_jobs",
        "Sends a range of chunks to a Batch API, as far as there is room; the sensor starts the "
        "run that collects.",
    ),
    "run": (
        "llm_outputs",
        "Runs the LLM over a range of chunks, or collects what provider jobs came to; complete "
        "chunks cost nothing.",
    ),
    "report": ("batch_report", "Writes the deliverables and the report of a batch."),
}


def _key(config: WorkloadConfig, name: str) -> dg.AssetKey:
    return dg.AssetKey([config.workload, name])


def _common(config: WorkloadConfig, name: str) -> dict[str, Any]:
    return {
        "key": _key(config, name),
        "group_name": config.workload,
        "owners": OWNERS,
        "tags": {TAG_WORKLOAD: config.workload},
        "required_resource_keys": RESOURCE_KEYS,
    }


def _provider(config: WorkloadConfig) -> str:
    provider = parse_route(config.route)[0].provider
    # Dagster has an icon for gemini.
    return "gemini" if provider == "google" else provider


def _input_table(config: WorkloadConfig, partitions: str) -> dg.AssetsDefinition:
    @dg.asset(
        **_common(config, "input_table"),
        kinds={"python", "sqlite"},
        config_schema=IngestConfig.to_config_schema(),
        description=_describe_input(config),
    )
    def input_table(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return ingest_table(context, config, partitions)

    return cast(dg.AssetsDefinition, input_table)


def _provider_jobs(
    config: WorkloadConfig, partitions: dg.DynamicPartitionsDefinition
) -> dg.AssetsDefinition:
    @dg.asset(
        **_common(config, "provider_jobs"),
        kinds={"python", _provider(config)},
        deps=[_key(config, "input_table")],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        pool=POOL,
        config_schema=RunConfig.to_config_schema(),
        description=_describe_jobs(config),
    )
    def provider_jobs(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        yield from submit_chunks(context, config)

    return cast(dg.AssetsDefinition, provider_jobs)


def _llm_outputs(
    config: WorkloadConfig, partitions: dg.DynamicPartitionsDefinition
) -> dg.AssetsDefinition:
    key = _key(config, "llm_outputs")

    @dg.asset(
        **_common(config, "llm_outputs"),
        kinds={"python", _provider(config)},
        # Not on provider_jobs: it gives no output for chunks whose rows wait for room, and Dagster
        # skips, in the same run, what depends on an output that did not come.
        deps=[_key(config, "input_table")],
        partitions_def=partitions,
        # One run for the whole range: packs span chunks, and one limiter and one pool of workers
        # serve them all.
        backfill_policy=dg.BackfillPolicy.single_run(),
        # Each chunk is materialized by itself as it completes; nothing is materialized for the
        # others.
        output_required=False,
        pool=POOL,
        check_specs=check_specs(key, config.min_share_succeeded),
        config_schema=RunConfig.to_config_schema(),
        description=_describe_outputs(config),
    )
    def llm_outputs(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
        yield from run_chunks(context, config)

    return cast(dg.AssetsDefinition, llm_outputs)


def _batch_report(config: WorkloadConfig) -> dg.AssetsDefinition:
    @dg.asset(
        **_common(config, "batch_report"),
        kinds={"python", "html"},
        deps=[_key(config, "llm_outputs")],
        config_schema=ReportConfig.to_config_schema(),
        description=_describe_report(config),
    )
    def batch_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return report_batch(context, config)

    return cast(dg.AssetsDefinition, batch_report)


def _describe_input(config: WorkloadConfig) -> str:
    return f"""**{config.domain.title}**: the table, as it was read into the ledger.

Each materialization reads one table and makes one **batch** of it, cut into chunks of
{config.chunk_size:,} rows (at most 200 chunks). The chunks become the partitions of `llm_outputs`.

**Launch**: *Materialize*, and in the launchpad set `source` to a file, for example

```yaml
ops:
  {config.workload}__input_table:
    config:
      source: /path/to/table.csv
```

The LLM run then starts by itself within a minute (sensor `{config.workload}_reconcile_chunks`). The
same table again is the same batch: nothing is read or paid twice.
"""


def _describe_jobs(config: WorkloadConfig) -> str:
    return f"""**{config.domain.title}**: the rows that went up to a provider's Batch API.

Used in the lanes `batch` and `auto` only (`lane` in defs.yaml or in the launchpad; here it is
`{config.lane}`). A chunk is **materialized** when each of its rows has ended or is in a provider
job. The run ends as soon as the jobs are submitted; the sensor `{config.workload}_poll_jobs` looks
at them, and `llm_outputs` collects what they came to.

- Rows go up while there is room under the limit of enqueued tokens; those that wait go up by
  themselves as soon as a job ends.
- What a job may cost is reserved in the budget from the moment it is written down.
"""


def _describe_outputs(config: WorkloadConfig) -> str:
    return f"""**{config.domain.title}**: what the model answered, one partition per chunk.

Route: `{config.route}`. Answers are in the ledger; `batch_report` writes the files.

- A chunk is **materialized** when none of its rows is failed or still to do. Rows that the model
  declined are *blocked*: they add a warning to the checks and wait for a person.
- **Failed** chunks: open *Partitions*, choose *Materialize* and then *failed and missing
  partitions* (or backfill the whole batch: rows that are done cost nothing). Only rows without a
  result are asked again.
- **Terminate** lets the calls in flight come back and keeps their answers; the rest stays to do.
- Per chunk the metadata shows cost, requests, tokens, latency and time spent waiting for rate
  limits. What is not set in the launchpad comes from `defs.yaml`.
"""


def _describe_report(config: WorkloadConfig) -> str:
    return f"""**{config.domain.title}**: the report and the deliverables of a batch.

Made by itself after every LLM run, however it ended. By hand: *Materialize* with `batch` set to a
batch id (empty is the newest). The metadata shows the batch's totals, the report, and where the
files are.
"""
