"""Key and model checks that spend nothing, through the providers' official SDKs.

What does not belong here: generation calls (transport.py) and deciding what a missing key means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.providers.lookups import (
    KeyStatus,
    ModelCheck,
    find_in,
    key_shown,
    status_of,
)
from batch_pipeline.providers.registry import (
    PROVIDERS,
    Access,
    MissingKeyError,
    find_provider,
    resolve_access,
)
from batch_pipeline.providers.wire import KEY_REMOVED

TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """One provider's answer.

    Attributes:
        provider: the provider's name.
        status: what was found.
        key_shown: what is shown of the key, `…` and its last 4 characters; empty without a key.
        detail: a sentence for the user.
        models: the models that the key can call, sorted.
        credit_usd: what is left under the key's limit, in USD; None where the provider does not
            say (all but OpenRouter).
    """

    provider: str
    status: KeyStatus
    key_shown: str
    detail: str
    models: tuple[str, ...] = ()
    credit_usd: float | None = None


async def check_keys(
    environ: Mapping[str, str],
    providers: Iterable[str] = tuple(PROVIDERS),
    simulator_url: str | None = None,
) -> list[KeyCheck]:
    """Ask every provider at once whether its key works; never raises for a key that does not.

    Args:
        environ: the environment variables.
        providers: names of the providers to check.
        simulator_url: ask the simulator instead, with dummy keys.

    Raises:
        UsageError: a name is no provider's.
    """
    names = [find_provider(name).name for name in providers]
    return list(await asyncio.gather(*(_check(name, environ, simulator_url) for name in names)))


async def check_model(access: Access, model: str) -> ModelCheck:
    """Whether the key behind `access` can call `model`, by the provider's own model list.

    Raises:
        ProviderError: the list could not be read.
    """
    return find_in(await list_models(access), access.provider, model)


async def list_models(access: Access) -> tuple[str, ...]:
    """Names of the models that the key can call, sorted, as a route writes them.

    Raises:
        ProviderError: classified like the error of a generation call.
    """
    listing = {"google": _google_models, "anthropic": _anthropic_models}.get(
        access.provider, _openai_models
    )
    try:
        return tuple(sorted(await asyncio.wait_for(listing(access), TIMEOUT_S)))
    except ProviderError:
        raise
    except Exception as error:
        raise _classified(access, error) from None


async def _check(name: str, environ: Mapping[str, str], simulator_url: str | None) -> KeyCheck:
    try:
        access = resolve_access(name, environ, simulator_url)
    except MissingKeyError as error:
        return KeyCheck(name, KeyStatus.MISSING, "", str(error))
    except UsageError as error:
        # openai-compatible without an address is not in use; anything else is a wrong setting
        unset = not environ.get(PROVIDERS[name].base_url_variable)
        status = KeyStatus.MISSING if unset else KeyStatus.INVALID
        return KeyCheck(name, status, "", str(error))
    shown = key_shown(access.key_id)
    try:
        credit = await _openrouter_credit(access) if name == "openrouter" else None
        models = await list_models(access)
    except ProviderError as error:
        return KeyCheck(name, status_of(error), shown, error.message)
    left = "" if credit is None else f", ${credit:.2f} left under the key's limit"
    return KeyCheck(name, KeyStatus.OK, shown, f"{len(models)} models{left}.", models, credit)


async def _google_models(access: Access) -> list[str]:
    from google import genai
    from google.genai import types

    client = genai.Client(
        api_key=access.key,
        http_options=types.HttpOptions(
            base_url=access.base_url,
            timeout=int(TIMEOUT_S * 1000),
            # without this the SDK quietly asks again after a broken connection
            retry_options=types.HttpRetryOptions(attempts=1),
        ),
    )
    try:
        pager = await client.aio.models.list(config={"page_size": 1000})
        return [(model.name or "").removeprefix("models/") async for model in pager]
    finally:
        await client.aio.aclose()


async def _anthropic_models(access: Access) -> list[str]:
    from anthropic import AsyncAnthropic

    async with AsyncAnthropic(
        api_key=access.key, base_url=access.base_url, max_retries=0, timeout=TIMEOUT_S
    ) as client:
        return [model.id async for model in client.models.list(limit=1000)]


async def _openai_models(access: Access) -> list[str]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(
        # the SDK insists on a key where a local server needs none
        api_key=access.key or "none",
        base_url=access.base_url,
        max_retries=0,
        timeout=TIMEOUT_S,
    ) as client:
        return [model.id async for model in client.models.list()]


async def _openrouter_credit(access: Access) -> float | None:
    """What is left under the key's limit, in USD; the public model list proves nothing."""
    import httpx

    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            response = await client.get(
                f"{access.base_url}/key", headers={"authorization": f"Bearer {access.key}"}
            )
    except httpx.HTTPError as error:
        raise _classified(access, error) from None
    try:
        data = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        data = None
    if response.status_code != 200 or not isinstance(data, dict):
        raise _read_as_error(access, response.status_code, response.headers, response.content)
    facts = data.get("data")
    left = facts.get("limit_remaining") if isinstance(facts, dict) else None
    if not isinstance(left, int | float):
        return None
    if left <= 0:
        raise ProviderError(
            ErrorKind.BATCH_FATAL, "The key's spending limit is used up.", status=402
        )
    return float(left)


def _classified(access: Access, error: Exception) -> ProviderError:
    """An SDK's exception as the ProviderError that a generation call would give."""
    response: Any = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int) and status >= 300:
        details = getattr(error, "details", None)
        # google-genai keeps the parsed body; the other two keep the response
        body = orjson.dumps(details) if isinstance(details, dict) else b""
        headers = getattr(response, "headers", None) or {}
        return _read_as_error(
            access, status, headers, body or getattr(response, "content", b"") or b""
        )
    words = f"{access.provider} could not be reached ({type(error).__name__})."
    return ProviderError(ErrorKind.TRANSIENT, words, code="no_connection")


def _read_as_error(
    access: Access, status: int, headers: Mapping[str, str], body: bytes
) -> ProviderError:
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    if access.key:
        body = body.replace(access.key.encode(), KEY_REMOVED.encode())
    try:
        PROVIDERS[access.provider].codec.read(WireReply(status, lower, body))
    except ProviderError as error:
        return error
    return ProviderError(ErrorKind.TRANSIENT, f"Unexpected reply (HTTP {status}).", status=status)
