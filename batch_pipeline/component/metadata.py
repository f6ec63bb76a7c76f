"""Numbers of a chunk, a run or a batch in the form that the Dagster UI shows.

What belongs here: metadata names (DESIGN 8), Markdown tables, escaping of rows' text. What does
not: where the numbers come from (engine/job.py, reports/).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from batch_pipeline.engine.job import ChunkDone, FailedRow, Tally
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.settings import Realm

Metadata = dict[str, dg.MetadataValue[Any]]

_CELL_CHARS = 200
_MOST_CHARS = 900
_BARS = "▁▂▃▄▅▆▇█"
_BAR_COUNT = 16


def chunk_metadata(done: ChunkDone, realm: Realm, ledger_url: str) -> Metadata:
    """What a partition's materialization shows."""
    tally = done.tally
    found = {
        **tally_metadata(tally, realm, done.wall_s),
        "dagster/partition_row_count": dg.MetadataValue.int(sum(tally.outcomes.values())),
        "dagster/uri": dg.MetadataValue.text(ledger_url),
    }
    if tally.latencies_s:
        found["latency"] = dg.MetadataValue.md(_histogram(tally.latencies_s))
    if done.failed:
        found["rows without a result"] = dg.MetadataValue.md(failed_table(done.failed))
    return found


def tally_metadata(tally: Tally, realm: Realm, wall_s: float) -> Metadata:
    """The numbers of a chunk or a run."""
    found: Metadata = {
        "llm/cost_usd": dg.MetadataValue.float(round(tally.cost_usd, 9)),
        "llm/requests": dg.MetadataValue.int(tally.requests),
        "llm/attempts": dg.MetadataValue.int(tally.attempts),
        "llm/input_tokens": dg.MetadataValue.int(round(tally.input_tokens)),
        "llm/cached_input_tokens": dg.MetadataValue.int(round(tally.cached_input_tokens)),
        "llm/output_tokens": dg.MetadataValue.int(round(tally.output_tokens)),
        **_outcome_metadata({outcome.value: n for outcome, n in tally.outcomes.items()}),
        "llm/cache_hits": dg.MetadataValue.int(tally.cache_hits),
        "llm/wall_s": dg.MetadataValue.float(round(wall_s, 3)),
        "llm/latency_p50_s": dg.MetadataValue.float(round(tally.latency_s(0.5), 3)),
        "llm/latency_p95_s": dg.MetadataValue.float(round(tally.latency_s(0.95), 3)),
        "llm/rate_wait_s": dg.MetadataValue.float(round(tally.rate_wait_s, 3)),
        "llm/realm": dg.MetadataValue.text(realm),
    }
    if tally.searches:
        found["llm/searches"] = dg.MetadataValue.int(tally.searches)
    return found


def report_metadata(report: BatchReport) -> Metadata:
    """A batch's totals: the UI does not add up partitions, so they stand here."""
    latency = report.latency
    found: Metadata = {
        "llm/cost_usd": dg.MetadataValue.float(report.cost_usd),
        "llm/lost_cost_usd": dg.MetadataValue.float(report.lost_cost_usd),
        "llm/requests": dg.MetadataValue.int(report.requests),
        "llm/attempts": dg.MetadataValue.int(report.attempts),
        "llm/input_tokens": dg.MetadataValue.int(report.tokens.input),
        "llm/cached_input_tokens": dg.MetadataValue.int(report.tokens.cached_input),
        "llm/output_tokens": dg.MetadataValue.int(report.tokens.output),
        **_outcome_metadata(report.outcomes.model_dump()),
        "llm/cache_hits": dg.MetadataValue.int(report.cache_hits),
        "llm/wall_s": dg.MetadataValue.float(round(report.wall_s, 3)),
        "llm/latency_p50_s": dg.MetadataValue.float(round(latency.p50_s or 0.0, 3)),
        "llm/latency_p95_s": dg.MetadataValue.float(round(latency.p95_s or 0.0, 3)),
        "llm/rate_wait_s": dg.MetadataValue.float(round(report.rate_wait_s, 3)),
        "llm/realm": dg.MetadataValue.text(report.realm),
        "dagster/row_count": dg.MetadataValue.int(report.rows),
    }
    if report.searches:
        found["llm/searches"] = dg.MetadataValue.int(sum(use.attempts for use in report.searches))
    if report.prompt_cache.saved_usd is not None:
        found["llm/prompt_cache_saved_usd"] = dg.MetadataValue.float(report.prompt_cache.saved_usd)
    for budget in report.money.budgets:
        if budget.scope == "batch":
            found["llm/budget_usd"] = dg.MetadataValue.float(budget.limit_usd)
            found["llm/budget_used_share"] = dg.MetadataValue.float(round(budget.used_share, 4))
    for line in report.estimate.lines if report.estimate else ():
        if line.name == "cost_usd" and line.expected is not None:
            found["llm/estimated_cost_usd"] = dg.MetadataValue.float(line.expected)
    if report.fallbacks:
        found["llm/rows_by_fallback"] = dg.MetadataValue.int(
            sum(fallback.rows for fallback in report.fallbacks)
        )
        found["fallback"] = dg.MetadataValue.md(
            "\n".join(f"- {_cell(fallback.text, _MOST_CHARS)}" for fallback in report.fallbacks)
        )
    return found


def _outcome_metadata(outcomes: Mapping[str, int]) -> Metadata:
    return {
        f"llm/items_{outcome.value}": dg.MetadataValue.int(outcomes[outcome.value])
        for outcome in Outcome
    }


def failed_table(rows: Iterable[FailedRow]) -> str:
    """Rows without a result, as a Markdown table."""
    return markdown_table(
        ["row", "item", "outcome", "what went wrong"],
        [[str(row.number), row.item_id, row.outcome.value, row.error] for row in rows],
    )


def file_list(paths: Iterable[Path]) -> str:
    """Files as a Markdown list."""
    return "\n".join(f"- `{path}`" for path in paths) or "none"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], most: int = _CELL_CHARS
) -> str:
    """A Markdown table whose cells are shown as text, whatever they contain.

    Args:
        columns: their names.
        rows: cells.
        most: characters of a cell that are shown.
    """
    lines = [f"| {' | '.join(_cell(name) for name in columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_cell(value, most) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any, most: int = _CELL_CHARS) -> str:
    text = " ".join(str("" if value is None else value).split())
    if len(text) > most:
        text = text[: most - 1] + "…"
    text = html.escape(text, quote=False)
    for mark in "\\`*_[]|#~!":
        text = text.replace(mark, f"\\{mark}")
    return text


def _histogram(latencies_s: Sequence[float]) -> str:
    low, high = min(latencies_s), max(latencies_s)
    width = (high - low) / _BAR_COUNT or 1.0
    counts = [0] * _BAR_COUNT
    for latency in latencies_s:
        counts[min(_BAR_COUNT - 1, int((latency - low) / width))] += 1
    top = max(counts)
    bars = "".join(" " if n == 0 else _BARS[(n * (len(_BARS) - 1)) // top] for n in counts)
    return f"`{low:.2f} s {bars} {high:.2f} s` ({len(latencies_s):,} attempts)"
