"""Keys and addresses of search providers: where they come from, and what is refused."""

from __future__ import annotations

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.search.registry import (
    find_search_provider,
    resolve_search_access,
)

KEY = "real-ahrefs-key-0123456789"


def test_without_a_key_there_is_no_access() -> None:
    assert resolve_search_access("ahrefs", {}) is None
    assert resolve_search_access("ahrefs-keywords", {"AHREFS_API_KEY": "  "}) is None


def test_a_key_is_taken_from_the_environment_and_not_shown() -> None:
    access = resolve_search_access("ahrefs", {"AHREFS_API_KEY": f" {KEY}\n"})
    assert access is not None
    assert (access.key, access.base_url) == (KEY, "https://api.ahrefs.com/v3")
    assert KEY not in repr(access)
    assert access.key_id.startswith("…6789-")


def test_both_endpoints_share_key_and_limit() -> None:
    environ = {"AHREFS_API_KEY": KEY}
    serp, keywords = (
        resolve_search_access(name, environ) for name in ("ahrefs", "ahrefs-keywords")
    )
    assert serp is not None and keywords is not None
    assert serp.key_id == keywords.key_id
    assert serp.provider.limit_name == keywords.provider.limit_name
    assert serp.provider.requests_per_minute == keywords.provider.requests_per_minute == 60
    assert serp.provider.endpoint != keywords.provider.endpoint


def test_the_simulator_never_gets_a_real_key() -> None:
    environ = {"AHREFS_API_KEY": KEY, "AHREFS_BASE_URL": "https://proxy.example/v3"}
    access = resolve_search_access("ahrefs", environ, "http://127.0.0.1:9/")
    assert access is not None
    assert (access.key, access.base_url) == ("sim-ahrefs-key", "http://127.0.0.1:9/ahrefs/v3")
    without = resolve_search_access("ahrefs", {}, "http://127.0.0.1:9")
    assert without == access


def test_an_address_of_the_users_own_is_used() -> None:
    environ = {"AHREFS_API_KEY": KEY, "AHREFS_BASE_URL": "https://proxy.example/v3/"}
    access = resolve_search_access("ahrefs", environ)
    assert access is not None and access.base_url == "https://proxy.example/v3"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AHREFS_BASE_URL": "https://api.openai.com/v1"}, "which is openai"),
        ({"AHREFS_BASE_URL": "https://api.exa.ai"}, "which is exa: the key of ahrefs"),
        ({"AHREFS_BASE_URL": "ftp://proxy.example"}, "AHREFS_BASE_URL is not a plain"),
        ({"AHREFS_BASE_URL": "https://u:p@proxy.example"}, "AHREFS_BASE_URL is not a plain"),
        ({"AHREFS_API_KEY": "two words"}, "AHREFS_API_KEY holds characters"),
    ],
)
def test_what_cannot_be_right_is_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        resolve_search_access("ahrefs", {"AHREFS_API_KEY": KEY, **environ})
    assert "u:p" not in str(caught.value) and KEY not in str(caught.value)


def test_an_unknown_provider_is_named_with_those_that_exist() -> None:
    assert find_search_provider(" Ahrefs ").name == "ahrefs"
    with pytest.raises(UsageError, match="ahrefs, ahrefs-keywords"):
        find_search_provider("bing")


@pytest.mark.parametrize(
    ("name", "variable", "address", "simulated", "per_minute"),
    [
        ("exa", "EXA_API_KEY", "https://api.exa.ai", "/exa", 300),
        ("tavily", "TAVILY_API_KEY", "https://api.tavily.com", "/tavily", 100),
    ],
)
def test_exa_and_tavily_have_keys_addresses_and_limits_of_their_own(
    name: str, variable: str, address: str, simulated: str, per_minute: float
) -> None:
    assert resolve_search_access(name, {}) is None
    access = resolve_search_access(name, {variable: KEY})
    assert access is not None
    assert (access.key, access.base_url) == (KEY, address)
    assert access.provider.requests_per_minute == per_minute
    rehearsed = resolve_search_access(name, {variable: KEY}, "http://127.0.0.1:9")
    assert rehearsed is not None
    assert rehearsed.base_url == f"http://127.0.0.1:9{simulated}"
    assert rehearsed.key == f"sim-{name}-key"
