"""Which models the simulated providers offer: catalog.json, read once.

What does not live here: prices (genai-prices knows them) and limits (`config`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Catalog:
    """One provider's models.

    Attributes:
        models: ids that answer on every API version.
        beta_only: ids that answer on Google's v1beta only.
        bills_cache_writes: id prefixes of models that report cache writes (OpenAI since gpt-5.6).
        context_tokens: the largest input.
    """

    models: tuple[str, ...]
    beta_only: tuple[str, ...]
    bills_cache_writes: tuple[str, ...]
    context_tokens: int

    def listed(self, *, beta: bool = False) -> tuple[str, ...]:
        """Return the ids that one API version lists."""
        return self.models + self.beta_only if beta else self.models


@cache
def catalog(provider: str) -> Catalog:
    """Return what a provider offers."""
    data = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))[
        provider
    ]
    return Catalog(
        models=tuple(data["models"]),
        beta_only=tuple(data.get("beta_only", ())),
        bills_cache_writes=tuple(data.get("bills_cache_writes", ())),
        context_tokens=data["context_tokens"],
    )
