"""Which search providers there are, and where their keys and addresses come from.

What does not belong here: wire protocols (the codecs), and asking them (engine/searching.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.registry import (
    PROVIDERS,
    SIMULATED_KEY_VARIABLE,
    checked_key,
    checked_url,
    key_id,
)
from batch_pipeline.search.ahrefs import AhrefsKeywordCodec, AhrefsSerpCodec
from batch_pipeline.search.base import SearchAccess, SearchCodec, SearchProvider, SearchQuery
from batch_pipeline.search.exa import ExaCodec
from batch_pipeline.search.plans import plans
from batch_pipeline.search.tavily import TavilyCodec

# Both open pages for the caller while it waits; deep searches take tens of seconds.
_PATIENCE_S = 60.0

# Long enough for all rows of a batch; who asks again later is not told for a week that there is
# nothing, and pays for looking again.
_EMPTY_KEPT_DAYS = 1 / 24


def _ahrefs(name: str, endpoint: str, codec: SearchCodec) -> SearchProvider:
    return SearchProvider(
        name=name,
        endpoint=endpoint,
        codec=codec,
        key_variable="AHREFS_API_KEY",
        base_url_variable="AHREFS_BASE_URL",
        default_base_url="https://api.ahrefs.com/v3",
        simulator_path="/ahrefs/v3",
        # one key has one limit, whichever endpoint is called
        limit_name="ahrefs",
        requests_per_minute=60.0,
    )


def _exa() -> SearchProvider:
    plan = plans().exa
    return SearchProvider(
        name="exa",
        endpoint="exa/search",
        codec=ExaCodec(),
        key_variable="EXA_API_KEY",
        base_url_variable="EXA_BASE_URL",
        default_base_url="https://api.exa.ai",
        simulator_path="/exa",
        limit_name="exa",
        requests_per_minute=plan.requests_per_minute,
        cost_usd=plan.price_usd(_USUAL),
        price_of=plan.price_usd,
        timeout_s=_PATIENCE_S,
        empty_kept_days=_EMPTY_KEPT_DAYS,
    )


def _tavily() -> SearchProvider:
    plan = plans().tavily
    return SearchProvider(
        name="tavily",
        endpoint="tavily/search",
        codec=TavilyCodec(plan.usd_per_credit),
        key_variable="TAVILY_API_KEY",
        base_url_variable="TAVILY_BASE_URL",
        default_base_url="https://api.tavily.com",
        simulator_path="/tavily",
        limit_name="tavily",
        requests_per_minute=plan.requests_per_minute,
        cost_usd=plan.price_usd(_USUAL),
        price_of=plan.price_usd,
        timeout_s=_PATIENCE_S,
        empty_kept_days=_EMPTY_KEPT_DAYS,
    )


_USUAL = SearchQuery("", "")

SEARCH_PROVIDERS: Mapping[str, SearchProvider] = MappingProxyType(
    {
        provider.name: provider
        for provider in (
            _ahrefs("ahrefs", "ahrefs/serp-overview", AhrefsSerpCodec()),
            _ahrefs("ahrefs-keywords", "ahrefs/keywords-overview", AhrefsKeywordCodec()),
            _exa(),
            _tavily(),
        )
    }
)


def find_search_provider(name: str) -> SearchProvider:
    """The search provider of this name.

    Raises:
        UsageError: there is none.
    """
    provider = SEARCH_PROVIDERS.get(name.strip().lower())
    if provider is None:
        raise UsageError(
            f"There is no search provider {name!r}.",
            f"Search providers: {', '.join(SEARCH_PROVIDERS)}.",
        )
    return provider


def resolve_search_access(
    name: str, environ: Mapping[str, str], simulator_url: str | None = None
) -> SearchAccess | None:
    """Where to call a search provider and with which key; None where its key is not set.

    With `simulator_url` the key is a dummy: a real key never goes to the simulator. Without it, a
    key goes to its own provider's address, or to the base URL that the user set for that provider.

    Args:
        name: the search provider.
        environ: the environment variables.
        simulator_url: the simulator's address, or None in the live realm.

    Raises:
        UsageError: unknown provider, unusable key, or a base URL that is malformed or another
            provider's.
    """
    provider = find_search_provider(name)
    if simulator_url is not None:
        key = environ.get(SIMULATED_KEY_VARIABLE) or f"sim-{provider.limit_name}-key"
        base_url = checked_url(simulator_url, "simulator URL") + provider.simulator_path
        return SearchAccess(provider, key, key_id(key), base_url)
    key = environ.get(provider.key_variable, "").strip()
    if not key:
        return None
    checked_key(key, provider.key_variable)
    return SearchAccess(provider, key, key_id(key), _base_url(provider, environ))


def _base_url(provider: SearchProvider, environ: Mapping[str, str]) -> str:
    variable = provider.base_url_variable
    value = environ.get(variable, "").strip()
    if not value:
        return provider.default_base_url
    url = checked_url(value, variable)
    host = urlsplit(url).hostname
    others = {urlsplit(other.default_base_url).hostname: other.name for other in PROVIDERS.values()}
    for search in SEARCH_PROVIDERS.values():
        if search.limit_name != provider.limit_name:
            others[urlsplit(search.default_base_url).hostname] = search.limit_name
    if host in others:
        raise UsageError(
            f"{variable} points to {host}, which is {others[host]}: the key of "
            f"{provider.limit_name} is not sent there.",
            f"Unset {variable}.",
        )
    return url
