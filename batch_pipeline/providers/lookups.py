"""What a look-up that spends nothing says about a key and a model: pure functions.

What does not belong here: asking (keys.py through the SDKs, preflight.py over our own transport).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from batch_pipeline.providers.base import ErrorKind, ProviderError

_DATE_SUFFIX = re.compile(r"-\d{8}")


class KeyStatus(StrEnum):
    """What a provider says about a key."""

    OK = "ok"
    MISSING = "missing"
    INVALID = "invalid"
    NO_CREDIT = "no_credit"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """Whether a key's model list holds a model, and the nearest names if not."""

    found: bool
    similar: tuple[str, ...] = ()


def find_in(models: Sequence[str], provider: str, model: str) -> ModelCheck:
    """Whether a provider's model list holds `model`, under this or another of its names."""
    # OpenRouter's variants (`:nitro`, `:online`) are settings on a model, not models
    wanted = model.partition(":")[0] if provider == "openrouter" else model
    wanted = wanted.removeprefix("models/") if provider == "google" else wanted
    # `claude-haiku-4-5` is an alias that the list only knows as `claude-haiku-4-5-20251001`
    if any(
        name in (model, wanted) or _DATE_SUFFIX.fullmatch(name.removeprefix(wanted))
        for name in models
    ):
        return ModelCheck(found=True)
    return ModelCheck(found=False, similar=tuple(difflib.get_close_matches(model, models)))


def status_of(error: ProviderError) -> KeyStatus:
    """What a failed look-up says about the key; UNREACHABLE where it says nothing."""
    if error.kind is not ErrorKind.BATCH_FATAL:
        return KeyStatus.UNREACHABLE
    if error.status in (402, 429):
        return KeyStatus.NO_CREDIT
    return KeyStatus.INVALID if error.status in (400, 401, 403) else KeyStatus.UNREACHABLE


def key_shown(key_id: str) -> str:
    """What a user is shown of a key, `…last4`, given its `key_id`; of a short key only `…`."""
    shown, _, _ = key_id.rpartition("-")
    return shown if shown.startswith("…") else "(none)"
