"""Which brands need work, and what the ledger says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.batches import UNCHANGED, NewItem
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, items
from batch_pipeline.workloads.brands.registry import Fact, Plan, decide, input_hash, read_facts
from batch_pipeline.workloads.brands.rows import brand_key
from batch_pipeline_tests.ledger.books import ingest_rows, open_ledger

Given = tuple[str, str, str]  # brand, parent, outcome


def values(brand: str, parent: str = "", website: str = "") -> dict[str, str]:
    return {"brand_name": brand, "website": website, "parent_company": parent}


def fact(brand: str, parent: str, outcome: str, number: int = 1) -> Fact:
    row = values(brand, parent)
    return Fact(
        brand=brand,
        key=brand_key(row),
        input_hash=input_hash(row),
        outcome=Outcome(outcome),
        error="no answer" if outcome == "failed" else "",
        ended_at=100.0,
        batch_id="oct",
        item_id=f"item-{number}",
        number=number,
    )


def plan(rows: Sequence[tuple[str, str]], known: Sequence[Given], **settings: Any) -> Plan:
    facts = [fact(*one, number=n) for n, one in enumerate(known, start=1)]
    table = [(n, values(*row)) for n, row in enumerate(rows, start=1)]
    return decide(table, facts, **settings)


@pytest.mark.parametrize(
    ("rows", "known", "reasons"),
    [
        ([("Nike", "")], [], ["new_brand"]),
        ([("Nike", "")], [("Puma", "", "succeeded")], ["new_brand"]),
        ([("Nike", "")], [("Nike", "", "succeeded")], ["already_processed"]),
        ([("NIKE", "")], [("Nike", "", "succeeded")], ["inputs_changed"]),
        ([("Nike", "Nike Inc")], [("Nike", "", "succeeded")], ["inputs_changed"]),
        ([("Nike", "Nike Inc")], [("Nike", "", "failed")], ["inputs_changed"]),
        ([("Nike", "")], [("Nike", "", "failed")], ["retry_failed"]),
        ([("Nike", "")], [("Nike", "", "blocked")], ["already_processed"]),
        # two rows of one brand, each with its own inputs
        (
            [("Nike", "A"), ("Nike", "B")],
            [("Nike", "B", "failed"), ("Nike", "A", "succeeded")],
            ["already_processed", "retry_failed"],
        ),
        (
            [("Nike", "A"), ("Nike", "C")],
            [("Nike", "A", "succeeded"), ("Nike", "B", "succeeded")],
            ["already_processed", "inputs_changed"],
        ),
        (
            [("Nike", "C"), ("Nike", "A")],
            [("Nike", "A", "succeeded")],
            ["new_brand", "already_processed"],
        ),
        # the same row twice has the same result
        (
            [("Nike", "A"), ("Nike", "A")],
            [("Nike", "A", "succeeded")],
            ["already_processed", "already_processed"],
        ),
        (
            [("Nike", "A"), ("Nike", "A")],
            [("Nike", "A", "succeeded"), ("Nike", "A", "failed")],
            ["already_processed", "retry_failed"],
        ),
        ([("دیجی‌کالا", "")], [("ديجي كالا", "", "succeeded")], ["inputs_changed"]),
    ],
)
def test_the_reason_follows_from_the_last_inputs_and_the_last_outcome(
    rows: list[tuple[str, str]], known: list[Given], reasons: list[str]
) -> None:
    decisions = plan(rows, known).decisions
    assert [one.reason.value for one in decisions] == reasons
    assert [one.chosen for one in decisions] == [r != "already_processed" for r in reasons]


def test_force_takes_every_row() -> None:
    decided = plan([("Nike", ""), ("Puma", "")], [("Nike", "", "succeeded")], forced=True)
    assert [one.reason.value for one in decided.chosen] == ["forced", "forced"]


def test_a_limit_counts_only_rows_that_need_work() -> None:
    decided = plan(
        [("Done", ""), ("New 1", ""), ("Done too", ""), ("Failed", ""), ("New 2", "")],
        [("Done", "", "succeeded"), ("Done too", "", "succeeded"), ("Failed", "", "failed")],
        limit=2,
    )
    assert [one.brand for one in decided.chosen] == ["New 1", "Failed"]
    assert decided.left_by_limit == 1
    assert decided.reasons == {"already_processed": 2, "new_brand": 2, "retry_failed": 1}


def test_tracked_brands_are_counted_once_by_their_worst_row() -> None:
    decided = plan(
        [], [("A", "1", "succeeded"), ("A", "2", "failed"), ("B", "", "succeeded"),
             ("C", "", "blocked")],
    )  # fmt: skip
    assert decided.tracked == {Outcome.FAILED: 1, Outcome.SUCCEEDED: 1, Outcome.BLOCKED: 1}


def test_every_decision_says_why_and_where_the_last_result_is() -> None:
    known: list[Given] = [
        ("Same", "", "succeeded"), ("Changed", "", "succeeded"), ("Failed", "", "failed"),
        ("Blocked", "", "blocked"),
    ]  # fmt: skip
    rows = [("Same", ""), ("Changed", "X"), ("Failed", ""), ("Blocked", ""), ("New", "")]
    texts = [one.words for one in plan(rows, known).decisions]
    assert texts[0] == "Unchanged since it succeeded in batch oct, row 1; --force does it again."
    assert texts[1] == "Name, website or parent company changed since batch oct, row 2."
    assert texts[2] == "It failed in batch oct, row 3."
    assert texts[3].startswith("Blocked in batch oct, row 4: a person must decide.")
    assert texts[4].startswith("New")


def ended(
    ledger: Ledger, batch_id: str, rows: Sequence[tuple[dict[str, str], str]], **more: Any
) -> None:
    """A batch of brands whose rows have ended so."""
    ingest_rows(
        ledger,
        batch_id,
        [NewItem(f"{batch_id}-{n}", n, row) for n, (row, _) in enumerate(rows, start=1)],
        **{"workload": "brands", **more},
    )
    with ledger.write() as connection:
        for ordinal, (_, outcome) in enumerate(rows):
            kind = {"input": "input", "failed": "content", "skipped": UNCHANGED}.get(outcome)
            connection.execute(
                items.update()
                .where(items.c.batch_id == batch_id, items.c.ordinal == ordinal)
                .values(
                    outcome="failed" if outcome == "input" else outcome,
                    error="x" * 900 if outcome == "failed" else None,
                    error_kind=kind,
                    settled_at=None if outcome == "pending" else 50.0,
                )
            )


def test_the_newest_batch_in_which_a_brand_ended_counts(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ended(ledger, "first", [(values("Nike"), "succeeded"), (values("Puma"), "succeeded")])
        ended(ledger, "second", [(values("Nike", "Nike Inc"), "failed")])
        ended(
            ledger,
            "third",
            [
                (values("NIKE"), "pending"),
                (values("Puma"), "skipped"),
                (values("Asics"), "input"),
                (values("Asics"), "blocked"),
            ],
        )
        facts = {one.brand: one for one in read_facts(ledger)}
        assert {(one.brand, one.batch_id, one.outcome.value) for one in facts.values()} == {
            ("Puma", "first", "succeeded"),
            ("Nike", "second", "failed"),
            ("Asics", "third", "blocked"),
        }
        assert len(facts["Nike"].error) == 500
        decided = decide([(1, values("Nike", "Nike Inc")), (2, values("Nike"))], facts.values())
        assert [one.reason.value for one in decided.decisions] == ["retry_failed", "new_brand"]


def test_a_row_left_out_as_unchanged_stays_known_whatever_became_of_its_twin(
    tmp_path: Path,
) -> None:
    """Else the rows of a brand took turns: each run would do the one that the last left out."""
    here, there = values("Nike", "A"), values("Nike", "B")
    with open_ledger(tmp_path) as ledger:
        ended(ledger, "first", [(here, "succeeded"), (there, "failed")])
        ended(ledger, "second", [(here, "skipped"), (there, "succeeded")])
        ended(ledger, "third", [(here, "skipped"), (there, "skipped"), (values("Puma"), "failed")])
        ended(ledger, "fourth", [(here, "skipped"), (there, "pending")])
        found = {(one.batch_id, one.number) for one in read_facts(ledger)}
        assert found == {("first", 1), ("second", 2), ("third", 3)}
        decided = decide([(1, here), (2, there)], read_facts(ledger)).decisions
        assert [one.reason.value for one in decided] == ["already_processed"] * 2
        # and no longer than that: it is left out no more once its inputs are others
        ended(ledger, "fifth", [(values("Nike", "C"), "succeeded"), (there, "skipped")])
        known = {(one.batch_id, one.number) for one in read_facts(ledger) if one.brand == "Nike"}
        assert known == {("fifth", 1), ("second", 2)}


def test_trials_other_workloads_and_the_batch_itself_do_not_count(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ended(ledger, "tried", [(values("Nike"), "succeeded")], launch="trial")
        ended(ledger, "other", [(values("Nike"), "succeeded")], workload="roadmaps")
        ended(ledger, "mine", [(values("Nike"), "succeeded")])
        assert read_facts(ledger, apart_from="mine") == []
        assert [one.batch_id for one in read_facts(ledger)] == ["mine"]


def test_realms_do_not_mix(tmp_path: Path) -> None:
    with open_ledger(tmp_path, "simulated") as ledger:
        ended(ledger, "mine", [(values("Nike"), "succeeded")])
    with open_ledger(tmp_path, "live") as ledger:
        assert read_facts(ledger) == []
