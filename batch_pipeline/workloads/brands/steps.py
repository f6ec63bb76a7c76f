"""The steps of a brand: which follow which, what models are told, what the local ones do.

What belongs here: the step list and its glue. What does not: queries and pages (research.py),
answers (models.py), files (delivery.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from batch_pipeline.engine.step import AnyStep, Done, LocalStep, LocalWork, Row, Step, with_tools
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import stream_items
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.providers.base import ProviderError
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.workloads.brands.collected import (
    COLLECTION,
    RECORD,
    CollectionDocument,
    FoundSource,
    RecordDocument,
)
from batch_pipeline.workloads.brands.files import folder_names
from batch_pipeline.workloads.brands.models import ANSWERS
from batch_pipeline.workloads.brands.options import BrandOptions
from batch_pipeline.workloads.brands.research import (
    language_of,
    pages_of,
    queries_of,
    within_tokens,
)
from batch_pipeline.workloads.brands.rows import BRAND, INPUT_COLUMNS
from batch_pipeline.workloads.operator_files import Prompts

PROVIDER = "tavily"
SEARCHES = 3
"""Of a brand: one for each entry of words/queries.yaml."""

_BRANDS_SEARCHED = 12
"""At once: enough for 1,000 searches a minute, and few to ask in vain where the plan is used up."""

CONTENT_TOKENS = 9_500
"""Of what a request says of its brand: with prompt and schema it stays below 12,000. Research gets
what earlier answers leave of it."""

_LEAST_RESEARCH_TOKENS = 1_500


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Tokens of one LLM step.

    Attributes:
        bound: of an answer at most; Persian takes about twice the tokens of English.
        typical: of prompt and answer of a usual brand.
    """

    bound: int
    typical: tuple[int, int]


_SIZES = {
    "relationships": _Sizes(6_000, (10_300, 1_300)),
    "categorization": _Sizes(1_500, (9_800, 300)),
    "product_catalog": _Sizes(6_000, (9_600, 900)),
    "insights": _Sizes(6_000, (10_000, 1_200)),
}


class BrandSteps:
    """Makes the steps of a run.

    Args:
        prompts: what the LLM steps are told.
        options: the run's.
        timeout_s: seconds until a call counts as timed out.
    """

    def __init__(self, prompts: Prompts, options: BrandOptions, timeout_s: float) -> None:
        self._prompts = prompts
        self._options = options
        self._timeout_s = timeout_s

    def make(self) -> Sequence[AnyStep]:
        """The steps, in order."""
        research = self._options.research
        return (
            LocalStep(
                COLLECTION,
                with_tools(self._collect),
                applies=lambda row: research,
                # What was found stays the brand's research: its answers go by it.
                checkpoint=True,
                at_once=_BRANDS_SEARCHED,
                searches={PROVIDER: SEARCHES},
            ),
            *(self._llm_step(name) for name in ANSWERS),
            LocalStep(RECORD, self._open_record),
        )

    # ---- LLM steps ----

    def _llm_step(self, name: str) -> Step:
        sizes = _SIZES[name]
        return Step(
            name=name,
            system_prompt=self._prompts.with_shared(name),
            output_model=ANSWERS[name],
            content=partial(self._content, name),
            items_name="brands",
            output_tokens_per_item=sizes.bound,
            output_tokens_base=100,
            timeout_s=self._timeout_s,
            temperature=0.3,
            typical_tokens=sizes.typical,
        )

    def _content(self, name: str, row: Row) -> dict[str, Any]:
        """What a step is told of a brand: the row, what earlier steps found, the research."""
        content: dict[str, Any] = {
            **{column: row.get(column) or "" for column in INPUT_COLUMNS},
            "language": language_of(row, self._options),
        }
        for earlier in ANSWERS:
            if earlier == name:
                break
            # before that step has answered, for estimates
            answer = row.get(earlier) or {}
            content[earlier] = {key: said for key, said in answer.items() if key != "set_aside"}
        room = CONTENT_TOKENS - estimate_tokens(orjson.dumps(content))
        pages = (row.get(COLLECTION) or {}).get("pages", []) if self._options.research else []
        content["research"] = within_tokens(pages, max(room, _LEAST_RESEARCH_TOKENS))
        return content

    # ---- collection ----

    async def _collect(self, row: Row, place: Place, tools: Tools) -> Done:
        """Search the web for the brand."""
        queries = queries_of(row, self._options)
        notes: list[str] = []
        answers = await asyncio.gather(
            *(_ask(tools, name, query, place, notes) for name, query in queries.items())
        )
        found = [answer for answer in answers if answer is not None]
        document = CollectionDocument(pages=pages_of(found), notes=notes)
        if not found:
            return Done(
                document.model_dump(mode="json"),
                Outcome.FAILED,
                "search",
                f"None of the searches was answered. {' '.join(notes)} `batch-pipeline retry "
                f"{place.batch_id}` searches again.",
            )
        if not document.pages:
            document.notes.append("The searches found no page.")
        return Done(document.model_dump(mode="json"))

    # ---- record ----

    @asynccontextmanager
    async def _open_record(self, tools: Tools) -> AsyncIterator[LocalWork]:
        folders = _Folders(tools.ledger)

        async def work(row: Row, place: Place) -> Done:
            folder = await folders.of(place)
            return await asyncio.to_thread(self._record, row, place, folder, tools.clock.now())

        yield work

    def _record(self, row: Row, place: Place, folder: str, now: float) -> Done:
        """Put together what is known of a finished brand."""
        research = (row.get(COLLECTION) or {}) if self._options.research else {}
        collection = CollectionDocument.model_validate(research)
        document = RecordDocument.model_validate(
            {
                **{name: row[name] for name in ANSWERS},
                "sources": [FoundSource(title=one.title, url=one.url) for one in collection.pages],
                "notes": collection.notes,
                "models": {name: place.models[name] for name in ANSWERS},
                "made_at": now,
                "folder": folder,
                "csv_bom": self._options.csv_bom,
            }
        )
        return Done(document.model_dump(mode="json"))


class _Folders:
    """Names of the brands' folders: those of a batch depend on each other."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._names: dict[str, dict[str, str]] = {}
        self._reading = asyncio.Lock()

    async def of(self, place: Place) -> str:
        """The folder of a row's brand."""
        async with self._reading:
            if place.batch_id not in self._names:
                self._names[place.batch_id] = await asyncio.to_thread(
                    batch_folders, self._ledger, place.batch_id
                )
        return self._names[place.batch_id][place.item_id]


def batch_folders(ledger: Ledger, batch_id: str) -> dict[str, str]:
    """The folder of each brand of a batch by item id, whatever became of it."""
    rows = stream_items(ledger, batch_id)
    return folder_names((item.item_id, str(item.row.get(BRAND) or "")) for item in rows)


async def _ask(
    tools: Tools, name: str, query: SearchQuery, place: Place, notes: list[str]
) -> SearchAnswer | None:
    """Ask one query; None where just this one has no answer, which `notes` then say."""
    try:
        return await tools.search(PROVIDER, query, place)
    except ProviderError as error:
        notes.append(f"The search for {name} had no answer: {error.message}")
        return None
