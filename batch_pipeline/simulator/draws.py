"""Deterministic draws: the same parts give the same number, in every order of arrival."""

from __future__ import annotations

from hashlib import blake2b


def draw(*parts: object) -> float:
    """Return a number in [0, 1) that depends on nothing but the parts."""
    return pick(2**53, *parts) / 2**53


def pick(n: int, *parts: object) -> int:
    """Return a whole number in [0, n)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()) % n


def fingerprint(data: bytes) -> str:
    """Return a short stable name of some bytes."""
    return blake2b(data, digest_size=12).hexdigest()
