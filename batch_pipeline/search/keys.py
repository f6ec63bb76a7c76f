"""Key checks of the search providers that spend nothing, as far as they have one.

What does not belong here: searching (the codecs), and deciding what a missing key means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.providers.lookups import KeyStatus, key_shown, status_of
from batch_pipeline.providers.wire import KEY_REMOVED
from batch_pipeline.search.base import SearchAccess
from batch_pipeline.search.registry import SEARCH_PROVIDERS, resolve_search_access

TIMEOUT_S = 15.0

_SPENT = frozenset({432, 433})


@dataclass(frozen=True, slots=True)
class SearchKeyCheck:
    """What is known of a search provider's key.

    Attributes:
        provider: what its limit goes by, such as `exa`.
        status: what was found; None for a key that is set and cannot be checked without paying.
        key_shown: what is shown of the key; empty without one.
        detail: a sentence for the user.
    """

    provider: str
    status: KeyStatus | None
    key_shown: str
    detail: str


@dataclass(frozen=True, slots=True)
class _FreeCall:
    """A call that costs nothing; `read` gives what is left and whether that is nothing."""

    path: str
    read: Callable[[Mapping[str, Any]], tuple[str, bool]]


async def check_search_keys(
    environ: Mapping[str, str], simulator_url: str | None = None
) -> list[SearchKeyCheck]:
    """Look at every search provider's key at once; never raises for a key that does not work.

    Args:
        environ: the environment variables.
        simulator_url: ask the simulator instead, with dummy keys.
    """
    # endpoints of one provider share its key
    names = {one.limit_name: name for name, one in SEARCH_PROVIDERS.items()}
    checks = (_check(names[key], key, environ, simulator_url) for key in sorted(names))
    return list(await asyncio.gather(*checks))


async def _check(
    name: str, provider: str, environ: Mapping[str, str], simulator_url: str | None
) -> SearchKeyCheck:
    try:
        access = resolve_search_access(name, environ, simulator_url)
    except UsageError as error:
        return SearchKeyCheck(provider, KeyStatus.INVALID, "", str(error))
    if access is None:
        variable = SEARCH_PROVIDERS[name].key_variable
        return SearchKeyCheck(provider, KeyStatus.MISSING, "", f"{variable} is not set.")
    shown = key_shown(access.key_id)
    call = _FREE_CALLS.get(provider)
    if call is None:
        words = f"Not checked: every call of {provider} is paid for."
        return SearchKeyCheck(provider, None, shown, words)
    try:
        words, spent = call.read(await _get(access, call.path))
    except ProviderError as error:
        status = KeyStatus.NO_CREDIT if error.status in _SPENT else status_of(error)
        return SearchKeyCheck(provider, status, shown, error.message)
    return SearchKeyCheck(provider, KeyStatus.NO_CREDIT if spent else KeyStatus.OK, shown, words)


async def _get(access: SearchAccess, path: str) -> Mapping[str, Any]:
    """The reply's object.

    Raises:
        ProviderError: classified like the error of a search.
    """
    import httpx

    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            response = await client.get(
                f"{access.base_url}/{path}", headers={"authorization": f"Bearer {access.key}"}
            )
    except httpx.HTTPError as error:
        words = f"{access.provider.limit_name} could not be reached ({type(error).__name__})."
        raise ProviderError(ErrorKind.TRANSIENT, words, code="no_connection") from None
    if response.status_code == 200:
        try:
            data = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            data = None
        if isinstance(data, dict):
            return data
    else:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = response.content.replace(access.key.encode(), KEY_REMOVED.encode())
        # the codec knows its provider's errors
        access.provider.codec.read(WireReply(response.status_code, headers, body))
    words = f"Unexpected reply (HTTP {response.status_code})."
    raise ProviderError(ErrorKind.TRANSIENT, words, status=response.status_code)


def _tavily(data: Mapping[str, Any]) -> tuple[str, bool]:
    account, key = _object(data, "account"), _object(data, "key")
    plan = _left(account, "plan_limit", "plan_usage")
    if plan is not None:
        # what is paid by the call comes after the plan's own
        plan += _left(account, "paygo_limit", "paygo_usage") or 0.0
    return _lesser(plan, _left(key, "limit", "usage"), "credits")


def _ahrefs(data: Mapping[str, Any]) -> tuple[str, bool]:
    facts = _object(data, "limits_and_usage")
    workspace = _left(facts, "units_limit_workspace", "units_usage_workspace")
    return _lesser(workspace, _left(facts, "units_limit_api_key", "units_usage_api_key"), "units")


def _object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _left(facts: Mapping[str, Any], limit: str, used: str) -> float | None:
    """What is left of a limit; None where there is none."""
    most, spent = facts.get(limit), facts.get(used)
    if not isinstance(most, int | float) or not isinstance(spent, int | float):
        return None
    return max(0.0, most - spent)


def _lesser(account: float | None, key: float | None, unit: str) -> tuple[str, bool]:
    """What is left of two limits, and whether that is nothing."""
    left = min((one for one in (account, key) if one is not None), default=None)
    return "The key works." if left is None else f"{left:,.0f} {unit} are left.", left == 0


_FREE_CALLS: Mapping[str, _FreeCall] = {
    "tavily": _FreeCall("usage", _tavily),
    "ahrefs": _FreeCall("subscription-info/limits-and-usage", _ahrefs),
}
