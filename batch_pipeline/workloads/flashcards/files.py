"""A batch's files, written anew after each run: those of each topic, all cards, the Anki package.

What belongs here: which topics have files, and where they are. What does not: what is in them
(exports.py, anki.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.batches import INPUT_ERROR, Batch, Item, stream_items
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, Outcome, items, runs
from batch_pipeline.workloads.flashcards.anki import write_apkg
from batch_pipeline.workloads.flashcards.exports import (
    remove_topic_files,
    write_cards_csv,
    write_topic_files,
)
from batch_pipeline.workloads.flashcards.options import FlashcardOptions
from batch_pipeline.workloads.flashcards.record import RECORD, TopicRecord
from batch_pipeline.workloads.flashcards.times import TopicTimes, read_times
from batch_pipeline.workloads.flashcards.topics import TOPIC_PATH
from batch_pipeline.workloads.operator_files import read_options

TOPICS_FOLDER = "topics"
CARDS_FILE = "flashcards.csv"

_PAGE = 200


def write_files(ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
    """Write the files of all completed topics; those of topics that are not completed go.

    Topics are read page by page, and files that are as they should be are left alone.

    Args:
        ledger: the ledger.
        batch: the batch.
        folder: the batch's folder; it exists.

    Returns:
        The table of all cards and the Anki package, as far as they were written.
    """
    options = options_of(ledger, batch)
    times = read_times(ledger, batch.batch_id, batch.row_count)
    topics = folder / TOPICS_FOLDER
    for item, record in read_topics(ledger, batch, times):
        if record is not None:
            write_topic_files(topics, record)
        elif item.error_kind != INPUT_ERROR:
            # a row that could not be read has no files, and its path may be another's
            remove_topic_files(topics, str(item.row[TOPIC_PATH]))
    cards, package = folder / CARDS_FILE, folder / f"{batch.batch_id}.apkg"

    def records() -> Iterator[TopicRecord]:
        return (record for _, record in read_topics(ledger, batch, times) if record is not None)

    written = [cards] if write_cards_csv(cards, records(), bom=options.csv_bom) else []
    at = _newest_end(ledger, batch)
    if options.anki and written and write_apkg(package, records(), at=at):
        written.append(package)
    for path in {cards, package} - set(written):
        path.unlink(missing_ok=True)
    return written


def read_topics(
    ledger: Ledger, batch: Batch, times: TopicTimes
) -> Iterator[tuple[Item, TopicRecord | None]]:
    """The topics of a batch in order, page by page: the row, and what came of a completed one.

    What a topic cost and how long it took are the ledger's figures.
    """
    found = stream_items(ledger, batch.batch_id, page=_PAGE)
    while page := list(islice(found, _PAGE)):
        done = [item.ordinal for item in page if item.outcome is Outcome.SUCCEEDED]
        with ledger.read() as connection:
            kept = read_documents(connection, ledger.realm, batch.batch_id, done, steps=[RECORD])
        for item in page:
            document = kept.get(item.ordinal, {}).get(RECORD)
            if document is None:
                yield item, None
                continue
            record = TopicRecord.model_validate(document.content)
            known = {
                "cost_usd": round(item.cost_nano / NANO, 9),
                "duration_s": round(times.duration_s(item.ordinal), 3),
            }
            yield item, record.model_copy(update=known)


def options_of(ledger: Ledger, batch: Batch) -> FlashcardOptions:
    """The options of a batch's newest run; the defaults where it has none."""
    statement = (
        sa.select(runs.c.settings)
        .where(runs.c.realm == ledger.realm, runs.c.batch_id == batch.batch_id)
        .order_by(runs.c.started_at.desc())
        .limit(1)
    )
    with ledger.read() as connection:
        settings = connection.execute(statement).scalar()
    return read_options(
        FlashcardOptions,
        {} if settings is None else orjson.loads(settings).get("options", {}),
        "flashcards",
    )


def _newest_end(ledger: Ledger, batch: Batch) -> float:
    """When the last of a batch's topics ended: the package is as new as that, each time."""
    statement = sa.select(sa.func.max(items.c.settled_at)).where(
        items.c.realm == ledger.realm, items.c.batch_id == batch.batch_id
    )
    with ledger.read() as connection:
        return float(connection.execute(statement).scalar() or batch.created_at)
