"""What the outputs of a batch say as a whole: a few figures and counts that every report shows.

What belongs here: the summary's form, the seam for workloads that have one, counting labels. What
does not: a workload's own figures, looks (reports/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.base import load_workload
from batch_pipeline.workloads.results import RowResult, stream_results

_MOST_LABELS = 20_000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SummaryFigure(_Part):
    """A number of rows that something holds for."""

    name: str = Field(description="What holds for them, in a word or two.")
    rows: int = Field(description="Rows it holds for.")
    of: int = Field(description="Of how many.")
    of_what: str = Field(description="What these are, for example `answered articles`.")


class SummaryEntry(_Part):
    """One label of a table."""

    label: str = Field(description="The label, as most rows spell it.")
    rows: int = Field(description="Rows that have it.")


class SummaryTable(_Part):
    """How many rows have which label."""

    title: str = Field(description="What the labels are, for example `Sentiment`.")
    of: int = Field(description="Rows looked at: the denominator of every share.")
    of_what: str = Field(description="What these are, for example `answered articles`.")
    several: bool = Field(
        description="A row may have several labels, or none, so that shares do not add up to 1."
    )
    entries: list[SummaryEntry] = Field(description="The most frequent labels, most rows first.")
    more_labels: int = Field(description="Further labels, which fewer rows have.")


class Summary(_Part):
    """What the outputs of a batch say as a whole."""

    title: str = Field(description="Its heading.")
    figures: list[SummaryFigure] = Field(description="Single figures.")
    tables: list[SummaryTable] = Field(description="Counts by label.")


@runtime_checkable
class Summarizing(Protocol):
    """What a workload has besides `Workload` when its outputs add up to something."""

    def summarize(self, rows: Iterator[RowResult]) -> Summary:
        """Sum up a batch.

        Args:
            rows: all its rows, in order; consumed once. A batch may be large: keep counts, not
                rows.
        """
        ...


def summarize_batch(ledger: Ledger, batch: Batch) -> Summary | None:
    """What a batch's outputs say so far; None where its workload has no summary or is gone."""
    try:
        workload = load_workload(batch.workload)
    except UsageError:
        return None
    if not isinstance(workload, Summarizing):
        return None
    return workload.summarize(stream_results(ledger, batch, workload))


def outcome_figures(
    outcomes: Mapping[Outcome, int],
    words: Mapping[str, Outcome],
    of_what: str,
    always: Collection[str],
) -> list[SummaryFigure]:
    """How many of all rows ended how.

    Args:
        outcomes: all rows, by outcome.
        words: what the outcomes are called, in the order of the figures.
        of_what: what the rows are.
        always: names that are said at 0 too.
    """
    total = sum(outcomes.values())
    return [
        SummaryFigure(name=name, rows=outcomes.get(outcome, 0), of=total, of_what=of_what)
        for name, outcome in words.items()
        if outcomes.get(outcome) or name in always
    ]


def table_of(
    title: str, counts: Counter[str], of_what: str, *, of: int | None = None, most: int = 10
) -> SummaryTable:
    """A table of labels of our own; those that models choose are for LabelCounts.

    Args:
        title: what the labels are.
        counts: rows by label.
        of_what: what the rows are.
        of: how many there are, where a row may have several labels, or none.
        most: labels at most, the most frequent ones first.
    """
    return SummaryTable(
        title=title,
        of=counts.total() if of is None else of,
        of_what=of_what,
        several=of is not None,
        entries=[SummaryEntry(label=k, rows=n) for k, n in counts.most_common(most)],
        more_labels=max(0, len(counts) - most),
    )


class LabelCounts:
    """Counts rows by label; labels that differ in case alone are one.

    After the first 20,000 labels, new ones are counted together, so that memory has a bound.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._spellings: dict[str, dict[str, int]] = {}
        self._beyond = 0

    def add(self, labels: Iterable[str]) -> None:
        """Count one row's labels, each once."""
        for key, label in {label.casefold(): label for label in labels}.items():
            if key not in self._rows and len(self._rows) >= _MOST_LABELS:
                self._beyond += 1
                continue
            self._rows[key] = self._rows.get(key, 0) + 1
            spellings = self._spellings.setdefault(key, {})
            if label in spellings or len(spellings) < 10:
                spellings[label] = spellings.get(label, 0) + 1

    def table(
        self, title: str, of: int, of_what: str, *, several: bool, most: int = 10
    ) -> SummaryTable:
        """The most frequent labels; among equals, in the order of the alphabet."""
        ranked = sorted(self._rows.items(), key=lambda pair: (-pair[1], pair[0]))
        entries = [
            SummaryEntry(label=self._spelling(key), rows=rows) for key, rows in ranked[:most]
        ]
        return SummaryTable(
            title=title,
            of=of,
            of_what=of_what,
            several=several,
            entries=entries,
            more_labels=max(0, len(ranked) - most) + self._beyond,
        )

    def _spelling(self, key: str) -> str:
        spellings = self._spellings[key]
        return max(sorted(spellings), key=spellings.__getitem__)
