"""What must be written so that a worksheet says what it should: pure functions over its cells.

What belongs here: finding rows again, differences, requests of a bounded size, when to write. What
does not: calls, and the follower that makes them (sheets.py).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.client import Block, Grid
from batch_pipeline.google_sheets.layout import cell_text, same_name, same_text

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TakeBack:
    """What was said is not so any more: the cell is emptied, unless somebody else's text is in it.

    Attributes:
        ours: whether a text is one that is written back.
    """

    ours: Callable[[str], bool]


Texts = Mapping[str, str | TakeBack]
Desired = Mapping[int, Texts]
"""Row number at ingest -> column -> text; an empty text empties the cell."""

MOST_CELLS = 10_000
MOST_BYTES = 1_800_000
"""Of one request; Google recommends at most 2 MB."""

_RANGE_BYTES = 80


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What to write.

    Attributes:
        blocks: the differences, from top to bottom; a new column's header is among them.
        rows: of the grid needed for them.
        columns: likewise.
        same: rows of the table that already say what they should.
        moved: rows that stand elsewhere than when the table was read.
        gone: numbers, as the table was read, of rows that are not there any more.
        changed: rows of the table with a difference.
    """

    blocks: tuple[Block, ...]
    rows: int
    columns: int
    same: int
    moved: int
    gone: tuple[int, ...]
    changed: int


def key_of(values: Sequence[str]) -> Key:
    """The texts of a row's key columns, in the form that is compared."""
    return tuple(same_text(value) for value in values)


def locate(keys: Mapping[int, Key], present: Mapping[int, Key]) -> dict[int, int]:
    """Where rows stand now.

    Rows of equal keys cannot be told apart: as many as there were keep their order, whatever was
    inserted, removed or moved around them. Of a changed number those at their old place stay
    theirs, the others follow in order; a row without counterpart is left out, and so is one whose
    key is blank.

    Args:
        keys: of all rows of the table, by the number they had when it was read.
        present: of the rows that are there now, by their number.
    """
    wanted: dict[Key, list[int]] = defaultdict(list)
    for number in sorted(keys):
        if any(keys[number]):
            wanted[keys[number]].append(number)
    there: dict[Key, list[int]] = defaultdict(list)
    for number in sorted(present):
        there[present[number]].append(number)
    found: dict[int, int] = {}
    for key, numbers in wanted.items():
        places = there.get(key, [])
        if len(places) == len(numbers):
            found.update(zip(numbers, places, strict=True))
            continue
        stay = set(numbers) & set(places)
        found.update({number: number for number in stay})
        left = (place for place in places if place not in stay)
        found.update(zip((n for n in numbers if n not in stay), left, strict=False))
    return found


