"""Which client speaks to which provider's Batch API.

What does not belong here: the clients (batches_*.py). The engine gets a client handed in: what it
imports loads no SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.batches import BatchApi, BatchLimits
from batch_pipeline.providers.batches_anthropic import AnthropicBatches
from batch_pipeline.providers.batches_google import GoogleBatches
from batch_pipeline.providers.batches_openai import OpenAIBatches
from batch_pipeline.providers.registry import batch_limits, find_provider

_CLIENTS: Mapping[str, Callable[[BatchLimits, str, str, float], BatchApi]] = {
    "google": GoogleBatches,
    "anthropic": AnthropicBatches,
    "openai": OpenAIBatches,
}

TIMEOUT_S = 60.0


def open_batch_api(
    provider: str, key: str, base_url: str, *, timeout_s: float = TIMEOUT_S
) -> BatchApi:
    """A client of a provider's Batch API; it connects, and loads the SDK, with its first request.

    Args:
        provider: the provider's name or alias.
        key: the secret.
        base_url: where requests go, without a slash at the end.
        timeout_s: longest silence of the server, in seconds.

    Raises:
        UsageError: the provider has no Batch API.
    """
    name = find_provider(provider).name
    limits = batch_limits(name)
    if limits is None:
        raise UsageError(
            f"{name} has no Batch API.",
            f"Batch lanes work with {', '.join(_CLIENTS)}; use `lane: realtime` with {name}.",
        )
    return _CLIENTS[name](limits, key, base_url, timeout_s)
