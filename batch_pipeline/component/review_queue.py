"""The asset `review_queue` of a workload: which of its rows wait for a person, and since when.

What belongs here: how the queue looks in the Dagster UI. What does not: reading it
(workloads/reviews.py), deciding (cli/review.py, api/reviewing.py).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import dagster as dg

from batch_pipeline.component.materialize import Tools, errors_as_failures
from batch_pipeline.component.metadata import Metadata, file_list, markdown_table
from batch_pipeline.component.resources import REALMS
from batch_pipeline.ledger.reviews import count_waiting
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.reports.words import duration
from batch_pipeline.settings import Realm, Settings
from batch_pipeline.workloads.config import WorkloadConfig
from batch_pipeline.workloads.reviews import Case, list_cases
from batch_pipeline.workloads.runner import batch_folder

_SHOWN = 50
_CELL_CHARS = 600
# Two columns: the page has no room for more, and cuts off what is wider.
_HEADS = ["row", "what waits, why, and since when (UTC)"]


def build_review_queue(config: WorkloadConfig, common: dict[str, Any]) -> dg.AssetsDefinition:
    """The asset.

    Args:
        config: the workload.
        common: what all assets of the workload share, its key among it.
    """

    def review_queue(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=show_queue(Tools.of(context), config.workload))

    made = dg.asset(
        **common,
        kinds={"python"},
        deps=[dg.AssetKey([config.workload, "batch_report"])],
        description=_describe(config),
    )(review_queue)
    return cast(dg.AssetsDefinition, made)


def show_queue(tools: Tools, workload: str) -> Metadata:
    """The queue of a workload in both realms, as metadata."""
    found: Metadata = {}
    waiting, since, longest_s = 0, None, 0.0
    with errors_as_failures(tools):
        settings = tools.installation.settings()
        for realm in REALMS:
            with tools.ledger.open(realm) as ledger:
                with ledger.read() as connection:
                    queue = count_waiting(connection, realm, workload=workload)
                    now = ledger.now(connection)
                if queue.oldest is None:
                    continue
                waiting += queue.rows
                if since is None or queue.oldest < since:
                    since, longest_s = queue.oldest, max(0.0, now - queue.oldest)
                found |= _realm_metadata(settings, ledger, realm, workload, queue.rows)
    if since is None:
        found["queue"] = dg.MetadataValue.md("No row waits for a decision.")
    else:
        found["oldest since"] = dg.MetadataValue.timestamp(since)
        found["oldest wait"] = dg.MetadataValue.text(duration(longest_s))
    return {
        "waiting": dg.MetadataValue.int(waiting),
        **found,
        "dagster/row_count": dg.MetadataValue.int(waiting),
        "dagster/uri": dg.MetadataValue.text(str(settings.outputs / workload)),
    }


def _realm_metadata(
    settings: Settings, ledger: Ledger, realm: Realm, workload: str, rows: int
) -> Metadata:
    """The entries about one realm; those of the simulated one say so in their names."""
    cases = list_cases(
        ledger,
        lambda batch: batch_folder(settings, realm, workload, batch.batch_id),
        workload=workload,
        limit=_SHOWN,
    )
    parts = [markdown_table(_HEADS, [_row(case) for case in cases], _CELL_CHARS)]
    if rows > len(cases):
        parts.append(f"… and {rows - len(cases):,} more: `batch-pipeline review list` has all.")
    mark = " (SIMULATED)" if realm == "simulated" else ""
    found: Metadata = {
        f"queue{mark}": dg.MetadataValue.md("\n\n".join(parts)),
        f"look at it{mark}": dg.MetadataValue.md(_commands(cases)),
    }
    if files := [path for case in cases for path in case.files]:
        found[f"files{mark}"] = dg.MetadataValue.md(file_list(files))
    return found


def _row(case: Case) -> list[str]:
    item, facts = case.item, case.facts
    said = [facts.headline]
    if facts.why:
        worst = facts.why[0]
        said.append(f"{worst.severity} {worst.category}: {worst.message}".strip())
    if facts.signoff_required:
        told = bool(facts.why) and facts.why[0].message in facts.signoff_reason
        said.append(f"Sign-off needed. {'' if told else facts.signoff_reason}".strip())
    said.append(case.name or item.item_id)
    if case.since is not None:
        said.append(f"{datetime.fromtimestamp(case.since, UTC):%m-%d %H:%M}")
    return [f"{case.batch.batch_id} {item.number}", " · ".join(said)]


def _commands(cases: Sequence[Case]) -> str:
    lines = [f"batch-pipeline review show {c.batch.batch_id} {c.item.number}" for c in cases]
    return "\n".join(["```", *lines, "```"])


def _describe(config: WorkloadConfig) -> str:
    return f"""**{config.domain.title}**: blocked rows, which wait for a person.

Made anew with every `batch_report`, of all batches and both realms; *Materialize* shows it as it is
now. A person decides with the command line (or `POST /reviews/...`), with name and reason:

```
batch-pipeline review show BATCH ROW
batch-pipeline review override BATCH ROW --reason TEXT --by NAME
batch-pipeline review regenerate BATCH ROW --reason TEXT --by NAME [--package FILE] [--run]
batch-pipeline review skip BATCH ROW --reason TEXT --by NAME
```
"""