def plan_write(
    grid: Grid, desired: Desired, keys: Mapping[int, Key], key_columns: Sequence[str]
) -> WritePlan:
    """The differences between what a worksheet says and what it should say.

    A column that the sheet lacks is added behind its last one, with its name as header.

    Args:
        grid: all its cells from A1 on.
        desired: what it should say; rows and columns that are not named stay as they are, and a
            row without any is looked for all the same.
        keys: see `locate`; they hold every row of `desired`.
        key_columns: the columns that the keys are made of.

    Raises:
        UsageError: the worksheet lacks a key column.
    """
    names = [same_name(text) for text in (grid[0] if grid else ())]
    places = {name: place for place, name in reversed([*enumerate(names)]) if name}
    missing = [name for name in key_columns if same_name(name) not in places]
    if missing:
        raise UsageError(
            f"The worksheet has no column '{missing[0]}' any more, by which rows are found.",
            f"Give it its header '{missing[0]}' back; what is missing is then written.",
        )
    width = max(map(len, grid))
    new: dict[int, str] = {}
    said = (texts.items() for texts in desired.values())
    for name in dict.fromkeys(
        name for texts in said for name, text in texts if isinstance(text, str)
    ):
        if same_name(name) not in places:
            places[same_name(name)] = width
            new[width] = cell_text(name)
            width += 1
    blocks = [*_blocks(1, new)]
    key_places = [places[same_name(name)] for name in key_columns]
    present = {
        number: key_of([_cell(row, place) for place in key_places])
        for number, row in enumerate(grid[1:], start=2)
    }
    found = locate(keys, present)
    changes: dict[int, dict[int, str]] = {}
    same = moved = 0
    for number in sorted(desired):
        if (row := found.get(number)) is None:
            continue
        moved += row != number
        different: dict[int, str] = {}
        for name, text in desired[number].items():
            place = places.get(same_name(name), width)
            now = _cell(grid[row - 1], place)
            wanted = cell_text(text) if isinstance(text, str) else "" if text.ours(now) else now
            if wanted != now:
                different[place] = wanted
        if different:
            changes[row] = different
        else:
            same += 1
    for row in sorted(changes):
        blocks.extend(_blocks(row, changes[row]))
    return WritePlan(
        tuple(blocks),
        rows=max((block.row for block in blocks), default=0),
        columns=max((block.column + len(block.texts) - 1 for block in blocks), default=0),
        same=same,
        moved=moved,
        gone=tuple(number for number in sorted(desired) if number not in found),
        changed=len(changes),
    )


def requests_of(
    blocks: Sequence[Block], most_cells: int = MOST_CELLS, most_bytes: int = MOST_BYTES
) -> Iterator[list[Block]]:
    """Blocks by request, each within both bounds; a block that alone is larger stands alone."""
    request: list[Block] = []
    cells = size = 0
    for block in blocks:
        more = len(json.dumps(block.texts)) + _RANGE_BYTES
        if request and (cells + len(block.texts) > most_cells or size + more > most_bytes):
            yield request
            request, cells, size = [], 0, 0
        request.append(block)
        cells += len(block.texts)
        size += more
    if request:
        yield request


@dataclass(slots=True)
class Gathered:
    """Rows that are finished and not yet written, and when to write them.

    Attributes:
        most_rows: written as soon as so many are gathered.
        most_s: written at the latest so many seconds after the first of them came; infinite waits
            for most_rows.
        rows: what is gathered.
        since: when the first of it came, in UTC seconds.
        not_before: when the next write may be tried, after one that failed.
    """

    most_rows: int
    most_s: float
    rows: dict[int, Texts] = field(default_factory=dict)
    since: float = math.inf
    not_before: float = 0.0

    def add(self, rows: Desired, now: float) -> None:
        """Rows are finished; one that comes again counts once."""
        if rows:
            self.rows.update(rows)
            self.since = min(self.since, now)

    @property
    def due_at(self) -> float:
        """When to write, in UTC seconds; infinite where nothing is gathered."""
        if len(self.rows) >= self.most_rows:
            return self.not_before
        return max(self.since + self.most_s, self.not_before)

    def written(self, rows: Desired, now: float) -> None:
        """These rows are in the sheet; what came meanwhile waits from now on."""
        self.rows = {
            number: texts for number, texts in self.rows.items() if rows.get(number) != texts
        }
        self.since = now if self.rows else math.inf
        self.not_before = 0.0

    def failed(self, now: float, wait_s: float) -> None:
        """They are not; try again after `wait_s` seconds."""
        self.not_before = now + wait_s


def _blocks(row: int, texts: Mapping[int, str]) -> Iterator[Block]:
    """Cells of a row (columns from 0), those side by side together."""
    run: list[str] = []
    start = 0
    for place in sorted(texts):
        if run and place != start + len(run):
            yield Block(row, start + 1, tuple(run))
            run = []
        if not run:
            start = place
        run.append(texts[place])
    if run:
        yield Block(row, start + 1, tuple(run))


def _cell(row: Sequence[str], place: int) -> str:
    return row[place] if place < len(row) else ""
