"""Which brands need work: each row of a table beside what the ledger has on its brand.

What belongs here: the last facts of every brand, the reasons, and which rows a batch leaves out.
What does not: running brands, reading tables (rows.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.batches import INPUT_ERROR, SAME_BATCH, TRIAL, UNCHANGED
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, attempts, batches, items
from batch_pipeline.sources.table import InputRow, InputTable
from batch_pipeline.workloads.brands.rows import BRAND, INPUT_COLUMNS, brand_key
from batch_pipeline.workloads.brands.text import as_written

WORKLOAD = "brands"
MAX_ERROR_CHARS = 500


class Reason(StrEnum):
    """Why a brand is worked on, or is not."""

    FORCED = "forced"
    NEW_BRAND = "new_brand"
    INPUTS_CHANGED = "inputs_changed"
    RETRY_FAILED = "retry_failed"
    ALREADY_PROCESSED = "already_processed"


@dataclass(frozen=True, slots=True)
class Fact:
    """How a row of a brand ended, in the last batch in which rows of this brand ended.

    Attributes:
        brand: its name, as written there.
        key: under which its rows are found (rows.brand_key).
        input_hash: of what it was asked with.
        outcome: succeeded, failed or blocked.
        error: why it did not succeed, its first characters; empty otherwise.
        ended_at: UTC seconds.
        batch_id: the batch.
        item_id: the row's id there.
        number: the row's number there.
        run_id: the run that gave it its last answer; empty where none did.
        ordinal: the row's place in that batch, from 0.
    """

    brand: str
    key: str
    input_hash: str
    outcome: Outcome
    error: str
    ended_at: float
    batch_id: str
    item_id: str
    number: int
    run_id: str = ""
    ordinal: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to happen with a row.

    Attributes:
        number: the row's number in the table.
        brand: its brand, as written.
        reason: why.
        chosen: whether this run works on it; False also where the limit leaves it for later.
        last: what is known of it; None for a new brand.
    """

    number: int
    brand: str
    reason: Reason
    chosen: bool
    last: Fact | None = None

    @property
    def needs_work(self) -> bool:
        """Whether there is anything to do, now or later."""
        return self.reason is not Reason.ALREADY_PROCESSED

    @property
    def words(self) -> str:
        """The decision for a person."""
        last = self.last
        match self.reason:
            case Reason.NEW_BRAND:
                return "New: no batch has a result of this brand."
            case Reason.FORCED:
                return "Forced: it is done again, whatever is known."
            case Reason.INPUTS_CHANGED:
                return f"Name, website or parent company changed since {_place(last)}."
            case Reason.RETRY_FAILED:
                return f"It failed in {_place(last)}."
            case _ if last is not None and last.outcome is Outcome.BLOCKED:
                return (
                    f"Blocked in {_place(last)}: a person must decide. Next: `batch-pipeline "
                    "review list`, or --force to ask again."
                )
            case _:
                return f"Unchanged since it succeeded in {_place(last)}; --force does it again."


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions for a table, in its order.

    Attributes:
        decisions: one for each row.
        tracked: brands that the ledger knows, and how each ended last.
    """

    decisions: Sequence[Decision]
    tracked: Mapping[Outcome, int]

    @property
    def chosen(self) -> list[Decision]:
        """Rows that this run works on."""
        return [decision for decision in self.decisions if decision.chosen]

    @property
    def reasons(self) -> Counter[Reason]:
        """Rows by reason."""
        return Counter(decision.reason for decision in self.decisions)

    @property
    def left_by_limit(self) -> int:
        """Rows that need work and are left for a later run."""
        return sum(one.needs_work and not one.chosen for one in self.decisions)


def input_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 of a row's brand_name, parent_company and website, stripped, as sorted JSON."""
    given = {name: as_written(str(values.get(name) or "")) for name in INPUT_COLUMNS}
    text = json.dumps(given, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def decide(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    facts: Iterable[Fact],
    *,
    forced: bool = False,
    limit: int | None = None,
) -> Plan:
    """Decide about every row of a table.

    A brand may have several rows. Each takes the fact with its own inputs; those that find none
    take what is left of their brand's facts, in order, and have changed; the rest is new.

    Args:
        rows: each row's number and values.
        facts: what the ledger knows, see `read_facts`.
        forced: do everything again.
        limit: work on so many rows at most; only those that need work count.
    """
    known: dict[str, list[Fact]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: (fact.batch_id, fact.number)):
        known[fact.key].append(fact)
    tracked = Counter(_standing(of_brand) for of_brand in known.values())

    table = [(number, values, brand_key(values)) for number, values in rows]
    matched: dict[int, Fact] = {}
    free = {key: list(of_brand) for key, of_brand in known.items()}
    hashes = [input_hash(values) for _, values, _ in table]
    for place, (_, _, key) in enumerate(table):
        same = [fact for fact in known.get(key, ()) if fact.input_hash == hashes[place]]
        if same:
            # two rows with the same inputs have the same result
            matched[place] = next((one for one in same if one in free[key]), same[-1])
            if matched[place] in free[key]:
                free[key].remove(matched[place])
    for place, (_, _, key) in enumerate(table):
        if place not in matched and free.get(key):
            matched[place] = free[key].pop(0)

    decisions: list[Decision] = []
    room = len(table) if limit is None else limit
    for place, (number, values, _) in enumerate(table):
        last = matched.get(place)
        reason = _reason(last, hashes[place], forced)
        chosen = reason is not Reason.ALREADY_PROCESSED and room > 0
        room -= chosen
        decisions.append(Decision(number, str(values.get(BRAND) or ""), reason, chosen, last))
    return Plan(decisions, tracked)


def choose_rows(
    table: InputTable, ledger: Ledger, batch_id: str, forced: bool
) -> Iterator[tuple[InputRow, str]]:
    """Each row of a table, and why nothing is to be done about it, or empty.

    What was decided is counted in the table's notes.

    Args:
        table: a table of brands.
        ledger: what it knows decides.
        batch_id: the batch that is being made.
        forced: do everything again.
    """
    rows = list(table.rows)
    usable = ((row.number, row.values) for row in rows if not row.problem)
    plan = decide(usable, read_facts(ledger, apart_from=batch_id), forced=forced)
    table.notes.append(registry_words(plan))
    left_out = {one.number: one.words for one in plan.decisions if not one.needs_work}
    for row in rows:
        yield row, left_out.get(row.number, "")


def registry_words(plan: Plan) -> str:
    """What is known of all brands, and what is to be done, in one line."""
    tracked = plan.tracked
    known = [
        f"{tracked.get(outcome, 0):,} {outcome.value}"
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.BLOCKED)
        if tracked.get(outcome) or outcome is not Outcome.BLOCKED
    ]
    reasons = plan.reasons
    to_do = [f"{reasons[reason]:,} {word}" for reason, word in _REASON_WORDS if reasons[reason]]
    unchanged = reasons[Reason.ALREADY_PROCESSED]
    work = reasons.total() - unchanged
    return (
        f"Registry at ingest: {sum(tracked.values()):,} brands tracked ({', '.join(known)}); "
        f"{work:,} to do{': ' if to_do else ''}{', '.join(to_do)}; {unchanged:,} unchanged."
    )


