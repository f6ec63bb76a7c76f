"""Bad answers and outages: every row ends right, and what it costs is bounded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator

PER_BAD_ROW = 2 + math.ceil(math.log2(20))
ID_FAULTS = ("drop_id", "duplicate_id", "rename_id", "corrupt_ids")


def test_rows_end_right_when_ids_are_dropped_doubled_renamed_and_corrupted(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": kind, "share": 0.05} for kind in ID_FAULTS])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    ran = bench.run(batch)
    journal = simulator.journal()
    faulty = [entry for entry in journal if entry["fault"]]
    assert faulty, "the simulator spoiled nothing: the test proves nothing"
    assert ran.outcomes == {"succeeded": 1000}
    assert_quotes_its_row(bench, batch)
    # each faulty reply spoils at least one row
    assert len(journal) - 50 <= PER_BAD_ROW * len(faulty)


def test_rows_end_right_through_outages_and_nothing_but_the_pack_is_sent_again(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    outages = [
        {"kind": "status", "status": 429, "share": 0.04, "retry_after_s": 0.1},
        {"kind": "status", "status": 500, "share": 0.04},
        {"kind": "status", "status": 503, "share": 0.04},
        {"kind": "hang", "share": 0.02},
        {"kind": "cut", "share": 0.03},
        {"kind": "cut_body", "share": 0.03},
        {"kind": "html", "share": 0.04, "status": 503},
        {"kind": "html", "share": 0.03, "status": 200},
    ]
    simulator.configure(faults=outages)
    bench = Bench(tmp_path, simulator, timeout_s=1.0)
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    ran = bench.run(batch)
    journal = simulator.journal()
    assert {entry["fault"] for entry in journal} >= {"status", "cut", "html"}
    assert ran.outcomes == {"succeeded": 1000}
    assert_quotes_its_row(bench, batch)
    # an outage repeats its pack: each request asks about as many rows as some first one did
    assert {entry["items"] for entry in journal} <= {20, 18}
    assert ran.done.tally.requests == 50
    assert len(journal) == 50 + sum(1 for entry in journal if entry["fault"])


def test_rows_end_right_when_everything_goes_wrong_at_once(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    content = [{"kind": kind, "share": 0.05} for kind in ID_FAULTS]
    wire = [
        {"kind": "status", "status": 429, "share": 0.02, "retry_after_s": 0.05},
        {"kind": "status", "status": 500, "share": 0.02},
        {"kind": "status", "status": 503, "share": 0.02},
        {"kind": "hang", "share": 0.01},
        {"kind": "cut", "share": 0.02},
        {"kind": "html", "share": 0.02},
        {"kind": "malformed_json", "share": 0.02},
        {"kind": "truncated", "share": 0.02},
        {"kind": "empty", "share": 0.02},
    ]
    simulator.configure(faults=[*content, *wire], seed="all at once")
    bench = Bench(tmp_path, simulator, timeout_s=1.0)
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    ran = bench.run(batch)
    assert ran.outcomes == {"succeeded": 1000}
    assert_quotes_its_row(bench, batch)


@pytest.mark.parametrize("kind", ["malformed_json", "corrupt_ids", "truncated", "status"])
@pytest.mark.parametrize("place", [0, 3, 9, 10, 13, 19])
def test_a_poison_row_fails_alone_within_the_bound(
    kind: str, place: int, simulator: Simulator, tmp_path: Path
) -> None:
    rows = topics(20)
    rows[place]["Topic"] = "POISON"
    fault = {"kind": kind, "match": "POISON"} | ({"status": 400} if kind == "status" else {})
    if kind == "corrupt_ids":
        fault = {"kind": "invalid_item", "match": "POISON"}
    simulator.configure(faults=[fault])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "poison.csv", rows))
    ran = bench.run(batch)
    assert ran.outcomes == {"succeeded": 19, "failed": 1}
    bad = [item for item in bench.items(batch) if item.outcome is Outcome.FAILED]
    assert [item.number for item in bad] == [place + 1]
    assert f"Row {place + 1} " in (bad[0].error or "")
    assert len(simulator.journal()) - 1 <= PER_BAD_ROW
    assert not ran.chunks[0].complete


def test_a_refused_row_is_blocked_and_is_asked_again_only_when_asked_for(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = topics(20)
    rows[7]["Topic"] = "POISON"
    simulator.configure(faults=[{"kind": "refusal", "match": "POISON"}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "refused.csv", rows))
    assert bench.run(batch, "first").outcomes == {"succeeded": 19, "blocked": 1}
    asked = len(simulator.journal())

    again = bench.run(batch, "again")
    assert len(simulator.journal()) == asked
    assert again.outcomes == {"succeeded": 19, "blocked": 1}
    assert again.chunks[0].complete, "blocked rows do not keep a chunk from materializing"

    simulator.configure()
    reviewed = bench.run(batch, "reviewed", include_blocked=True)
    assert reviewed.outcomes == {"succeeded": 20}
    assert len(simulator.journal()) == asked + 1


@pytest.mark.usefixtures("either_database")
def test_a_retry_asks_only_about_the_failed_rows(simulator: Simulator, tmp_path: Path) -> None:
    rows = topics(100)
    rows[30]["Topic"] = rows[77]["Topic"] = "POISON"
    simulator.configure(faults=[{"kind": "malformed_json", "match": "POISON"}])
    bench = Bench(tmp_path, simulator, chunk_size=25)
    batch = bench.ingest(write_rows(tmp_path / "two.csv", rows))
    first = bench.run(batch, "first")
    assert sorted(chunk.chunk_key[-4:] for chunk in first.chunks if not chunk.complete) == [
        "0002",
        "0004",
    ]
    simulator.reset()
    second = bench.run(batch, "second")
    assert second.outcomes == {"succeeded": 100}
    # both rows have the same text but for the description, so they are two questions in one request
    assert [entry["items"] for entry in simulator.journal()] == [2]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "status", "status": 401}, "refuses every call"),
        ({"kind": "status", "status": 429, "code": "PerDay"}, "refuses every call"),
        ({"kind": "status", "status": 404}, "refuses every call"),
    ],
)
def test_an_error_that_every_row_would_meet_stops_the_run_at_once(
    fault: dict[str, object], words: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[fault])
    bench = Bench(tmp_path, simulator, workers=2)
    batch = bench.ingest(write_rows(tmp_path / "many.csv", topics(400)))
    ran = bench.run(batch)
    assert ran.done.status == "stopped"
    assert words in ran.done.message
    assert ran.outcomes == {"pending": 400}, "what was not tried is not failed"
    assert len(simulator.journal()) <= 2


def test_a_request_that_the_provider_refuses_whatever_the_row_stops_the_run_after_a_few_rows(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 400, "share": 1.0}])
    bench = Bench(tmp_path, simulator, workers=2)
    batch = bench.ingest(write_rows(tmp_path / "refused.csv", topics(400)))
    ran = bench.run(batch)
    assert ran.done.status == "stopped"
    assert ran.outcomes["failed"] <= 4
    assert ran.outcomes["pending"] >= 396
    assert len(simulator.journal()) <= 60


@pytest.mark.usefixtures("either_database")
def test_a_429_pauses_everyone_and_uses_up_no_try(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 429, "count": 12, "retry_after_s": 0.2}]
    )
    bench = Bench(tmp_path, simulator, workers=4)
    batch = bench.ingest(write_rows(tmp_path / "paused.csv", topics(80)))
    ran = bench.run(batch, transient_tries=1)
    assert ran.outcomes == {"succeeded": 80}


def test_rows_are_failed_by_an_outage_only_after_two_rounds_and_a_retry_mends_them(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 503, "share": 1.0}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "down.csv", topics(40)))
    ran = bench.run(batch, transient_tries=2, breaker=BreakerRules(cooldown_s=0.2))
    assert ran.outcomes == {"failed": 40}
    assert len(simulator.journal()) == 2 * 2 * 2
    assert "did not answer" in (bench.items(batch)[0].error or "")
    simulator.configure()
    assert bench.run(batch, "again").outcomes == {"succeeded": 40}


def topics(count: int) -> list[dict[str, str]]:
    return [
        {
            "Category": "Testing",
            "Subcategory": "Rows",
            "Topic": f"Topic number {index}",
            "Description": f"What a reader learns in lesson {index} about careful testing.",
            "Resources": f"https://example.org/{index}",
        }
        for index in range(count)
    ]


def assert_quotes_its_row(bench: Bench, batch: object) -> None:
    """Every stored answer quotes the very row it belongs to: no answer went to another row."""
    from batch_pipeline.ledger.calls import find_results

    items = bench.items(batch)  # type: ignore[arg-type]
    with bench.open() as ledger, ledger.read() as connection:
        stored = find_results(
            connection,
            ledger.realm,
            sorted({str(item.cache_key) for item in items}),
            [str(items[0].model)],
        )
    for item in items:
        tldr = str(stored[str(item.cache_key)].output["tldr"])
        text = " ".join(" ".join(str(value) for value in item.row.values()).split())
        assert tldr and tldr in text, (item.number, tldr)
