"""Text files as they come: compressed or not, in the encoding they turn out to have.

What belongs here: encodings, gzip, files that are not what their name says. What does not: rows and
columns.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

from batch_pipeline.errors import UsageError

_BLOCK = 1 << 20
_GUESS_BYTES = 1 << 16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "a gzip file"),
)


@dataclass(slots=True)
class BlankLines:
    """Blank lines that a reader passed over, for one warning at the end."""

    count: int = 0
    first: int = 0

    def add(self, line: int) -> None:
        """Note the blank line at 1-based `line`."""
        self.first = self.first or line
        self.count += 1

    def report(self, warnings: list[str]) -> None:
        """Add the warning, if there is anything to say."""
        if self.count:
            lines = "line was" if self.count == 1 else "lines were"
            warnings.append(
                f"{self.count:,} blank {lines} skipped, the first at line {self.first}."
            )


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file that was read once to its end, so that its encoding is known to hold.

    Attributes:
        path: the file.
        encoding: a codec that decodes all of it; a byte order mark is taken off.
        compressed: whether it is gzip.
        size: bytes after decompression.
        note: a sentence about how it was read, for the table's warnings, or empty.
    """

    path: Path
    encoding: str
    compressed: bool
    size: int
    note: str = ""

    def open(self) -> TextIO:
        """The text from its beginning, line ends untouched."""
        return io.TextIOWrapper(_open_bytes(self.path, self.compressed), self.encoding, newline="")


def inspect_text(path: Path, source: str, encoding: str | None = None) -> TextFile:
    """Find out how to read a text file and that it can be read to its end.

    Args:
        path: the file.
        source: what the user named, for messages.
        encoding: the user's choice; None finds out: UTF-8, or what a byte order mark says.

    Raises:
        UsageError: for a file that is missing, empty, of another kind, or not in this encoding.
    """
    compressed = path.suffix.lower() == ".gz"
    try:
        with _open_bytes(path, compressed) as stream:
            start = stream.read(4096)
        for magic, kind in _KINDS:
            if start.startswith(magic):
                raise UsageError(
                    f"{source} is {kind}, not the text its name promises.",
                    "Export the table as CSV, JSON or JSONL, or give the file its right ending.",
                )
        marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
        chosen = _known_encoding(encoding) if encoding else marked or "utf-8"
        if not encoding and not marked:
            _refuse_unmarked_utf16(start, source)
        size, blank = _decode_to_end(path, compressed, chosen, source)
    except FileNotFoundError as error:
        raise UsageError(f"{source} does not exist.", "Check the path.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{source} is a folder, not a file.", "Name a file in it.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(
            f"{source} is not a whole gzip file ({error}).",
            "Copy it again, or drop the ending .gz.",
        ) from error
    except OSError as error:
        raise UsageError(
            f"{source} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    if blank:
        raise UsageError(f"{source} is empty.", "Name a file that has a header and rows.")
    note = (
        ""
        if encoding or not marked or marked == "utf-8-sig"
        else f"read as {marked.upper()} (byte order mark)."
    )
    return TextFile(path, chosen, compressed, size, note)


def _open_bytes(path: Path, compressed: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if compressed else path.open("rb")


def _known_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name.strip())
        with contextlib.suppress(UnicodeError):
            b"a".decode(codec.name)  # codecs from bytes to bytes, such as base64, fail here
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"There is no text encoding named '{name}'.", "Use for example utf-8, cp1252 or utf-16."
        ) from error
    return "utf-8-sig" if codec.name == "utf-8" else codec.name


def _refuse_unmarked_utf16(start: bytes, source: str) -> None:
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if not start or max(even, odd) * 5 < len(start):
        return
    guess = "utf-16-le" if odd > even else "utf-16-be"
    raise UsageError(
        f"{source} has a NUL byte beside every other one from byte {start.index(0)} (row 1) on, "
        "which is UTF-16 "
        "without its byte order mark.",
        f"Run again with --encoding {guess}, or save the file as UTF-8.",
    )


def _decode_to_end(path: Path, compressed: bool, encoding: str, source: str) -> tuple[int, bool]:
    """Bytes of the file, and whether it holds nothing but white space."""
    # The codec without mark handling reports positions in the file itself.
    decoder = codecs.getincrementaldecoder("utf-8" if encoding == "utf-8-sig" else encoding)()
    size, line, blank = 0, 1, True
    with _open_bytes(path, compressed) as stream:
        while True:
            block = stream.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                held = len(error.object) - len(block)
                position = size - held + error.start
                line += error.object[: error.start].decode(error.encoding, "ignore").count("\n")
                raise _wrong_encoding(error, position, line, encoding, source) from error
            size += len(block)
            line += text.count("\n")
            blank = blank and not text.strip("\ufeff \t\r\n")
            if not block:
                return size, blank


def _wrong_encoding(
    error: UnicodeDecodeError, position: int, line: int, encoding: str, source: str
) -> UsageError:
    from charset_normalizer import from_bytes

    around = error.object[max(0, error.start - _GUESS_BYTES) : error.start + _GUESS_BYTES]
    best = from_bytes(around).best()
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    bad = error.object[error.start]
    message = (
        f"{source} is not {name.upper()}: byte 0x{bad:02x} at position {position:,}, "
        f"line {line:,}, does not fit."
    )
    if best is None or codecs.lookup(best.encoding).name == codecs.lookup(name).name:
        return UsageError(message, "Save the file as UTF-8, or name its encoding with --encoding.")
    return UsageError(
        message, f"It may be {best.encoding}: run again with --encoding {best.encoding}."
    )
