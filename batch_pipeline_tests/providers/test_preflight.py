"""The look before a run, against servers that accept, refuse, say nothing or are not there."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from batch_pipeline.providers.preflight import EndpointCheck, Target, Verdict, check_endpoints
from batch_pipeline.providers.registry import PROVIDERS, key_id
from batch_pipeline.providers.transport import Transport
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json, recording
from batch_pipeline_tests.simulated import Simulator

KEY = "sk-test-0123456789abcd"
MODELS = {
    "google": "gemini-3.8-flash",
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
    "openrouter": "openai/gpt-6-luna",
    "openai-compatible": "gpt-6-luna",
}


def _target(provider: str, url: str, key: str = KEY, model: str = "") -> Target:
    base_url = url.rstrip("/") + PROVIDERS[provider].simulator_path
    return Target(provider, model or MODELS[provider], key, key_id(key), base_url)


def _look(*targets: Target, timeout_s: float = 5.0) -> list[EndpointCheck]:
    async def go() -> list[EndpointCheck]:
        async with Transport() as transport:
            return await check_endpoints(transport, targets, timeout_s=timeout_s)

    return asyncio.run(go())


def _look_at(provider: str, answer: Any, model: str = "") -> EndpointCheck:
    with recording(answer) as server:
        (check,) = _look(_target(provider, server.url, model=model))
    assert {request.method for request in server.requests} == {"GET"}
    return check


def test_good_keys_and_models_are_ok_and_nothing_is_spent(simulator: Simulator) -> None:
    checks = _look(*(_target(name, simulator.url) for name in MODELS))
    assert [check.target.provider for check in checks] == list(MODELS)
    assert {check.verdict for check in checks} == {Verdict.OK}
    assert not any(check.is_problem or check.message for check in checks)
    assert simulator.summary()["attempts"] == 0


@pytest.mark.parametrize("provider", list(MODELS))
def test_a_bad_key_is_found_and_shown_by_its_last_four(simulator: Simulator, provider: str) -> None:
    (check,) = _look(_target(provider, simulator.url, key="bad-key-0123456789abcd"))
    assert (check.verdict, check.is_problem) == (Verdict.BAD_KEY, True)
    assert "…abcd" in check.message and provider in check.message
    assert "bad-key-0123" not in repr(check)


@pytest.mark.parametrize("provider", ["google", "anthropic", "openai", "openrouter"])
def test_an_unknown_model_is_found_and_named(simulator: Simulator, provider: str) -> None:
    model = MODELS[provider][:-1]
    (check,) = _look(_target(provider, simulator.url, model=model))
    assert (check.verdict, check.is_problem) == (Verdict.UNKNOWN_MODEL, True)
    assert f"{provider}/{model}" in check.message
    if provider == "openrouter":
        assert f"Did you mean {MODELS[provider]}" in check.message


def test_a_key_without_credit_is_found(simulator: Simulator) -> None:
    simulator.configure(key_marks={KEY: "no_credit"})
    (check,) = _look(_target("openrouter", simulator.url))
    simulator.configure(key_marks={})
    assert (check.verdict, check.is_problem) == (Verdict.NO_CREDIT, True)
    quota = as_json({"error": {"message": "m", "code": "insufficient_quota"}}, 429)
    assert _look_at("openai", lambda _: quota).verdict is Verdict.NO_CREDIT


@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.parametrize(
    "answer",
    [
        as_json({"error": {"message": "busy"}}, 503),
        as_json({"error": {"message": "slow down"}}, 429),
        as_json({"detail": "Not Found"}, 404),
        Answer(404, b"<html>no such page</html>", {"content-type": "text/html"}),
        Answer(302, b"", {"location": "https://login.example"}),
        Answer(200, b"{}", cut_at=0),
    ],
)
def test_an_answer_that_says_nothing_is_no_problem(provider: str, answer: Answer) -> None:
    check = _look_at(provider, lambda _: answer)
    assert not check.is_problem
    assert provider == "openai-compatible" or check.message


def test_html_instead_of_a_model_is_no_problem_and_not_ok() -> None:
    page = Answer(200, b"<html>welcome</html>", {"content-type": "text/html"})
    assert _look_at("anthropic", lambda _: page).verdict is Verdict.UNKNOWN


def test_a_key_that_may_not_look_models_up_is_no_problem() -> None:
    words = "You have insufficient permissions. Missing scopes: api.model.read."
    refused = as_json({"error": {"message": words, "code": "missing_scope"}}, 403)
    assert _look_at("openai", lambda _: refused).verdict is Verdict.UNKNOWN


def test_a_server_that_is_not_there_or_hangs_is_unknown_within_the_bound() -> None:
    with socket.socket() as probe, recording(lambda _: Answer(hang=True)) as hanging:
        probe.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
        start = time.monotonic()
        checks = _look(_target("google", gone), _target("anthropic", hanging.url), timeout_s=0.5)
        took = time.monotonic() - start
    assert [check.verdict for check in checks] == [Verdict.UNKNOWN] * 2
    assert took < 20


def test_the_same_target_is_looked_at_once_and_models_of_a_key_share_their_look_ups() -> None:
    def answer(request: Recorded) -> Answer:
        return as_json({"data": [{"id": "a/one"}, {"id": "a/two"}]})

    with recording(answer) as server:
        targets = [_target("openrouter", server.url, model=m) for m in ("a/one", "a/two:nitro")]
        checks = _look(*targets, *targets)
    assert [check.verdict for check in checks] == [Verdict.OK] * 2
    paths = sorted(request.path for request in server.requests)
    assert [path.rpartition("/")[2] for path in paths] == ["key", "models"]


def test_a_look_up_sends_the_key_as_a_call_does() -> None:
    def answer(request: Recorded) -> Answer:
        return as_json({"id": "claude-haiku-5-5"})

    with recording(answer) as server:
        _look(_target("anthropic", server.url), _target("google", server.url))
    by_path = {request.path: request.headers for request in server.requests}
    claude = by_path["/anthropic/v1/models/claude-haiku-5-5"]
    assert claude["authorization"] == f"Bearer {KEY}" and claude["anthropic-version"]
    assert by_path["/google/v1/models/gemini-3.8-flash"]["x-goog-api-key"] == KEY


def test_a_key_that_an_error_echoes_is_not_in_the_message() -> None:
    echo = as_json({"error": {"message": f"no access with {KEY}", "code": "x"}}, 401)
    check = _look_at("openai-compatible", lambda _: echo)
    assert check.verdict is Verdict.BAD_KEY and KEY not in repr(check)


def test_the_look_loads_no_sdk() -> None:
    program = (
        "import sys, batch_pipeline.providers.preflight\n"
        "sys.exit(bool({'anthropic', 'openai', 'google.genai', 'httpx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
