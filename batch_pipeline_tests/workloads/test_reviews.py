"""What a person sees of a row that waits, and what each decision comes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, Item, NewItem, read_items
from batch_pipeline.ledger.documents import documents_of
from batch_pipeline.ledger.reviews import DecisionKind, ReviewConflictError, decisions_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, items
from batch_pipeline.workloads.reviews import (
    Decided,
    NoSuchRowError,
    Verdict,
    decide_rows,
    find_row,
    has_review_queue,
    list_cases,
    read_case,
    what_next,
)
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.ledger.books import ingest_rows, open_ledger
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.essays import Essays, blocked_batch

OVERRIDE, REGENERATE, SKIP = DecisionKind.OVERRIDE, DecisionKind.REGENERATE, DecisionKind.SKIP


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def row(ledger: Ledger, batch: Batch, ordinal: int = 0) -> Item:
    with ledger.read() as connection:
        return read_items(connection, ledger.realm, batch.batch_id, ordinal, 1)[0]


def act(ledger: Ledger, batch: Batch, kind: DecisionKind, *rows: int, **more: Any) -> list[Decided]:
    given = {"reviewer": "Ann", "reason": "Because.", **more}
    seen = [row(ledger, batch, at) for at in rows or (0,)]
    return decide_rows(ledger, batch, seen, Verdict(kind, **given))


# ---- looking -------------------------------------------------------------------------------------


def test_a_row_is_found_by_its_number_its_id_and_its_workloads_own_name(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats", "dogs", "cows"])
    for name in ("2", "essays-1", "job_essays_1"):
        assert find_row(ledger, batch, name).ordinal == 1, name
    for name in ("4", "0", "", "job_essays_9", "²", "9" * 40, "2'"):
        with pytest.raises(NoSuchRowError, match="has no row"):
            find_row(ledger, batch, name)


def test_a_number_means_the_row_of_that_number_before_it_means_an_id(ledger: Ledger) -> None:
    given = [NewItem("2", 1, {"Topic": "a"}), NewItem("7", 2, {"Topic": "b"})]
    batch, _ = ingest_rows(ledger, "numbers", given)
    found = {name: find_row(ledger, batch, name).number for name in ("1", "2", "7")}
    assert found == {"1": 1, "2": 2, "7": 2}


def test_a_case_has_what_the_workload_says_the_files_that_exist_and_the_history(
    ledger: Ledger, tmp_path: Path
) -> None:
    batch = blocked_batch(ledger, ["cats", "money"])
    (tmp_path / "job_essays_1.md").write_text("All about it.")
    case = read_case(ledger, batch, row(ledger, batch, 1), tmp_path)
    assert case.name == "job_essays_1" and case.facts.headline == "An essay about money"
    assert case.facts.signoff_required and not case.facts.needs_writing
    assert case.files == [tmp_path / "job_essays_1.md"]
    assert case.history == [] and case.since is not None
    act(ledger, batch, SKIP, 1)
    (decision,) = read_case(ledger, batch, row(ledger, batch, 1), tmp_path).history
    assert [one["category"] for one in decision.details["issues"]] == ["length", "style"]


def test_a_workload_without_more_to_say_shows_the_row_and_its_error(ledger: Ledger) -> None:
    for workload in ("roadmaps", "gone.away:Workload"):
        batch = blocked_batch(
            ledger, ["x" * 300], batch_id=workload[:4], workload=workload, kind="refused"
        )
        (case,) = list_cases(ledger, lambda _: Path("none"), workload=workload)
        assert (case.name, case.files, case.facts.needs_writing) == ("", [], False)
        assert len(case.facts.headline) == 100
        assert [(one.category, one.message) for one in case.facts.why] == [
            ("refused", "It is too short."),
        ]  # fmt: skip
        assert case.facts.summary == [("Topic", "x" * 300)]
        with pytest.raises(NoSuchRowError):
            find_row(ledger, batch, "job_1")


def test_a_workload_says_itself_whether_its_queue_is_an_asset() -> None:
    domain: Any = Essays()
    assert not has_review_queue(domain)
    domain.has_review_queue = True
    assert has_review_queue(domain)


# ---- override ------------------------------------------------------------------------------------


def test_an_accepted_row_counts_as_succeeded(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats", "dogs"])
    decided = act(ledger, batch, OVERRIDE, 0, 1, 0)
    assert [one.outcome for one in decided] == [Outcome.SUCCEEDED] * 2
    assert what_next(decided).startswith("Report and deliverables follow")
    assert row(ledger, batch).outcome is Outcome.SUCCEEDED
    assert documents_of(ledger, batch.batch_id, 0)["plan"].editor == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"Row 1 \(essays-0\) needs a sign-off: It is about money\. Add --sign-off .*Ann, Bo"),
        ({"sign_off": True, "reviewer": "Cy"}, r"Cy may not sign off Row 1 .*: Ann, Bo Ek\."),
        ({"reviewer": " "}, "needs the reviewer's name"),
        ({"reason": "\n"}, "needs a reason"),
    ],
)
def test_an_override_that_is_not_complete_is_refused(
    ledger: Ledger, more: dict[str, Any], said: str
) -> None:
    batch = blocked_batch(ledger, ["money"])
    with pytest.raises(UsageError, match=said):
        act(ledger, batch, OVERRIDE, **more)
    assert row(ledger, batch).outcome is Outcome.BLOCKED
    assert decisions_of(ledger, batch.batch_id) == {}


def test_who_may_sign_off_does(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["money"])
    (one,) = act(ledger, batch, OVERRIDE, sign_off=True, reviewer=" bo ek ")
    assert (one.decision.signed_off, one.decision.reviewer) == (True, "bo ek")


def test_a_row_that_was_never_written_is_written_with_its_issues_accepted(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats"], written=False)
    (one,) = act(ledger, batch, OVERRIDE)
    assert one.outcome is row(ledger, batch).outcome is Outcome.PENDING
    assert what_next([one]) == "1 row waits for the next run of the batch"
    plan = documents_of(ledger, batch.batch_id, 0)["plan"]
    # the issue of style did not block it
    assert plan.content["accepted"] == ["length"] == one.decision.details["accepted"]
    assert (plan.editor, plan.run_id, plan.outcome) == ("Ann", "run-1", Outcome.SUCCEEDED)
    assert row(ledger, batch).fresh_after == 0, "what is known of it need not be asked again"


def test_a_row_that_was_declined_has_no_answer_to_accept(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["x"], workload="roadmaps", kind="refused")
    with pytest.raises(UsageError, match=r"Row 1 \(essays-0\) has no answer"):
        act(ledger, batch, OVERRIDE)


# ---- regenerate and skip -------------------------------------------------------------------------


def test_a_row_goes_on_from_an_edited_plan(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats"])
    package = {"job": "job_essays_0", "words": 900}
    (one,) = act(ledger, batch, REGENERATE, package=package)
    plan = documents_of(ledger, batch.batch_id, 0)["plan"]
    assert (plan.content["words"], plan.editor) == (900, "Ann")
    assert row(ledger, batch).fresh_after == one.decision.decided_at == plan.made_at
    assert one.decision.details["edited"] is True


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({"job": "job_essays_0", "words": "many"}, "The plan's words: Input should be a valid"),
        ({"job": "job_essays_0"}, "The plan's words: Field required"),
        ({"job": "job_essays_1", "words": 1}, "The plan is of job job_essays_1"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_and_nothing_is_decided(
    ledger: Ledger, package: dict[str, Any], said: str
) -> None:
    batch = blocked_batch(ledger, ["cats", "dogs"])
    with pytest.raises(UsageError, match=said):
        act(ledger, batch, REGENERATE, package=package)
    assert row(ledger, batch).outcome is Outcome.BLOCKED
    assert documents_of(ledger, batch.batch_id, 0)["plan"].content["words"] == 300


def test_a_package_is_one_rows_and_not_every_workload_has_one(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats", "dogs"])
    with pytest.raises(UsageError, match="belongs to one row"):
        act(ledger, batch, REGENERATE, 0, 1, package={})
    plain = blocked_batch(ledger, ["x"], batch_id="plain", workload="roadmaps")
    with pytest.raises(UsageError, match="roadmaps have no package"):
        act(ledger, plain, REGENERATE, package={})


def test_failed_rows_can_be_made_anew_or_skipped_but_have_nothing_to_accept(
    ledger: Ledger,
) -> None:
    batch = blocked_batch(ledger, ["cats", "dogs"], outcome=Outcome.FAILED)
    with pytest.raises(ReviewConflictError, match="it is failed"):
        act(ledger, batch, OVERRIDE)
    assert act(ledger, batch, REGENERATE)[0].outcome is Outcome.PENDING
    act(ledger, batch, SKIP, 1, reviewer="Bo", reason="Not wanted.")
    after = row(ledger, batch, 1)
    assert (after.outcome, after.error) == (Outcome.SKIPPED, "Skipped by Bo: Not wanted.")


def test_a_row_that_could_not_be_read_is_not_asked_again(ledger: Ledger) -> None:
    batch = blocked_batch(ledger, ["cats"], outcome=Outcome.FAILED, kind="input")
    with pytest.raises(UsageError, match="asking again cannot help"):
        act(ledger, batch, REGENERATE)
    assert act(ledger, batch, SKIP)[0].outcome is Outcome.SKIPPED


@pytest.mark.parametrize("kind", list(DecisionKind))
def test_a_decided_row_is_not_decided_again_and_says_by_whom(
    ledger: Ledger, kind: DecisionKind
) -> None:
    batch = blocked_batch(ledger, ["cats"])
    act(ledger, batch, SKIP, reviewer="Bo")
    with pytest.raises(ReviewConflictError, match=r"it is skipped\. The last decision: skip by Bo"):
        act(ledger, batch, kind)


def test_two_people_who_decide_at_once_never_both_do(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        seen = row(ledger, batch)
    ways = [OVERRIDE, REGENERATE, SKIP] * 2
    start = threading.Barrier(len(ways))
    refused: list[ReviewConflictError] = []

    def one(kind: DecisionKind, number: int) -> None:
        with open_ledger(tmp_path) as mine:
            start.wait(30)
            try:
                decide_rows(mine, batch, [seen], Verdict(kind, f"Reviewer {number}", "Because."))
            except ReviewConflictError as error:
                refused.append(error)

    threads = [threading.Thread(target=one, args=(way, at)) for at, way in enumerate(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with open_ledger(tmp_path) as ledger:
        (decision,) = decisions_of(ledger, batch.batch_id).values()
    assert decision.sequence == 1 and len(refused) == len(ways) - 1
    assert all(decision.reviewer in error.message for error in refused)


# ---- with runs -----------------------------------------------------------------------------------


def test_a_declined_row_is_asked_anew_by_the_next_run_and_a_skipped_one_never(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = [{"Topic": f"POISON {at}", "Description": f"Number {at}."} for at in range(3)]
    simulator.configure(faults=[{"kind": "refusal", "match": "POISON"}])
    bench = Bench(tmp_path, simulator, pack=1)
    batch = bench.ingest(write_rows(tmp_path / "topics.csv", rows))
    assert bench.run(batch, "first").outcomes == {"blocked": 3}
    with bench.open() as ledger:
        assert len(list_cases(ledger, lambda _: tmp_path)) == 3
        act(ledger, batch, REGENERATE, 0)
        act(ledger, batch, SKIP, 1)

    simulator.reset()
    second = bench.run(batch, "second")
    assert second.outcomes == {"succeeded": 1, "skipped": 1, "blocked": 1}
    assert simulator.summary()["attempts"] == 1


def test_a_row_made_anew_does_not_take_the_answer_that_it_had(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = [{"Topic": "Indexes", "Description": "What they cost."}]
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "topics.csv", rows))
    assert bench.run(batch, "first").outcomes == {"succeeded": 1}
    with bench.open() as ledger:
        # as a workload with a step of its own behind the answer would leave it
        blocked_outcome(ledger, batch)
        act(ledger, batch, REGENERATE)
    assert bench.run(batch, "second").outcomes == {"succeeded": 1}
    assert simulator.summary()["attempts"] == 2

    with bench.open() as ledger:
        blocked_outcome(ledger, batch)
        (one,) = act(ledger, batch, OVERRIDE)
        assert one.outcome is Outcome.SUCCEEDED and one.decision.sequence == 2
    assert bench.run(batch, "third").outcomes == {"succeeded": 1}
    assert simulator.summary()["attempts"] == 2


def blocked_outcome(ledger: Ledger, batch: Batch) -> None:
    with ledger.write() as connection:
        connection.execute(
            items.update()
            .where(items.c.batch_id == batch.batch_id)
            .values(outcome="blocked", error="No.", error_kind="qc")
        )
