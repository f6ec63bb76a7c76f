"""FlashcardsWorkload: topics in, sets of checked question cards out.

What belongs here: what component, CLI and reports know of flashcards. What does not: the steps
(steps.py), reading topics (topics.py), the files (files.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from batch_pipeline.engine.step import AnyStep, Row
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.sources.table import InputTable
from batch_pipeline.workloads.base import no_packs
from batch_pipeline.workloads.flashcards.files import write_files
from batch_pipeline.workloads.flashcards.options import FlashcardOptions
from batch_pipeline.workloads.flashcards.record import RECORD, TopicRecord
from batch_pipeline.workloads.flashcards.rules import load_check_rules, load_voting_rules
from batch_pipeline.workloads.flashcards.steps import EXA, FlashcardSteps
from batch_pipeline.workloads.flashcards.topics import FILTERS, TOPIC_PATH, open_topics
from batch_pipeline.workloads.operator_files import Prompts, read_options
from batch_pipeline.workloads.results import RowResult
from batch_pipeline.workloads.summary import Summary, SummaryFigure, outcome_figures, table_of

_MOST_LABELS = 12


class FlashcardsWorkload:
    """What to do with topics of a curriculum."""

    name = "flashcards"
    title = "Flashcards: topics researched, cards written and checked"
    required_columns: Sequence[str] = ("topic_title",)
    item_id_column: str | None = TOPIC_PATH
    reading_options: Sequence[str] = FILTERS
    deliverable_columns: Sequence[str] = (
        "topic_path", "title", "category", "domain", "subdomain", "mode", "cards", "wanted",
        "refused", "mean_score", "sources", "vote", "approval", "model", "item_id", "outcome",
        "error",
    )  # fmt: skip
    deliverable_formats: Sequence[str] = ("csv", "jsonl", "sqlite")
    search_columns: Sequence[str] = ("title", "category", "domain", "subdomain")
    result_step = RECORD

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open topics: a tree of topic.json, or a table file; see `open_topics`.

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        return open_topics(source, options)

    def skip_reason(self, row: Row) -> str:
        """No topic is skipped: what cannot be asked about is an error that names the cell."""
        return ""

    def search_providers(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Search providers whose keys a run needs.

        Raises:
            UsageError: an option cannot be used.
        """
        chosen = read_options(FlashcardOptions, options, "flashcards")
        return (EXA,) if chosen.mode == "exa" and chosen.research else ()

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[AnyStep]:
        """Research as the mode has it, cards, checks, cards again where they fail, the record.

        Args:
            prompt: what holds for every card.
            knobs: `timeout_s` (default 180), `folder` (prompts and rules), `options`.

        Raises:
            UsageError: an option, a prompt file or a rules file cannot be used, or `pack` is set.
        """
        no_packs(knobs, "topics are asked about one by one: a search's sources are one topic's")
        folder = Path(knobs["folder"])
        return FlashcardSteps(
            Prompts(prompt, folder),
            load_check_rules(folder),
            load_voting_rules(folder),
            read_options(FlashcardOptions, knobs.get("options", {}), "flashcards"),
            float(knobs.get("timeout_s", 180.0)),
        ).make()

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """The topic, and what its cards came to; where it is not completed, those fields are null.

        `flashcards` are the cards themselves: for those who read results over HTTP. It is no column
        of the tables, where flashcards.csv has a row for each card.
        """
        done = None if output is None else TopicRecord.model_validate(output)
        return {
            "topic_path": row.get(TOPIC_PATH),
            "title": row.get("topic_title"),
            "category": row.get("category_title"),
            "domain": row.get("domain_title"),
            "subdomain": row.get("subdomain_title"),
            "mode": None if done is None else done.mode,
            "flashcards": None
            if done is None
            else [card.model_dump(mode="json") for card in done.cards],
            "cards": None if done is None else len(done.cards),
            "wanted": None if done is None else done.wanted,
            "refused": None if done is None else len(done.refused),
            "mean_score": None if done is None else done.mean_score,
            "sources": None if done is None else [source.url for source in done.sources],
            "vote": None if done is None else done.decision,
            "approval": None if done is None else done.approval,
            "model": None if done is None else done.model,
        }

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """`topics_<batch>`; a later run of the batch replaces the files."""
        return f"topics_{batch_id}"

    def deliver_files(self, ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
        """The files of each completed topic, the table of all cards, the Anki package."""
        return write_files(ledger, batch, folder)

    def summarize(self, rows: Iterator[RowResult]) -> Summary:
        """How many topics were completed, their cards, and why others were not."""
        outcomes: Counter[Outcome] = Counter()
        sizes: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        levels: Counter[str] = Counter()
        difficulties: Counter[str] = Counter()
        checks: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        wanted = refused = 0
        for result in rows:
            item = result.item
            outcomes[item.outcome] += 1
            if item.outcome in (Outcome.FAILED, Outcome.BLOCKED):
                reasons[item.error_kind or "unknown"] += 1
            if result.output is None:
                continue
            done = TopicRecord.model_validate(result.output)
            wanted += done.wanted
            refused += len(done.refused)
            sizes[f"{len(done.cards)} cards"] += 1
            kinds.update(card.question_type for card in done.cards)
            levels.update(card.bloom_level for card in done.cards)
            difficulties.update(card.difficulty for card in done.cards)
            checks.update(name for one in done.refused for name in set(one.checks))
        delivered = kinds.total()
        table = partial(table_of, most=_MOST_LABELS)
        words = {
            "Completed": Outcome.SUCCEEDED,
            "Failed": Outcome.FAILED,
            "Blocked": Outcome.BLOCKED,
            "Pending": Outcome.PENDING,
        }
        return Summary(
            title="What became of the topics",
            figures=[
                *outcome_figures(outcomes, words, "topics", ("Completed", "Failed", "Blocked")),
                SummaryFigure(
                    name="Cards delivered", rows=delivered, of=wanted, of_what="cards wanted"
                ),
                SummaryFigure(
                    name="Cards refused",
                    rows=refused,
                    of=delivered + refused,
                    of_what="cards written",
                ),
            ],
            tables=[
                table("Cards per topic", sizes, "completed topics"),
                table("Question types", kinds, "cards"),
                table("Bloom levels", levels, "cards"),
                table("Difficulty", difficulties, "cards"),
                table("Checks that refused cards fail", checks, "refused cards", of=refused),
                table("Why topics are not completed", reasons, "topics"),
            ],
        )
