"""Parquet tables, read in batches of rows.

What belongs here: pyarrow's reader and its types. What does not: any other format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import (
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    match_columns,
    object_row,
)

_BATCH_ROWS = 1000


def open_parquet(path: Path, spec: TableSpec) -> InputTable:
    """Open a Parquet file.

    Raises:
        UsageError: for a file that is missing, not Parquet, without rows, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            headers = [
                name for name in file.schema_arrow.names if not name.startswith("__index_level_")
            ]
            count = file.metadata.num_rows
    except FileNotFoundError as error:
        raise UsageError(f"{spec.source} does not exist.", "Check the path.") from error
    except (pa.ArrowException, OSError) as error:
        detail = "it is a folder" if path.is_dir() else str(error).splitlines()[0]
        raise UsageError(
            f"{spec.source} is not a readable Parquet file: {detail}.", "Export it again."
        ) from error
    columns = match_columns(headers, spec)
    if not count:
        raise UsageError(f"{spec.source} has columns and no rows.", "Export a table that has rows.")
    warnings: list[str] = []

    def rows() -> Iterator[InputRow]:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=headers):
                for record in batch.to_pylist():
                    number += 1
                    named = dict(zip(columns, record.values(), strict=True))
                    yield object_row(number, None, named, spec)

    return InputTable(
        spec.name, spec.source, columns, checked_rows(rows(), spec, warnings), warnings
    )
