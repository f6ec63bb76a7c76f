"""BrandsWorkload: brands in, their families, categories, catalogues and campaign ideas out.

What belongs here: what component, CLI and reports know of brands. What does not: the steps
(steps.py), which brands need work (registry.py), the files (delivery.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch_pipeline.engine.step import AnyStep, Row
from batch_pipeline.ledger.batches import Batch, Item
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.sources.table import InputRow, InputTable
from batch_pipeline.workloads.base import SheetColumns, no_packs
from batch_pipeline.workloads.brands.collected import RECORD, RecordDocument
from batch_pipeline.workloads.brands.delivery import is_own_status, sheet_cells, write_files
from batch_pipeline.workloads.brands.models import ANSWERS
from batch_pipeline.workloads.brands.options import BrandOptions
from batch_pipeline.workloads.brands.registry import WORKLOAD, choose_rows
from batch_pipeline.workloads.brands.rows import (
    BRAND,
    INPUT_COLUMNS,
    PARENT,
    WEBSITE,
    find_columns,
    open_brands,
)
from batch_pipeline.workloads.brands.steps import PROVIDER, BrandSteps
from batch_pipeline.workloads.operator_files import Prompts, read_options
from batch_pipeline.workloads.results import RowResult, stream_results
from batch_pipeline.workloads.summary import LabelCounts, Summary, SummaryFigure, outcome_figures

_LISTED = 10
"""Competitors and products in a cell."""


class BrandsWorkload:
    """What to do with brands."""

    name = WORKLOAD
    title = "Brands: researched on the web, their family, category, catalogue and campaign ideas"
    required_columns: Sequence[str] = (BRAND,)
    item_id_column: str | None = None
    reading_options: Sequence[str] = ("worksheet",)
    deliverable_columns: Sequence[str] = (
        BRAND, WEBSITE, PARENT, "industry", "industry_fa", "category", "business_model",
        "price_tier", "market_position", "competitors", "products", "partners", "summary",
        "folder", "sources", "set_aside", "notes", "models", "decision", "reviewer", "reason",
        "item_id", "outcome", "error",
    )  # fmt: skip
    deliverable_formats: Sequence[str] = ("csv", "jsonl", "sqlite")
    search_columns: Sequence[str] = (BRAND, PARENT, "industry", "competitors", "summary")
    result_step = RECORD

    # ---- input ----

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open a table of brands: CSV, TSV, JSON, JSONL, Parquet or XLSX (`worksheet`).

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        return open_brands(source, options)

    def open_sheet(self, table: InputTable, options: Mapping[str, Any]) -> InputTable:
        """A worksheet of Google Sheets as a table of brands, its rows numbered as in the sheet.

        Raises:
            UsageError: its first line is a brand, not a header.
        """
        return open_brands(table.source, options, lambda source, given: table)

    def choose(
        self, table: InputTable, ledger: Ledger, batch_id: str, forced: bool
    ) -> Iterator[tuple[InputRow, str]]:
        """Each row, and why it needs no work; see registry.choose_rows."""
        return choose_rows(table, ledger, batch_id, forced)

    def skip_reason(self, row: Row) -> str:
        """No brand is skipped by itself: `choose` knows which ones are unchanged."""
        return ""

    # ---- work ----

    def search_providers(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Whose key must be there before a run starts."""
        return (PROVIDER,) if read_options(BrandOptions, options, "brands").research else ()

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[AnyStep]:
        """Collection; relationships, categorization, product catalogue, insights; the record.

        Args:
            prompt: what all LLM steps are told.
            knobs: `timeout_s` (default 120), `folder` (prompts), `options`.

        Raises:
            UsageError: an option or a prompt file cannot be used, or `pack` is set.
        """
        no_packs(knobs, "brands are asked about one by one: each brings pages of research")
        return BrandSteps(
            Prompts(prompt, Path(knobs["folder"])),
            read_options(BrandOptions, knobs.get("options", {}), "brands"),
            float(knobs.get("timeout_s", 120.0)),
        ).make()

    # ---- output ----

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """The brand, and what was found out; without a result, those fields are null.

        `answers` are the models' answers: for those who read results over HTTP. They are no column
        of the tables, where each brand has files of its own.
        """
        given = {name: row.get(name) for name in INPUT_COLUMNS}
        if output is None:
            return given
        done = RecordDocument.model_validate(output)
        kind, relations = done.categorization, done.relationships
        industry = kind.primary_industry
        levels = [
            level for level in (industry.level_1, industry.level_2, industry.level_3) if level
        ]
        partners = done.insights.cross_promotion_opportunities
        return {
            **given,
            PARENT: relations.parent_company or given[PARENT],
            "industry": industry.name_en or industry.name_fa or industry.level_1,
            "industry_fa": industry.name_fa,
            "category": " > ".join(levels),
            "business_model": kind.business_model,
            "price_tier": kind.price_tier,
            "market_position": kind.market_position,
            "competitors": [one.name for one in relations.competitors[:_LISTED]],
            "products": [one.name for one in done.product_catalog.products[:_LISTED]],
            "partners": [one.partner_brand for one in partners[:_LISTED]],
            "summary": done.insights.executive_summary.partition("\n\n")[0],
            "folder": done.folder,
            "sources": len(done.sources),
            "set_aside": done.set_aside,
            "notes": " ".join(done.notes),
            "models": ", ".join(dict.fromkeys(done.models.values())),
            "answers": {name: output[name] for name in ANSWERS},
        }

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """`brands_<batch>`; a later run of the batch replaces the files."""
        return f"brands_{batch_id}"

    def deliver_files(self, ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
        """Each brand's reports, tables and texts for a vector store."""
        return write_files(ledger, batch, stream_results(ledger, batch, self), folder)

    def sheet_columns(self, headers: Sequence[str], source: str) -> SheetColumns:
        """By which columns of a sheet rows are found again, and which ones are written.

        Raises:
            UsageError: its first line is a brand, not a header.
        """
        columns = find_columns(headers, source)
        keys = (columns.brand, columns.website, columns.parent)
        return SheetColumns(tuple(name for name in keys if name), columns.status, columns.output)

    def sheet_cells(
        self,
        ledger: Ledger,
        batch: Batch,
        items: Iterable[Item],
        folder: Path,
        roles: Collection[str],
    ) -> Iterator[tuple[int, Mapping[str, str]]]:
        """What a sheet says of rows that have ended; see delivery.sheet_cells."""
        return sheet_cells(ledger, batch, items, folder, roles)

    def own_status(self, text: str) -> bool:
        """Whether a status is in the words that are written to a sheet."""
        return is_own_status(text)

    def summarize(self, rows: Iterator[RowResult]) -> Summary:
        """How many brands were done, and what they are."""
        outcomes: Counter[Outcome] = Counter()
        industries, tiers, positions = LabelCounts(), LabelCounts(), LabelCounts()
        aside = noted = 0
        for result in rows:
            outcomes[result.item.outcome] += 1
            if result.output is None:
                continue
            done = RecordDocument.model_validate(result.output)
            industry = done.categorization.primary_industry
            industries.add([industry.name_en or industry.name_fa or industry.level_1])
            tiers.add([done.categorization.price_tier])
            positions.add([done.categorization.market_position])
            aside += done.set_aside > 0
            noted += bool(done.notes)
        completed = outcomes[Outcome.SUCCEEDED]
        words = {
            "Completed": Outcome.SUCCEEDED,
            "Failed": Outcome.FAILED,
            "Blocked": Outcome.BLOCKED,
            "Unchanged": Outcome.SKIPPED,
            "Pending": Outcome.PENDING,
        }
        of_what = "completed brands"
        return Summary(
            title="What became of the brands",
            figures=[
                *outcome_figures(outcomes, words, "brands", ("Completed", "Failed", "Unchanged")),
                *(
                    SummaryFigure(name=name, rows=rows, of=completed, of_what=of_what)
                    for name, rows in (
                        ("Answers with parts set aside", aside),
                        ("Research with gaps", noted),
                    )
                ),
            ],
            tables=[
                industries.table("Industry", completed, of_what, several=False),
                tiers.table("Price tier", completed, of_what, several=False),
                positions.table("Market position", completed, of_what, several=False),
            ],
        )
