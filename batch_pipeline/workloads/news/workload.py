"""NewsWorkload: articles in, each classified and summarized in two languages out.

What belongs here: input rows, the step `classify`, deliverables, the summary. What does not: how
tables become articles (articles.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import finalize

from batch_pipeline.engine.step import Row, Step
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.settings import load_settings
from batch_pipeline.sources.table import InputTable, canonical_hash
from batch_pipeline.sources.urls import FetchPages, open_urls
from batch_pipeline.workloads.base import no_options
from batch_pipeline.workloads.news.articles import (
    CONTENTS,
    EXTRACTED,
    ID,
    TITLE,
    TOTAL,
    URL,
    extract_of,
    open_articles,
    text_of,
    with_extracts,
)
from batch_pipeline.workloads.news.model import NewsClassification
from batch_pipeline.workloads.results import RowResult
from batch_pipeline.workloads.summary import LabelCounts, Summary, SummaryFigure

MAX_PACK = 20
OUTPUT_COLUMNS = (
    "is_financial", "country", "sector", "companies", "sentiment", "confident_score",
    "summary_en", "summary_tr",
)  # fmt: skip
_URL_LISTS = (".txt", ".txt.gz")


class NewsWorkload:
    """What to do with news articles."""

    name = "news"
    title = "News: financial or not, about whom, in which mood, and two summaries"
    required_columns: Sequence[str] = (CONTENTS,)
    item_id_column: str | None = ID
    deliverable_columns: Sequence[str] = (
        ID, URL, "page_title", *OUTPUT_COLUMNS, TOTAL, EXTRACTED, "shortened", "outcome", "error",
    )  # fmt: skip
    deliverable_formats: Sequence[str] = ("json", "jsonl", "csv", "parquet", "sqlite")
    search_columns: Sequence[str] = (
        "page_title", "sector", "companies", "summary_en", "summary_tr",
    )  # fmt: skip

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open a table of articles, or a list of URLs (`.txt`).

        Args:
            source: path.
            options: `name`, `encoding`, and for tables `delimiter`; what is absent or None is found
                out.

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        path = Path(source).expanduser()
        if not path.name.lower().endswith(_URL_LISTS):
            return open_articles(path, options)
        listed = open_urls(
            path,
            fetch_pages=self._pages,
            name=options.get("name"),
            encoding=options.get("encoding"),
        )
        return with_extracts(listed)

    @cached_property
    def _pages(self) -> FetchPages:
        """Pages through the installation's cache.

        Made once, because an ingest reads its table twice and must find the same both times. Pages
        are fetched in a rehearsal, too: they cost nothing, and what is rehearsed is then the same.
        """
        from batch_pipeline.fetch.pages import PageReader
        from batch_pipeline.fetch.settings import load_fetch_settings

        settings = load_settings()
        ledger = Ledger(settings.ledger_url, settings.realm())
        finalize(self, ledger.close)
        return PageReader(ledger, load_fetch_settings())

    def skip_reason(self, row: Row) -> str:
        """An article without text is not asked about: its title alone says too little."""
        return "" if text_of(row, CONTENTS) else "the article has no contents"

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[Step]:
        """The one step, `classify`.

        Args:
            prompt: the system prompt.
            knobs: `pack` (articles per request, 1 to 20; default 1) and `timeout_s` (default 60).

        Raises:
            UsageError: for a `pack` outside 1 to 20.
        """
        no_options(self.name, knobs)
        pack = knobs.get("pack", 1)
        if isinstance(pack, bool) or not isinstance(pack, int) or not 1 <= pack <= MAX_PACK:
            raise UsageError(
                f"pack is {pack!r}, but a news request carries 1 to {MAX_PACK} articles.",
                f"Set pack to a whole number from 1 to {MAX_PACK}.",
            )
        return (
            Step(
                name="classify",
                system_prompt=prompt,
                output_model=NewsClassification,
                content=article_content,
                items_name="articles",
                max_items=pack,
                max_input_tokens=12_000,
                # Two summaries, of which the Turkish one takes about twice the tokens, and lists.
                output_tokens_per_item=1_000,
                output_tokens_base=200,
                timeout_s=float(knobs.get("timeout_s", 60.0)),
                temperature=0.0,
            ),
        )

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """Who and what the article is, and the answer; without one, its fields are null."""
        answer = output or {}
        total = len(text_of(row, CONTENTS))
        extracted = len(extract_of(row))
        return {
            ID: text_of(row, ID) or canonical_hash(row)[:16],
            URL: text_of(row, URL) or None,
            "page_title": text_of(row, TITLE),
            **{name: answer.get(name) for name in OUTPUT_COLUMNS},
            TOTAL: total,
            EXTRACTED: extracted,
            "shortened": extracted < total,
        }

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """`results_<batch>`, as the guide has it; a later run of the batch replaces the files."""
        return f"results_{batch_id}"

    def summarize(self, rows: Iterator[RowResult]) -> Summary:
        """Financial news, sentiment, sectors, countries, companies; what was skipped or cut."""
        outcomes = dict.fromkeys(Outcome, 0)
        financial = with_text = shortened = 0
        sentiment, sector, country, companies = (LabelCounts() for _ in range(4))
        for result in rows:
            outcomes[result.item.outcome] += 1
            contents = text_of(result.item.row, CONTENTS)
            with_text += bool(contents)
            shortened += len(extract_of(result.item.row)) < len(contents)
            if (answer := result.output) is None:
                continue
            financial += answer["is_financial"] == "Yes"
            sentiment.add([answer["sentiment"]])
            sector.add(answer["sector"])
            country.add(answer["country"])
            companies.add(answer["companies"])
        total = sum(outcomes.values())
        answered, of_what = outcomes[Outcome.SUCCEEDED], "answered articles"

        def of_all(name: str, outcome: Outcome) -> SummaryFigure:
            return SummaryFigure(name=name, rows=outcomes[outcome], of=total, of_what="articles")

        figures = [
            SummaryFigure(name="Financial news", rows=financial, of=answered, of_what=of_what),
            of_all("Articles answered", Outcome.SUCCEEDED),
            of_all("Articles skipped", Outcome.SKIPPED),
            of_all("Articles failed", Outcome.FAILED),
            of_all("Articles blocked", Outcome.BLOCKED),
            of_all("Articles pending", Outcome.PENDING),
            SummaryFigure(
                name="Articles shortened",
                rows=shortened,
                of=with_text,
                of_what="articles with text",
            ),
        ]
        always = {
            "Financial news",
            "Articles answered",
            "Articles skipped",
            "Articles failed",
            "Articles shortened",
        }
        return Summary(
            title="What the articles say",
            figures=[figure for figure in figures if figure.rows or figure.name in always],
            tables=[
                sentiment.table("Sentiment", answered, of_what, several=False),
                sector.table("Sectors", answered, of_what, several=True),
                country.table("Countries", answered, of_what, several=True),
                companies.table("Companies", answered, of_what, several=True),
            ],
        )


def article_content(row: Row) -> dict[str, Any]:
    """What the prompt uses of a row: its title, and its text as far as the model reads it."""
    return {"title": text_of(row, TITLE), "content": extract_of(row)}
