"""The user's own prices: `prices.yaml`, which wins over genai-prices.

What belongs here: reading that file and saying what is wrong in it. What does not: price
arithmetic (prices.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.settings import DATA_VARIABLE, load_settings

PRICES_VARIABLE = "BATCH_PIPELINE_PRICES"
FILE_NAME = "prices.yaml"

HOW_TO_ADD = (
    "Add it to {path}, in USD per million tokens, for example "
    "`{provider}/{model}: {{input: 1.0, output: 5.0}}`."
)

_NEXT_STEP = (
    "Write entries like `openai/gpt-6-luna: {input: 0.10, output: 0.50}`, in USD per million "
    "tokens; docs/estimate.md lists the fields."
)

_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PriceTableError(UsageError):
    """`prices.yaml` cannot be used; the text names file, entry and what to do."""


class _Strict(BaseModel):
    # Numbers may be written without a point; nothing else is converted.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TierPrices(_Strict):
    """Prices of a prompt of more than `above_tokens` tokens; what is absent stays as it was."""

    above_tokens: int = Field(gt=0)
    input: _Usd | None = None
    output: _Usd | None = None
    cached_input: _Usd | None = None
    cache_write: _Usd | None = None
    cache_write_1h: _Usd | None = None


class LanePrices(_Strict):
    """USD per million tokens, and per 1,000 web searches.

    Attributes:
        input: fresh prompt tokens.
        output: output tokens, thinking included.
        cached_input: prompt tokens read from the provider's cache; absent: as `input`.
        cache_write: prompt tokens written to it for 5 minutes; absent: as `input`.
        cache_write_1h: the same for an hour; absent: as `cache_write`.
        web_search: 1,000 server-side searches.
        tiers: other prices for longer prompts.
    """

    input: _Usd
    output: _Usd
    cached_input: _Usd | None = None
    cache_write: _Usd | None = None
    cache_write_1h: _Usd | None = None
    web_search: _Usd = 0.0
    tiers: tuple[TierPrices, ...] = Field(default=(), strict=False)


class PriceEntry(LanePrices):
    """Prices of a model from a date on.

    Attributes:
        from_: first day (UTC); absent: since ever.
        batch: its prices in the provider's Batch API; absent: none are known.
    """

    from_: date | None = Field(default=None, alias="from")
    batch: LanePrices | None = None

    @property
    def since(self) -> float:
        """UTC seconds from which these prices hold."""
        if self.from_ is None:
            return float("-inf")
        return datetime(self.from_.year, self.from_.month, self.from_.day, tzinfo=UTC).timestamp()


class _Dated(BaseModel):
    """One model's entries, oldest first."""

    model_config = ConfigDict(frozen=True)
    entries: tuple[PriceEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _dates_differ(self) -> _Dated:
        dates = [entry.from_ for entry in self.entries]
        if len(set(dates)) < len(dates):
            raise ValueError("two of its prices begin on the same day")
        return self


_ENTRIES = TypeAdapter(_Dated)


@dataclass(frozen=True, eq=False)
class PriceTable:
    """The user's prices; the same object for as long as the file does not change.

    Attributes:
        path: the file, whether it exists or not.
        models: by `provider/model`, its entries, oldest first.
    """

    path: Path
    models: Mapping[str, tuple[PriceEntry, ...]] = field(default_factory=dict)

    def entries(self, provider: str, model: str) -> tuple[PriceEntry, ...]:
        """A model's entries, oldest first; empty where the user sets no price."""
        return self.models.get(f"{provider}/{model}", ())


def price_table() -> PriceTable:
    """The user's prices as the file has them now.

    `BATCH_PIPELINE_PRICES` names the file; else it is `prices.yaml` in the data folder, which need
    not exist.

    Raises:
        PriceTableError: the file cannot be read, or an entry cannot be used.
    """
    named = os.environ.get(PRICES_VARIABLE, "")
    path = _path(named, os.environ.get(DATA_VARIABLE, ""))
    try:
        found = path.stat()
    except OSError:
        if named:
            raise PriceTableError(
                f"{PRICES_VARIABLE} names {path}, which cannot be read.",
                "Correct the path, or unset the variable.",
            ) from None
        return _absent(path)
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _path(named: str, data: str) -> Path:
    return Path(named).expanduser() if named else load_settings().data / FILE_NAME


@lru_cache(maxsize=8)
def _absent(path: Path) -> PriceTable:
    return PriceTable(path)


# One entry for each state of the file, so that a long-lived process sees an edit.
@lru_cache(maxsize=8)
def _read(path: Path, changed_ns: int, size: int) -> PriceTable:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise PriceTableError(
            f"The price table {path} cannot be read: {why}.", _NEXT_STEP
        ) from None
    if document is None:
        return PriceTable(path)
    if not isinstance(document, dict):
        raise PriceTableError(f"The price table {path} is not a list of models.", _NEXT_STEP)
    models: dict[str, tuple[PriceEntry, ...]] = {}
    for name, value in document.items():
        key, entries = _entry(path, name, value)
        if key in models:
            raise PriceTableError(f"{path} has prices of {key} twice.", "Remove one of them.")
        models[key] = entries
    return PriceTable(path, models)


def _entry(path: Path, name: Any, value: Any) -> tuple[str, tuple[PriceEntry, ...]]:
    try:
        refs = parse_route(str(name))
    except UsageError as error:
        raise PriceTableError(f"{path}, entry {name!r}: {error.message}", error.next_step) from None
    if len(refs) != 1:
        raise PriceTableError(f"{path}, entry {name!r} names several models.", _NEXT_STEP)
    parts = value if isinstance(value, list) else [value]
    try:
        entries = _ENTRIES.validate_python({"entries": parts}).entries
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"][1:] if part != 0)
        raise PriceTableError(
            f"{path}, entry {name}{f', {where}' if where else ''}: {problem['msg']}.", _NEXT_STEP
        ) from None
    return str(refs[0]), tuple(sorted(entries, key=lambda entry: entry.since))
