"""The asset checks of articles: rows that were blocked, let through by a person, or cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_pipeline.component.materialize import CHECK_BLOCKED, CHECK_SCHEMA
from batch_pipeline.doors import RunRequest, RunResult, run_batch
from batch_pipeline.ledger.batches import stream_items
from batch_pipeline.ledger.reviews import DecisionKind
from batch_pipeline.ledger.tables import items
from batch_pipeline.workloads.reviews import Verdict, decide_rows
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.dagster.installation import KNOBS, Installation
from batch_pipeline_tests.fetch.archive import shared_archive

TARGET = "https://hacks.mozilla.org/2015/03/this-api-is-so-fetching/"
# Nobody who searches for what the target is about wants to buy: blocked before anything is written.
OFF = "buy cheap"
ANCHORS = ("This API is so", "the fetch interface", "promises in the browser", OFF)
BLOCKED_BY_QC, BLOCKED_BEFORE = 2, 3


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with shared_archive() as running:
        monkeypatch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", running.url)
        yield


def write_jobs(here: Installation) -> Path:
    path = here.data / "jobs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["publisher,target,anchor,strategy,country,use_ahrefs,enable_llm_profiling"]
    lines += [
        f"aclu.org,{TARGET},{anchor},{'single_shot' if at % 2 else 'multi_stage'},us,false,false"
        for at, anchor in enumerate(ANCHORS)
    ]
    path.write_text("\n".join(lines), "utf-8")
    return path


def run(batch_id: str, source: Path | None = None) -> RunResult:
    return run_batch(
        RunRequest(
            "articles",
            source=None if source is None else str(source),
            batch_id=batch_id,
            knobs=KNOBS,
        )
    )


def checks(instance: dg.DagsterInstance, ran: RunResult) -> dict[str, Any]:
    """Whether the two checks passed, and the rows that `outputs_match_schema` names."""
    found: dict[str, Any] = {}
    for entry in instance.all_logs(ran.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        assert entry.dagster_event is not None
        check = entry.dagster_event.asset_check_evaluation_data
        found[check.check_name] = check.passed
        if check.check_name == CHECK_SCHEMA:
            found["rows"] = check.metadata["rows"].value
    return {name: found[name] for name in (CHECK_SCHEMA, CHECK_BLOCKED, "rows")}


@pytest.mark.usefixtures("archive")
def test_rows_let_through_by_a_person_have_articles_that_match_the_schema(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    here.simulator.configure(
        faults=[{"kind": "article_no_sources", "match": ANCHORS[BLOCKED_BY_QC]}]
    )
    first = run("night", write_jobs(here))
    assert (first.outcomes["succeeded"], first.outcomes["blocked"]) == (2, 2)
    fine = {CHECK_SCHEMA: True, CHECK_BLOCKED: True, "rows": "none"}
    assert checks(instance, first) == {**fine, CHECK_BLOCKED: False}

    with here.ledger() as ledger:
        rows = list(stream_items(ledger, "night"))
        assert rows[BLOCKED_BEFORE].cache_key is None, "nothing was written"
        accept = Verdict(DecisionKind.OVERRIDE, "Anna", "It may stay.", sign_off=True)
        blocked = [rows[BLOCKED_BY_QC], rows[BLOCKED_BEFORE]]
        decided = decide_rows(ledger, require_batch(ledger, "night"), blocked, accept)
        assert [one.outcome.value for one in decided] == ["succeeded", "pending"]
    before = here.simulator.summary()["attempts"]
    again = run("night")
    assert again.outcomes["succeeded"] == 4
    assert here.simulator.summary()["attempts"] == before + 1, "its article is written now"
    assert checks(instance, again) == fine

    # Another batch of the same jobs: answered from the cache, and checked all the same.
    cached = run("morning", here.data / "jobs.csv")
    assert (cached.outcomes["succeeded"], cached.outcomes["blocked"]) == (2, 2)
    assert checks(instance, cached) == {**fine, CHECK_BLOCKED: False}
    # No decision makes a row succeed that has no article: only a hand in the ledger does.
    with here.ledger() as ledger, ledger.write() as connection:
        connection.execute(
            items.update()
            .where(items.c.batch_id == "morning", items.c.ordinal == BLOCKED_BEFORE)
            .values(outcome="succeeded", error=None, error_kind=None)
        )
    wrong = checks(instance, run("morning"))
    assert not wrong[CHECK_SCHEMA]
    assert wrong["rows"].startswith(f"row {BLOCKED_BEFORE + 1} (")
