"""However a provider job ends, its rows end right, and the money with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.providers.registry import SIMULATED_KEY_VARIABLE
from batch_pipeline.workloads.runner import batch_api_opener
from batch_pipeline_tests.engine.lanes.laning import (
    ANTHROPIC,
    GOOGLE,
    OPENAI,
    ROUTES,
    SLOW_JOBS,
    assert_books_are_right,
    attempts_of,
    jobs_of,
    lane_bench,
    lane_run,
    lane_start,
    states_of,
    until,
)
from batch_pipeline_tests.engine.test_faults import assert_quotes_its_row, topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

ROWS = 40


def ingest(bench: Bench, folder: Path, rows: int = ROWS) -> Batch:
    return bench.ingest(write_rows(folder / "rows.csv", topics(rows)))


def assert_all_succeeded(bench: Bench, batch: Batch, ran: Ran) -> None:
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": batch.row_count})
    assert_quotes_its_row(bench, batch)
    assert_books_are_right(bench, bench.simulator)


def job_sizes(bench: Bench) -> list[tuple[int, int]]:
    """Lines and rows of each job."""
    return [(job.line_count, job.item_count) for job in jobs_of(bench)]


# ---- whole jobs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_what_an_expired_job_answered_is_kept_and_only_the_rest_goes_up_again(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_expire", "part": 0.5, "count": 1}])
    bench = lane_bench(tmp_path, simulator, route=route)
    batch = ingest(bench, tmp_path)
    assert_all_succeeded(bench, batch, lane_run(bench, batch))
    if route == GOOGLE:
        # Gemini shows no results of an expired job, and may have billed any of its lines.
        assert job_sizes(bench) == [(4, 40), (4, 40)]
        assert states_of(bench) == {"lost": 4, "settled": 4}
    else:
        assert job_sizes(bench) == [(4, 40), (2, 20)], "an expiry does not multiply requests"
        assert states_of(bench) == {"refunded": 2, "settled": 4}


@pytest.mark.parametrize("route", [GOOGLE, OPENAI])
def test_the_rows_of_a_failed_job_go_up_again(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_fail", "count": 1}])
    bench = lane_bench(tmp_path, simulator, route=route)
    batch = ingest(bench, tmp_path)
    assert_all_succeeded(bench, batch, lane_run(bench, batch))
    assert job_sizes(bench) == [(4, 40), (4, 40)]
    assert states_of(bench)["lost"] == 0


@pytest.mark.parametrize("fallback", [True, False])
def test_rows_that_jobs_failed_at_are_asked_in_real_time_at_last_or_fail_where_that_is_forbidden(
    fallback: bool, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_fail"}])
    bench = lane_bench(tmp_path, simulator, realtime_fallback=fallback)
    batch = ingest(bench, tmp_path)
    ran = lane_run(bench, batch)
    assert job_sizes(bench) == [(4, 40)] * 2, "tries are counted"
    if fallback:
        assert_all_succeeded(bench, batch, ran)
        assert {entry["lane"] for entry in simulator.journal()} == {"realtime"}
        return
    assert (ran.done.status, ran.outcomes) == ("done", {"failed": ROWS})
    assert "its provider job failed" in ran.chunks[0].failed[0].error
    assert_books_are_right(bench, simulator)
    simulator.configure()
    # A retry begins to count anew.
    assert_all_succeeded(bench, batch, lane_run(bench, batch, "retry"))
    assert job_sizes(bench)[2:] == [(4, 40)]
    assert states_of(bench, "realtime") == {}


@pytest.mark.parametrize("route", [GOOGLE, OPENAI])
def test_what_a_partially_succeeded_job_left_open_goes_up_again(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_partial", "part": 0.5, "count": 1}])
    bench = lane_bench(tmp_path, simulator, route=route)
    batch = ingest(bench, tmp_path)
    assert_all_succeeded(bench, batch, lane_run(bench, batch))
    assert job_sizes(bench) == [(4, 40), (2, 20)]
    assert len(simulator.journal()) == 6


@pytest.mark.parametrize("route", ROUTES)
def test_a_job_that_somebody_cancelled_keeps_what_was_answered_and_uses_up_no_try(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS, clock={"frozen": True})
    bench = lane_bench(tmp_path, simulator, route=route, wait=False, lane_tries=1)
    batch = ingest(bench, tmp_path)
    assert lane_run(bench, batch, "submits").done.status == "submitted"
    [job] = jobs_of(bench)
    simulator.advance(400.0)
    cancel_elsewhere(simulator, job.provider, job.key_id, str(job.remote_name))
    simulator.advance(60.0)
    simulator.configure()
    bench.config = bench.config.model_copy(update={"wait": True})
    ran = lane_run(bench, batch, "goes on")
    assert_all_succeeded(bench, batch, ran)
    assert states_of(bench, "realtime") == {}
    asked = Counter(attempt["state"] for attempt in attempts_of(bench))
    if route == GOOGLE:
        assert asked == {"lost": 4, "settled": 4}, "it bills what it does not show"
    else:
        assert asked["lost"] == 0 and asked["refunded"] > 0
        assert asked["settled"] == 4, "what was answered is not asked again"


def cancel_elsewhere(simulator: Simulator, provider: str, key_id: str, name: str) -> None:
    import asyncio

    async def main() -> None:
        api = batch_api_opener(simulator.url)(provider, key_id)
        try:
            await api.cancel(name)
        finally:
            await api.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("route", ROUTES)
def test_results_that_are_kept_no_longer_are_counted_as_lost_reported_and_asked_again(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=route, wait=False)
    batch = ingest(bench, tmp_path)
    assert lane_run(bench, batch, "submits").done.status == "submitted"
    simulator.advance(60.0)
    until(lambda: not any(one["open_jobs"] for one in simulator.enqueued()))
    # it has ended; its results go 30 days later
    simulator.advance(31 * 86_400.0)
    bench.config = bench.config.model_copy(update={"wait": True})
    ran = lane_run(bench, batch, "too late")
    assert_all_succeeded(bench, batch, ran)
    assert states_of(bench) == {"lost": 4, "settled": 4}
    assert ran.done.tally.lost_nano > 0
    assert ran.done.tally.errors == {"gone": 4}


# ---- lines ---------------------------------------------------------------------------------------


def test_a_row_that_the_provider_refuses_alone_fails_and_its_neighbours_do_not(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 400, "lane": "batch", "match": "Topic number 7 "}]
    )
    bench = lane_bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", numbered(ROWS)))
    ran = lane_run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 39, "failed": 1})
    assert job_sizes(bench) == [(4, 40), (10, 10)], "alone, they show which one it is"
    [failed] = ran.chunks[0].failed
    assert failed.error.startswith("Row 8 (")
    assert states_of(bench, "realtime") == {}, "real time would be refused as well"
    assert_books_are_right(bench, simulator)


def numbered(count: int) -> list[dict[str, str]]:
    rows = topics(count)
    for number, row in enumerate(rows):
        row["Description"] = f"Topic number {number} of all. {row['Description']}"
    return rows


@pytest.mark.parametrize("route", [GOOGLE, ANTHROPIC])
def test_a_row_whose_answer_is_refused_is_blocked(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "refusal", "match": "Topic number 7 "}])
    bench = lane_bench(tmp_path, simulator, route=route)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", numbered(ROWS)))
    ran = lane_run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 39, "blocked": 1})
    assert_books_are_right(bench, simulator)
    paid = len(simulator.journal())
    assert lane_run(bench, batch, "again").outcomes == {"succeeded": 39, "blocked": 1}
    assert len(simulator.journal()) == paid, "a blocked row waits for a person"
    simulator.configure()
    bench.config = bench.config.model_copy(update={"include_blocked": True})
    assert_all_succeeded(bench, batch, lane_run(bench, batch, "a person says so"))
    assert states_of(bench, "realtime") == {}


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500, "count": 3, "lane": "batch"},
        {"kind": "malformed_json", "count": 3},
        {"kind": "truncated", "count": 3},
        {"kind": "drop_id", "count": 3},
        {"kind": "invalid_item", "count": 3},
    ],
    ids=lambda fault: fault["kind"],
)
def test_lines_that_went_wrong_are_asked_again_and_only_they(
    fault: dict[str, Any], simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[fault])
    bench = lane_bench(tmp_path, simulator, pack=5)
    batch = ingest(bench, tmp_path)
    ran = lane_run(bench, batch)
    spoiled = [entry for entry in simulator.journal() if entry["fault"]]
    assert spoiled, "the simulator spoiled nothing: the test proves nothing"
    assert_all_succeeded(bench, batch, ran)
    if fault["kind"] == "status":
        assert job_sizes(bench) == [(8, 40), (3, 15)], "an outage multiplies no requests"
    elif fault["kind"] in ("drop_id", "invalid_item"):
        assert job_sizes(bench) == [(8, 40), (3, 3)], "only the rows without an answer"
    else:
        assert job_sizes(bench) == [(8, 40), (15, 15)]


# ---- on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        (GOOGLE, {"kind": "batch_create", "status": 429, "count": 2}),
        (OPENAI, {"kind": "batch_create", "status": 503, "count": 2}),
        (GOOGLE, {"kind": "batch_create", "made": True, "count": 1}),
        (ANTHROPIC, {"kind": "batch_create", "made": True, "status": 500, "count": 2}),
        (GOOGLE, {"kind": "upload", "part": 0.5, "count": 1}),
        (OPENAI, {"kind": "upload", "status": 500, "count": 2}),
        (ANTHROPIC, {"kind": "poll", "status": 500, "count": 4}),
        (ANTHROPIC, {"kind": "download", "part": 0.5, "count": 4}),
        (OPENAI, {"kind": "download", "status": 500, "count": 4}),
    ],
    ids=lambda value: (
        value.partition("/")[0]
        if isinstance(value, str)
        else " ".join(str(part) for part in value.values())
    ),
)
def test_a_provider_that_is_in_trouble_for_a_while_is_asked_again_and_nothing_is_paid_twice(
    route: str, fault: dict[str, Any], simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[fault])
    bench = lane_bench(tmp_path, simulator, route=route, job_items=20)
    batch = ingest(bench, tmp_path)
    assert_all_succeeded(bench, batch, lane_run(bench, batch))
    assert states_of(bench) == {"settled": 4}
    assert len(jobs_of(bench)) == 2


def test_a_job_that_the_provider_refuses_for_good_stops_the_run_and_gives_its_rows_back(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_create", "status": 400}])
    bench = lane_bench(tmp_path, simulator)
    batch = ingest(bench, tmp_path)
    ran = lane_run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("stopped", {"pending": ROWS})
    assert "google refuses provider jobs" in ran.done.message
    assert states_of(bench) == {"refunded": 4}
    simulator.configure()
    assert_all_succeeded(bench, batch, lane_run(bench, batch, "mended"))


def test_openai_jobs_that_found_no_room_go_up_again_in_a_window_that_was_learned(
    simulator: Simulator, tmp_path: Path
) -> None:
    jobs = {"duration_s": 0.6, "per_line_s": 0.0, "enqueued_tokens": 6_000}
    simulator.configure(batches=[jobs])
    bench = lane_bench(tmp_path, simulator, route=OPENAI, job_items=20)
    batch = ingest(bench, tmp_path, 120)
    ran = lane_run(bench, batch)
    assert "token_limit_exceeded" in {job.error_code for job in jobs_of(bench)}
    assert_all_succeeded(bench, batch, ran)
    assert states_of(bench, "realtime") == {}, "no room is not the rows' fault"
    assert states_of(bench)["lost"] == 0


def test_jobs_of_a_key_that_is_gone_wait_for_it_and_are_collected_when_it_is_back(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = lane_bench(tmp_path, simulator, wait=False)
    batch = ingest(bench, tmp_path)
    assert lane_run(bench, batch, "submits").done.status == "submitted"
    monkeypatch.setenv(SIMULATED_KEY_VARIABLE, "another-key-of-9999")
    ran = lane_run(bench, batch, "other key")
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": ROWS})
    assert len(jobs_of(bench)) == 1, "its rows are not asked with the new key as well"
    monkeypatch.delenv(SIMULATED_KEY_VARIABLE)
    bench.config = bench.config.model_copy(update={"wait": True})
    assert_all_succeeded(bench, batch, lane_run(bench, batch, "key is back"))
    assert len(simulator.journal()) == 4


def test_two_lost_jobs_of_one_size_at_a_provider_that_keeps_no_names_are_told_apart(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_create", "made": True, "count": 3}])
    bench = lane_bench(tmp_path, simulator, route=ANTHROPIC, job_items=20)
    batch = ingest(bench, tmp_path, 60)
    thread, job = lane_start(bench, batch, "run")
    until(lambda: len(jobs_of(bench)) == 3)
    ran = finish(thread, job)
    assert_all_succeeded(bench, batch, ran)
    assert len(simulator.journal()) == 6
    assert len({job.remote_name for job in jobs_of(bench)}) == 3
