"""The one way in for files: `open_table` chooses the reader by the file's ending.

What belongs here: that choice. What does not: how a format is read (its own module).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.delimited import open_delimited
from batch_pipeline.sources.objects import open_json, open_jsonl
from batch_pipeline.sources.parquet import open_parquet
from batch_pipeline.sources.table import InputTable, TableSpec, table_name
from batch_pipeline.sources.text import inspect_text

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")


def open_table(
    path: str | Path,
    *,
    name: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    required_columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
    id_column: str | None = None,
    max_cell_chars: int = 1_000_000,
) -> InputTable:
    """Open a table file as a stream of rows.

    Memory stays flat except for JSON, which is read whole.

    What is wrong with the file as a whole is raised here; what is wrong with a row is that row's
    `problem`; the rest is in the table's `warnings` once the rows were consumed. Column names match
    without case and outer spaces.

    Args:
        path: a file whose name ends in one of `SUFFIXES`.
        name: the table's name; default: from the file's name.
        encoding: of a text file; default: UTF-8, or what its byte order mark says.
        delimiter: of CSV and TSV; default: sniffed among `, ; tab |`.
        required_columns: columns that must be there.
        optional_columns: columns that get this spelling where they are there.
        id_column: the column of row ids; it must be there.
        max_cell_chars: longest cell in characters.

    Raises:
        UsageError: when the file as a whole cannot be used.
    """
    path = Path(path)
    kind = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if kind.endswith(suffix)), "")
    if not suffix:
        known = ", ".join((*TEXT_SUFFIXES, ".parquet"))
        raise UsageError(
            f"{path} does not end in a known table format.",
            f"Known are {known}; text formats also with .gz.",
        )
    spec = TableSpec(
        name=table_name(name or path.name[: -len(suffix)]),
        source=str(path),
        required_columns=required_columns,
        optional_columns=optional_columns,
        id_column=id_column,
        max_cell_chars=max_cell_chars,
    )
    if suffix == ".parquet":
        return open_parquet(path, spec)
    file = inspect_text(path, spec.source, encoding)
    match suffix.removesuffix(".gz"):
        case ".json":
            return open_json(file, spec)
        case ".jsonl" | ".ndjson":
            return open_jsonl(file, spec)
        case _:
            return open_delimited(file, spec, delimiter)
