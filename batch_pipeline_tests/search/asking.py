"""One search over real HTTP, against the simulator, and what a refusal of it says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from batch_pipeline.providers.base import ProviderError
from batch_pipeline.providers.transport import Transport
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.search.registry import resolve_search_access
from batch_pipeline_tests.simulated import Simulator


def ask(
    simulator: Simulator,
    provider: str,
    query: SearchQuery,
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = 10,
) -> SearchAnswer:
    """The answer to a query, as the engine gets it."""
    access = resolve_search_access(provider, environ or {}, simulator.url)
    assert access is not None
    codec = access.provider.codec

    async def go() -> SearchAnswer:
        async with Transport() as transport:
            call = codec.build(query, key=access.key, base_url=access.base_url)
            reply = await transport.send(call, timeout_s=timeout_s, request_id="attempt-1")
            return codec.read(reply).within(query)

    return asyncio.run(go())


def failure(
    simulator: Simulator, provider: str, query: SearchQuery | None = None, **how: Any
) -> ProviderError:
    """What a query fails with."""
    with pytest.raises(ProviderError) as caught:
        ask(simulator, provider, query or SearchQuery("zero trust", "us"), **how)
    return caught.value
