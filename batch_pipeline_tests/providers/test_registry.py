"""Routes, keys and addresses: what a user writes, and what is refused with which words."""

from __future__ import annotations

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.registry import (
    PROVIDERS,
    MissingKeyError,
    ModelRef,
    find_provider,
    key_id,
    parse_route,
    resolve_access,
)


def test_a_route_is_read_in_order_and_only_the_first_slash_splits() -> None:
    route = "anthropic/claude-haiku-5-5, openrouter/openai/gpt-6-luna:nitro,gemini/gemini-3.8-flash"
    assert parse_route(route) == (
        ModelRef("anthropic", "claude-haiku-5-5"),
        ModelRef("openrouter", "openai/gpt-6-luna:nitro"),
        ModelRef("google", "gemini-3.8-flash"),
    )
    assert str(parse_route("openai-compatible/llama3.2:3b")[0]) == "openai-compatible/llama3.2:3b"


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("", "not <provider>/<model>"),
        ("claude-haiku-5-5", "not <provider>/<model>"),
        ("anthropic/", "not <provider>/<model>"),
        ("anthropic/x,,openai/y", "not <provider>/<model>"),
        ("google/../../v1beta", "not <provider>/<model>"),
        ("google/m?key=1", "not <provider>/<model>"),
        ("antropic/claude-haiku-5-5", "Did you mean 'anthropic'"),
        ("mistral/large", "Providers: google, anthropic, openai, openrouter, openai-compatible"),
        ("openai/a, openai/a", "names openai/a twice"),
        ("gemini/a, google/a", "names google/a twice"),
    ],
)
def test_an_unusable_route_is_refused_in_words_that_help(route: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_route(route)
    assert words in str(caught.value)


def test_google_api_key_wins_over_gemini_api_key() -> None:
    both = {"GEMINI_API_KEY": "second-key-2222", "GOOGLE_API_KEY": "first-key-11111"}
    assert resolve_access("google", both).key == "first-key-11111"
    del both["GOOGLE_API_KEY"]
    assert resolve_access("gemini", both).key == "second-key-2222"


def test_an_empty_variable_counts_as_unset_and_blanks_around_a_key_are_dropped() -> None:
    environ = {
        "GOOGLE_API_KEY": "",
        "GEMINI_API_KEY": " AIzaKey12345\n",
        "GOOGLE_GEMINI_BASE_URL": "",
    }
    access = resolve_access("google", environ)
    assert access.key == "AIzaKey12345"
    assert access.base_url == "https://generativelanguage.googleapis.com"


@pytest.mark.parametrize("name", [n for n, p in PROVIDERS.items() if p.key_required])
def test_a_missing_key_names_its_variables_and_the_simulation(name: str) -> None:
    with pytest.raises(MissingKeyError) as caught:
        resolve_access(ModelRef(name, "m"), {})
    assert all(variable in str(caught.value) for variable in PROVIDERS[name].key_variables)
    assert "--simulate" in str(caught.value)
    assert "BATCH_PIPELINE_SIMULATE=1" in str(caught.value)


@pytest.mark.parametrize("bad", ["abc def-0123456789", "abc\ndef-0123456789", "“sk-0123456789”"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_access("openai", {"OPENAI_API_KEY": bad})
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("google", "/google"),
        ("anthropic", "/anthropic"),
        ("openai", "/openai/v1"),
        ("openrouter", "/openrouter/api/v1"),
        ("openai-compatible", "/openai/v1"),
    ],
)
def test_the_simulator_never_sees_a_real_key_or_a_custom_address(name: str, path: str) -> None:
    provider = PROVIDERS[name]
    environ = dict.fromkeys(provider.key_variables, "real-secret-key-123")
    environ[provider.base_url_variable] = "https://gateway.example"
    access = resolve_access(name, environ, "http://127.0.0.1:9/")
    assert access.key == f"sim-{name}-key"
    assert access.base_url == f"http://127.0.0.1:9{path}"
    environ["BATCH_PIPELINE_SIM_KEY"] = "sim-other"
    assert resolve_access(name, environ, "http://127.0.0.1:9").key == "sim-other"


def test_a_custom_base_url_is_used_without_its_last_slash() -> None:
    environ = {"ANTHROPIC_API_KEY": "k" * 20, "ANTHROPIC_BASE_URL": "https://gateway.example/a/"}
    assert resolve_access("anthropic", environ).base_url == "https://gateway.example/a"


def test_a_key_is_not_sent_to_another_providers_address() -> None:
    environ = {"OPENAI_API_KEY": "k" * 20, "OPENAI_BASE_URL": "https://openrouter.ai/api/v1"}
    with pytest.raises(UsageError) as caught:
        resolve_access("openai", environ)
    assert "OPENROUTER_API_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["api.example", "ftp://h", "https://user:hunter2@h", "https://h?key=hunter2", "https://[x"],
)
def test_a_malformed_base_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_access("openai", {"OPENAI_API_KEY": "k" * 20, "OPENAI_BASE_URL": url})
    assert "OPENAI_BASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_openai_compatible_server_needs_an_address_but_no_key() -> None:
    with pytest.raises(UsageError, match="OPENAI_COMPATIBLE_BASE_URL"):
        resolve_access("openai-compatible", {})
    access = resolve_access(
        "openai-compatible", {"OPENAI_COMPATIBLE_BASE_URL": "http://127.0.0.1:11434/v1"}
    )
    assert (access.key, access.key_id) == ("", "no-key")


def test_a_key_id_tells_keys_apart_and_shows_four_characters_at_most() -> None:
    first, second = "sk-aaaaaaaaaaaaaaaaabcd", "sk-bbbbbbbbbbbbbbbbabcd"
    assert key_id(first).startswith("…abcd-")
    assert key_id(first) != key_id(second)
    assert "shor" not in key_id("short") and "hort" not in key_id("short")
    access = resolve_access("openai", {"OPENAI_API_KEY": first})
    assert first not in repr(access)


def test_aliases_and_case_find_the_same_provider() -> None:
    assert find_provider("Gemini") is find_provider("google") is PROVIDERS["google"]