def read_facts(ledger: Ledger, *, apart_from: str = "") -> list[Fact]:
    """What the ledger's realm has on every brand, from all batches of the workload.

    Of each brand the newest batch counts in which a row of it ended: in a table, as in the sheet,
    the last run is what a brand's files and status tell of. A row that was unchanged there brings
    its fact along from before. Pending rows are no facts, nor are rows that could not be read and
    batches that only tried a few rows out.

    Args:
        ledger: the ledger.
        apart_from: a batch that does not count: the one that is decided about.
    """
    statement = (
        sa.select(
            items.c.row,
            items.c.outcome,
            items.c.error,
            items.c.settled_at,
            items.c.batch_id,
            items.c.item_id,
            items.c.number,
            items.c.ordinal,
            attempts.c.run_id,
        )
        .join(batches, SAME_BATCH)
        .outerjoin(attempts, attempts.c.attempt_id == items.c.attempt_id)
        .where(
            items.c.realm == ledger.realm,
            batches.c.workload == WORKLOAD,
            batches.c.launch != TRIAL,
            batches.c.batch_id != apart_from,
            sa.or_(
                items.c.outcome.in_(
                    [Outcome.SUCCEEDED.value, Outcome.FAILED.value, Outcome.BLOCKED.value]
                ),
                items.c.error_kind == UNCHANGED,
            ),
            sa.func.coalesce(items.c.error_kind, "") != INPUT_ERROR,
        )
        .order_by(batches.c.created_at, batches.c.batch_id, items.c.ordinal)
    )
    newest: dict[str, _Newest] = {}
    with ledger.read() as connection:
        for row in connection.execution_options(yield_per=500).execute(statement):
            values = orjson.loads(row.row)
            key = brand_key(values)
            of_brand = newest.setdefault(key, _Newest())
            of_brand.begin(row.batch_id)
            if row.outcome == Outcome.SKIPPED.value:
                of_brand.bring_along(input_hash(values))
                continue
            fact = Fact(
                brand=str(values.get(BRAND) or ""),
                key=key,
                input_hash=input_hash(values),
                outcome=Outcome(row.outcome),
                error=(row.error or "")[:MAX_ERROR_CHARS]
                if row.outcome != Outcome.SUCCEEDED.value
                else "",
                ended_at=row.settled_at or 0.0,
                batch_id=row.batch_id,
                item_id=row.item_id,
                number=row.number,
                run_id=row.run_id or "",
                ordinal=row.ordinal,
            )
            of_brand.ended.append(fact)
    return [fact for of_brand in newest.values() for fact in of_brand.facts]


