"""Asks the simulator what a step asks a model: real output models, prompts, dialects and bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from batch_pipeline.engine.step import Step
from batch_pipeline.providers.base import LlmRequest, Reply, WebSearch
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport
from batch_pipeline.simulator.launch import base_urls
from batch_pipeline_tests.simulator.running import Running

MODELS = {
    "google": "gemini-3.1-flash-lite",
    "anthropic": "claude-haiku-4-5-20251001",
    "openai": "gpt-5.4-mini",
    "openrouter": "openai/gpt-5.4-mini",
}


def ask(
    simulator: Running,
    model: type[BaseModel],
    *contents: dict[str, Any],
    provider: str = "google",
    search: WebSearch | None = None,
    bound: int = 60_000,
) -> Reply:
    """One request for some items; `bound`: output tokens."""
    step = Step("step", "Write.", model, lambda row: dict(row), items_name="items")
    request = LlmRequest(
        model=MODELS[provider],
        system=step.system_prompt,
        user=step.user_message(list(contents)),
        schema=step.request_schema,
        max_output_tokens=bound,
        web_search=search,
    )
    codec = PROVIDERS[provider].codec

    async def send() -> Reply:
        call = codec.build(request, key="sk-test", base_url=base_urls(simulator.url)[provider])
        async with Transport() as transport:
            return codec.read(await transport.send(call, timeout_s=20))

    return asyncio.run(send())


def answers(reply: Reply) -> list[dict[str, Any]]:
    """The items' answers, in order."""
    results: Sequence[dict[str, Any]] = json.loads(reply.text)["results"]
    assert [one["id"] for one in results] == [str(n) for n in range(len(results))]
    return [{name: value for name, value in one.items() if name != "id"} for one in results]
