"""Token counts by the providers' own free count endpoints, through their official SDKs.

What does not belong here: the local estimate (pricing/tokens.py) and what a count is used for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.providers.base import LlmRequest
from batch_pipeline.providers.registry import PROVIDERS, Access
from batch_pipeline.providers.wire import schema_bytes

TIMEOUT_S = 15.0


class CountUnavailableError(BatchPipelineError):
    """The provider counted nothing: it has no such endpoint, or did not answer it."""


async def count_tokens(access: Access, requests: Sequence[LlmRequest]) -> list[int]:
    """The provider's own count of the prompt tokens of each request; nothing is spent.

    Args:
        access: where to ask and with which key.
        requests: as they would be sent.

    Raises:
        CountUnavailableError: it cannot be asked, or did not answer all of them in time.
    """
    counting = {"google": _google, "anthropic": _anthropic, "openai": _openai}.get(access.provider)
    if counting is None:
        raise CountUnavailableError(f"{access.provider} has no endpoint that counts tokens.")
    try:
        return await asyncio.wait_for(counting(access, requests), TIMEOUT_S)
    except Exception as error:
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        why = f"HTTP {status}" if isinstance(status, int) else type(error).__name__
        raise CountUnavailableError(f"{access.provider} did not count tokens ({why}).") from None


async def _google(access: Access, requests: Sequence[LlmRequest]) -> list[int]:
    from google import genai
    from google.genai import types

    client = genai.Client(
        api_key=access.key,
        http_options=types.HttpOptions(
            base_url=access.base_url,
            timeout=int(TIMEOUT_S * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
        ),
    )

    async def one(request: LlmRequest) -> int:
        # The Developer API counts contents only, so system prompt and schema go along as parts.
        texts = [request.system, request.user]
        if request.schema is not None:
            texts.append(schema_bytes(request.schema).decode())
        parts = [types.Part(text=text) for text in texts if text]
        contents = [types.Content(role="user", parts=parts)]
        counted = await client.aio.models.count_tokens(
            model=request.model, contents=list[Any](contents)
        )
        return _number(counted.total_tokens)

    try:
        return list(await asyncio.gather(*map(one, requests)))
    finally:
        await client.aio.aclose()


async def _anthropic(access: Access, requests: Sequence[LlmRequest]) -> list[int]:
    from anthropic import AsyncAnthropic

    codec = PROVIDERS["anthropic"].codec
    async with AsyncAnthropic(
        api_key=access.key, base_url=access.base_url, max_retries=0, timeout=TIMEOUT_S
    ) as client:

        async def one(request: LlmRequest) -> int:
            body = orjson.loads(codec.build(request, key="", base_url="").body)
            asked = {
                name: body[name]
                for name in ("model", "messages", "system", "output_config")
                if name in body
            }
            return _number((await client.messages.count_tokens(**asked)).input_tokens)

        return list(await asyncio.gather(*map(one, requests)))


async def _openai(access: Access, requests: Sequence[LlmRequest]) -> list[int]:
    from openai import AsyncOpenAI

    codec = PROVIDERS["openai"].codec
    async with AsyncOpenAI(
        api_key=access.key, base_url=access.base_url, max_retries=0, timeout=TIMEOUT_S
    ) as client:

        async def one(request: LlmRequest) -> int:
            body = orjson.loads(codec.build(request, key="", base_url="").body)
            asked: dict[str, Any] = {"model": body["model"], "input": request.user}
            if request.system:
                asked["instructions"] = request.system
            # Chat Completions and Responses write the same schema in two places.
            if form := body.get("response_format"):
                asked["text"] = {"format": {"type": "json_schema", **form["json_schema"]}}
            return _number((await client.responses.input_tokens.count(**asked)).input_tokens)

        return list(await asyncio.gather(*map(one, requests)))


def _number(count: int | None) -> int:
    if not count or count < 0:
        raise CountUnavailableError("The reply holds no count.")
    return count