@dataclass(slots=True)
class _Newest:
    """A brand's facts, as its rows are read batch by batch.

    Attributes:
        batch_id: the batch that is read.
        before: what was known when it was made.
        ended: of its rows that ended there.
        unchanged: of those that were left out there, from before.
    """

    batch_id: str = ""
    before: list[Fact] = field(default_factory=list)
    ended: list[Fact] = field(default_factory=list)
    unchanged: list[Fact] = field(default_factory=list)

    @property
    def facts(self) -> list[Fact]:
        """What is known: where no row has ended, that is what was known before."""
        return [*self.unchanged, *self.ended] if self.ended else self.before

    def begin(self, batch_id: str) -> None:
        """A row of this batch comes next."""
        if batch_id != self.batch_id:
            self.before, self.ended, self.unchanged = self.facts, [], []
            self.batch_id = batch_id

    def bring_along(self, hashed: str) -> None:
        """The row was left out, because its inputs had come to something before."""
        for fact in self.before:
            if fact.input_hash == hashed and fact not in self.unchanged:
                self.unchanged.append(fact)
                return


_REASON_WORDS = (
    (Reason.FORCED, "forced"),
    (Reason.NEW_BRAND, "new"),
    (Reason.INPUTS_CHANGED, "changed"),
    (Reason.RETRY_FAILED, "failed before"),
)


def _reason(last: Fact | None, row_hash: str, forced: bool) -> Reason:
    if forced:
        return Reason.FORCED
    if last is None:
        return Reason.NEW_BRAND
    if last.input_hash != row_hash:
        return Reason.INPUTS_CHANGED
    if last.outcome is Outcome.FAILED:
        return Reason.RETRY_FAILED
    return Reason.ALREADY_PROCESSED


def _standing(of_brand: Sequence[Fact]) -> Outcome:
    """How a brand ended: as the worst of its rows."""
    outcomes = {fact.outcome for fact in of_brand}
    order = (Outcome.FAILED, Outcome.BLOCKED)
    return next((worst for worst in order if worst in outcomes), Outcome.SUCCEEDED)


def _place(fact: Fact | None) -> str:
    return "" if fact is None else f"batch {fact.batch_id}, row {fact.number}"
