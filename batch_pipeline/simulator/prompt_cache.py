"""Which prefix of a prompt the provider has seen lately, per provider, key and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batch_pipeline.simulator import tokens
from batch_pipeline.simulator.draws import fingerprint

MIN_TOKENS = 1_024
TTL_S = 300.0
TTL_LONG_S = 3_600.0

Scope = tuple[str, str, str]


@dataclass(frozen=True)
class CachePoint:
    """A prefix of the prompt that may be kept, from its start up to here."""

    text: str
    ttl_s: float = TTL_S


@dataclass(frozen=True)
class CacheUse:
    """What one request reads from the cache and writes to it, in tokens."""

    read: int = 0
    write: int = 0
    write_long: int = 0


@dataclass
class _Entry:
    ready_at: float
    expires_at: float


class PromptCache:
    """Prefixes that were sent lately. A prefix is there from the moment its first reply is out."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Scope, str], _Entry] = {}

    def look(
        self, scope: Scope, points: Sequence[CachePoint], now: float, granularity: int = 1
    ) -> CacheUse:
        """Say what a request would read and write; changes nothing."""
        read, write, long = 0, 0, False
        for point in points:
            size = tokens.count(point.text) // granularity * granularity
            if size < MIN_TOKENS:
                continue
            entry = self._entries.get((scope, fingerprint(point.text.encode())))
            if entry and entry.ready_at <= now < entry.expires_at:
                read, write = size, 0
            else:
                write, long = size - read, point.ttl_s > TTL_S
        return CacheUse(read, 0 if long else write, write if long else 0)

    def keep(self, scope: Scope, points: Sequence[CachePoint], now: float, ready_at: float) -> None:
        """Remember an admitted request's prefixes; a hit starts its lifetime anew."""
        for point in points:
            if tokens.count(point.text) < MIN_TOKENS:
                continue
            name = (scope, fingerprint(point.text.encode()))
            entry = self._entries.get(name)
            if entry and now < entry.expires_at:
                entry.expires_at = now + point.ttl_s
            else:
                self._entries[name] = _Entry(ready_at, ready_at + point.ttl_s)
