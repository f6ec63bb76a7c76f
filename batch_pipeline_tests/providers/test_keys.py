"""Key checks through the official SDKs against servers that accept, refuse or are not there."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import ProviderError
from batch_pipeline.providers.keys import KeyCheck, check_keys, check_model
from batch_pipeline.providers.lookups import KeyStatus, ModelCheck, key_shown
from batch_pipeline.providers.registry import PROVIDERS, Access, key_id, resolve_access
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json, recording

KEY = "sk-test-0123456789abcd"

GEMINI_MODELS = {"models": [{"name": "models/gemini-3.8-flash"}]}
CLAUDE_MODELS = {
    "data": [
        {"type": "model", "id": name, "display_name": "x", "created_at": "2026-09-01T00:00:00Z"}
        for name in ("claude-haiku-5-5", "claude-haiku-4-5-20251001")
    ],
    "has_more": False,
    "first_id": "a",
    "last_id": "b",
}
GPT_MODELS = {"object": "list", "data": [{"id": "gpt-6-luna", "object": "model", "created": 1,
                                          "owned_by": "openai"}]}  # fmt: skip


def _good(request: Recorded) -> Answer:
    path = request.path.partition("?")[0]
    if path.startswith("/google"):
        return as_json(GEMINI_MODELS)
    if path.startswith("/anthropic"):
        return as_json(CLAUDE_MODELS)
    if path.endswith("/key"):
        return as_json({"data": {"limit": 100, "limit_remaining": 74.5}})
    return as_json(GPT_MODELS)


def _check(answer: Any, *names: str) -> list[KeyCheck]:
    with recording(answer) as server:
        checks = asyncio.run(check_keys({}, names or tuple(PROVIDERS), server.url))
    # one look-up each (OpenRouter: key, then models), none that costs money, none repeated
    twice = any(check.provider == "openrouter" for check in checks)
    assert len(server.requests) <= len(checks) + twice
    assert {request.method for request in server.requests} == {"GET"}
    return checks


def test_good_keys_are_ok_with_their_models() -> None:
    checks = {check.provider: check for check in _check(_good)}
    assert list(checks) == list(PROVIDERS)
    assert {check.status for check in checks.values()} == {KeyStatus.OK}
    assert checks["google"].models == ("gemini-3.8-flash",)
    assert checks["anthropic"].models == ("claude-haiku-4-5-20251001", "claude-haiku-5-5")
    assert checks["openai"].models == ("gpt-6-luna",)
    assert "$74.50 left" in checks["openrouter"].detail
    assert checks["openrouter"].credit_usd == 74.5 and checks["openai"].credit_usd is None


BAD_KEY = {
    "google": as_json({"error": {"code": 400, "message": f"API key not valid: {KEY}",
                                 "status": "INVALID_ARGUMENT",
                                 "details": [{"reason": "API_KEY_INVALID"}]}}, 400),
    "anthropic": as_json({"type": "error", "error": {"type": "authentication_error",
                                                     "message": "invalid x-api-key"}}, 401),
    "openai": as_json({"error": {"message": f"Incorrect API key provided: {KEY}",
                                 "code": "invalid_api_key"}}, 401),
    "openrouter": as_json({"error": {"message": "User not found.", "code": 401}}, 401),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_KEY)
def test_a_bad_key_is_invalid_and_not_shown(name: str) -> None:
    with recording(lambda _: BAD_KEY[name]) as server:
        environ = {
            PROVIDERS[name].key_variables[0]: KEY,
            PROVIDERS[name].base_url_variable: server.url,
        }
        (check,) = asyncio.run(check_keys(environ, [name]))
        assert len(server.requests) == 1
    assert check.status is KeyStatus.INVALID
    assert KEY not in repr(check)
    assert check.key_shown == "…abcd"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("anthropic", as_json({"error": {"type": "billing_error", "message": "m"}}, 402)),
        ("openai", as_json({"error": {"message": "m", "code": "insufficient_quota"}}, 429)),
        ("openrouter", as_json({"data": {"limit_remaining": 0}})),
    ],
)
def test_a_key_without_credit_says_so(name: str, answer: Answer) -> None:
    (check,) = _check(lambda _: answer, name)
    assert check.status is KeyStatus.NO_CREDIT


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "answer",
    [
        as_json({"error": {"message": "busy"}}, 503),
        Answer(502, b"<html>bad gateway</html>", {"content-type": "text/html"}),
        Answer(200, b"{}", cut_at=0),
    ],
)
def test_a_provider_in_trouble_is_unreachable_not_invalid(name: str, answer: Answer) -> None:
    (check,) = _check(lambda _: answer, name)
    assert check.status is KeyStatus.UNREACHABLE
    assert check.detail


def test_a_provider_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        checks = asyncio.run(check_keys({}, simulator_url=url))
    assert {check.status for check in checks} == {KeyStatus.UNREACHABLE}


def test_a_missing_key_is_missing_and_asks_nobody() -> None:
    checks = asyncio.run(check_keys({}))
    assert {check.status for check in checks} == {KeyStatus.MISSING}
    assert all(check.detail and not check.key_shown for check in checks)


def test_a_wrong_setting_is_told_apart_from_a_missing_key() -> None:
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "nonsense"}
    (check,) = asyncio.run(check_keys(environ, ["openai"]))
    assert check.status is KeyStatus.INVALID
    assert "OPENAI_BASE_URL" in check.detail


def test_an_unknown_provider_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        asyncio.run(check_keys({}, ["mistral"]))


def _access(name: str, url: str) -> Access:
    return resolve_access(name, {}, url)


@pytest.mark.parametrize(
    ("name", "model", "found"),
    [
        ("google", "gemini-3.8-flash", ModelCheck(True)),
        ("google", "gemini-3.8-flush", ModelCheck(False, ("gemini-3.8-flash",))),
        ("anthropic", "claude-haiku-4-5", ModelCheck(True)),
        ("anthropic", "claude-haiku", ModelCheck(False, ("claude-haiku-5-5",
                                                         "claude-haiku-4-5-20251001"))),
        ("openai", "gpt-6-luna", ModelCheck(True)),
        ("openai", "zzz", ModelCheck(False)),
        ("openrouter", "gpt-6-luna:nitro", ModelCheck(True)),
        ("openai-compatible", "gpt-6-luna:nitro", ModelCheck(False, ("gpt-6-luna",))),
    ],
)  # fmt: skip
def test_a_model_is_found_in_the_keys_own_list(name: str, model: str, found: ModelCheck) -> None:
    with recording(_good) as server:
        check = asyncio.run(check_model(_access(name, server.url), model))
    assert check.found is found.found
    assert set(check.similar) == set(found.similar)


def test_of_a_short_key_nothing_is_shown_and_no_key_is_said() -> None:
    assert [key_shown(key_id(key)) for key in (KEY, "ollama", "")] == ["…abcd", "…", "(none)"]


def test_a_model_list_that_cannot_be_read_is_a_provider_error() -> None:
    with recording(lambda _: BAD_KEY["openai"]) as server, pytest.raises(ProviderError):
        asyncio.run(check_model(_access("openai", server.url), "m"))
