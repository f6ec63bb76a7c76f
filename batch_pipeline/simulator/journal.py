"""The record of every attempt, so that a test can prove what was sent, answered and paid.

It is appended to a file and kept in memory for reading. What does not live here: prices (`prices`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from batch_pipeline.simulator.config import SEARCH_PROVIDERS, Lane
from batch_pipeline.simulator.prices import price_usd
from batch_pipeline.simulator.wire import Usage


@dataclass
class Attempt:
    """One generation request, or one search, as it ended.

    Attributes:
        n: 1, 2, 3 … in the order of ending.
        t: when it arrived (UTC seconds).
        status: what was answered; 0 when the connection was cut or the client left.
        usage: what was charged, or would have been; all zero for refused attempts.
        fault: what the simulator did wrong on purpose; `client_left` when the client did not wait.
        items: how many ids were asked about.
        client_request_id: what the client called the attempt (`x-client-request-id`).
        lane: `realtime`, or `batch` for a line of a job.
        job: the job's name at the provider, of a line.
        custom_id: of a line: its custom_id or key.
        units: what a search provider counted off the plan; 0 for a call to a model.
        search_usd: what its searches cost; for a call to a model on top of its tokens.
        priced: whether price_usd was worked out: 0.4 ms each, so only when somebody reads.
    """

    n: int
    t: float
    provider: str
    endpoint: str
    key_last4: str
    model: str
    status: int
    usage: Usage
    billed: bool
    fault: str | None
    latency_s: float
    request_id: str
    items: int
    body_sha: str
    client_request_id: str = ""
    lane: Lane = "realtime"
    job: str = ""
    custom_id: str = ""
    units: int = 0
    search_usd: float = 0.0
    price_usd: float | None = 0.0
    priced: bool = field(default=False)

    def price(self) -> float | None:
        """Return what was paid, 0 for what was not billed, None for a model without a price."""
        if not self.priced:
            if self.billed:
                self.price_usd = self._paid()
            self.priced = True
        return self.price_usd

    def _paid(self) -> float | None:
        if self.provider in SEARCH_PROVIDERS:
            return self.search_usd
        tokens = price_usd(self.provider, self.model, self.usage, self.t, self.lane)
        return None if tokens is None else tokens + self.search_usd

    def written(self) -> dict[str, Any]:
        """Return the line of the file: all but the price."""
        line = asdict(self)
        usage = line.pop("usage")
        del line["price_usd"], line["priced"]
        return {
            **line,
            "input_tokens": usage["input_tokens"],
            "cached_input_tokens": usage["cached"],
            "cache_write_tokens": usage["cache_write"],
            "cache_write_1h_tokens": usage["cache_write_long"],
            "output_tokens": usage["output_tokens"],
        }


class Journal:
    """All attempts since the last reset, those of an earlier process on the folder included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._attempts = list(_read(path))
        self._file: BinaryIO = path.open("ab", buffering=0)
        self.max_concurrent = 0
        self.other_calls: Counter[str] = Counter()

    @property
    def next_n(self) -> int:
        """The number of the attempt that ends next."""
        return len(self._attempts) + 1

    def add(self, attempt: Attempt) -> None:
        """Append one attempt."""
        self._attempts.append(attempt)
        self._file.write(orjson.dumps(attempt.written()) + b"\n")

    def since(self, n: int, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` attempts after number `n`, with their prices."""
        return [
            {**attempt.written(), "price_usd": attempt.price()}
            for attempt in self._attempts[n : n + limit]
        ]

    def summary(self) -> dict[str, Any]:
        """Return the totals."""
        attempts = list(self._attempts)
        prices = [attempt.price() for attempt in attempts]
        return {
            "attempts": len(attempts),
            "billed": sum(a.billed for a in attempts),
            "by_status": _counted(str(a.status) for a in attempts),
            "by_provider": _counted(a.provider for a in attempts),
            "by_model": _counted(a.model for a in attempts),
            "by_fault": _counted(a.fault for a in attempts if a.fault),
            "by_lane": {lane: _totals(attempts, lane) for lane in ("realtime", "batch")},
            "rate_limited": sum(a.status == 429 for a in attempts),
            "items": sum(a.items for a in attempts),
            "input_tokens": sum(a.usage.input_tokens for a in attempts),
            "cached_input_tokens": sum(a.usage.cached for a in attempts),
            "output_tokens": sum(a.usage.output_tokens for a in attempts),
            "units": sum(a.units for a in attempts),
            "price_usd": sum(price for price in prices if price is not None),
            "unpriced": sum(price is None for price in prices),
            "max_concurrent": self.max_concurrent,
            "other_calls": dict(self.other_calls),
        }

    def reset(self) -> None:
        """Forget everything, on disk too."""
        self._file.truncate(0)
        self._attempts.clear()
        self.max_concurrent = 0
        self.other_calls.clear()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _totals(attempts: list[Attempt], lane: str) -> dict[str, Any]:
    mine = [a for a in attempts if a.lane == lane]
    return {
        "attempts": len(mine),
        "billed": sum(a.billed for a in mine),
        "input_tokens": sum(a.usage.input_tokens for a in mine),
        "cached_input_tokens": sum(a.usage.cached for a in mine),
        "output_tokens": sum(a.usage.output_tokens for a in mine),
        "price_usd": sum(a.price() or 0.0 for a in mine),
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _read(path: Path) -> list[Attempt]:
    if not path.exists():
        return []
    attempts = []
    for line in path.read_bytes().splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            # The last line of a process that was killed.
            continue
        usage = Usage(
            row.pop("input_tokens"),
            row.pop("cached_input_tokens"),
            row.pop("cache_write_tokens"),
            row.pop("cache_write_1h_tokens"),
            row.pop("output_tokens"),
        )
        attempts.append(Attempt(usage=usage, **row))
    for n, attempt in enumerate(attempts, start=1):
        attempt.n = n
    return attempts
