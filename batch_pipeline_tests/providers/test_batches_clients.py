"""What holds for every Batch API client: the wire, errors, downloads, and no trust in replies."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import ErrorKind, ProviderError
from batch_pipeline.providers.batch_clients import open_batch_api
from batch_pipeline.providers.batches import BatchApi, JobState, LineResult, ResultsGoneError
from batch_pipeline.providers.registry import PROVIDERS, batch_limits
from batch_pipeline_tests.providers.batch_server import (
    KEY,
    MODELS,
    as_lines,
    base_url,
    built,
    collect,
    ended,
    exchange,
    request,
    with_api,
)
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json, recording

BATCHERS = ("google", "anthropic", "openai")

NAMES = {"google": "batches/b1", "anthropic": "msgbatch_1", "openai": "batch_1"}
FILES = {"google": "files/out1", "anthropic": "results", "openai": "file-out1"}
PLAIN = {
    "google": {"name": "batches/b1", "metadata": {"state": "BATCH_STATE_PENDING"}},
    "anthropic": {"id": "msgbatch_1", "processing_status": "in_progress"},
    "openai": {"id": "batch_1", "status": "validating"},
}

Use = Callable[[BatchApi], Awaitable[Any]]


def _line(provider: str) -> bytes:
    api = open_batch_api(provider, KEY, base_url(provider, "http://127.0.0.1:9"))
    return api.line("r1", built(provider, base_url(provider, "http://127.0.0.1:9")))


def _create(provider: str) -> Use:
    file = {"google": "files/in1", "openai": "file-1"}.get(provider, "")
    return lambda api: api.create("label-1", MODELS[provider], file, [_line(provider)])


def _failure(provider: str, answer: Answer, use: Use, timeout_s: float = 10.0) -> ProviderError:
    """The error of one call, which sent one request."""

    async def failing(api: BatchApi) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await use(api)
        return caught.value

    error, requests = exchange(provider, lambda _: answer, failing, timeout_s)
    assert len(requests) == 1
    assert KEY not in str(error) and KEY not in repr(error.__dict__)
    return error


def test_limits_and_clients_need_no_sdk_until_the_first_request() -> None:
    code = (
        "import sys\n"
        "from batch_pipeline.providers.batch_clients import open_batch_api\n"
        "from batch_pipeline.providers.registry import PROVIDERS, batch_limits\n"
        "assert batch_limits('gemini').max_jobs == 100\n"
        "for name in ('google', 'anthropic', 'openai'):\n"
        "    assert open_batch_api(name, 'k', 'http://127.0.0.1:9').limits is batch_limits(name)\n"
        "loaded = {'anthropic', 'openai', 'google.genai', 'httpx2'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_provider_without_a_batch_api_has_no_limits_and_no_client() -> None:
    assert batch_limits("openrouter") is None
    with pytest.raises(UsageError, match="openrouter has no Batch API"):
        open_batch_api("openrouter", KEY, "http://127.0.0.1:9")


def test_only_anthropic_keeps_no_label() -> None:
    kept = {name: limits.keeps_label for name in BATCHERS if (limits := batch_limits(name))}
    assert kept == {"google": True, "anthropic": False, "openai": True}


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_line_holds_the_very_body_of_the_real_time_call(provider: str) -> None:
    line = _line(provider)
    body = built(provider, base_url(provider, "http://127.0.0.1:9")).body
    assert body in line and b"\n" not in line
    parsed = orjson.loads(line)
    name = {"google": "key"}.get(provider, "custom_id")
    part = {"google": "request", "anthropic": "params", "openai": "body"}[provider]
    assert parsed[name] == "r1" and parsed[part] == orjson.loads(body)


def test_an_openai_line_names_openais_endpoint_wherever_the_base_url_leads() -> None:
    for base in ("https://api.openai.com/v1", "http://127.0.0.1:9/openai/v1"):
        line = open_batch_api("openai", KEY, base).line("r1", built("openai", base))
        assert orjson.loads(line)["url"] == "/v1/chat/completions"


GOOGLE_BAD_KEY = {
    "error": {
        "code": 400,
        "message": f"API key not valid: {KEY}",
        "status": "INVALID_ARGUMENT",
        "details": [{"reason": "API_KEY_INVALID"}],
    }
}


def _gemini_429(**detail: Any) -> dict[str, Any]:
    error = {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED", "details": [detail]}
    return {"error": error}


def _claude(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": f"no {KEY}", **more}}


def _gpt(code: str) -> dict[str, Any]:
    return {"error": {"message": f"Incorrect API key provided: {KEY}", "code": code}}


# what a look at a job means: provider, reply, kind, seconds to wait
MEANINGS: list[tuple[str, Answer, ErrorKind, float | None]] = [
    ("google", as_json(GOOGLE_BAD_KEY, 400), ErrorKind.BATCH_FATAL, None),
    ("google", as_json(_gemini_429(retryDelay="14s"), 429), ErrorKind.RATE_LIMITED, 14.0),
    (
        "google",
        as_json(_gemini_429(violations=[{"quotaId": "RequestsPerDay"}]), 429),
        ErrorKind.BATCH_FATAL,
        None,
    ),
    ("anthropic", as_json(_claude("authentication_error"), 401), ErrorKind.BATCH_FATAL, None),
    (
        "anthropic",
        as_json(_claude("rate_limit_error"), 429, retry_after="7"),
        ErrorKind.RATE_LIMITED,
        7.0,
    ),
    (
        "anthropic",
        as_json(
            _claude("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), 429
        ),
        ErrorKind.BATCH_FATAL,
        None,
    ),
    ("anthropic", as_json(_claude("overloaded_error"), 529), ErrorKind.TRANSIENT, None),
    ("openai", as_json(_gpt("invalid_api_key"), 401), ErrorKind.BATCH_FATAL, None),
    ("openai", as_json(_gpt("insufficient_quota"), 429), ErrorKind.BATCH_FATAL, None),
    (
        "openai",
        as_json(_gpt("rate_limit_exceeded"), 429, retry_after_ms="300"),
        ErrorKind.RATE_LIMITED,
        0.3,
    ),
    ("openai", as_json({"error": {"message": "odd", "code": 500}}), ErrorKind.TRANSIENT, None),
    *(
        (name, as_json({"error": {"message": "none"}}, 404), ErrorKind.BATCH_FATAL, None)
        for name in BATCHERS
    ),
    *(
        (name, Answer(307, b"", {"location": "http://127.0.0.1:1/"}), ErrorKind.BATCH_FATAL, None)
        for name in BATCHERS
    ),
]


@pytest.mark.parametrize(("provider", "answer", "kind", "wait"), MEANINGS)
def test_an_error_means_what_it_means_in_real_time_and_is_asked_once(
    provider: str, answer: Answer, kind: ErrorKind, wait: float | None
) -> None:
    error = _failure(provider, answer, lambda api: api.job(NAMES[provider]))
    assert (error.kind, error.retry_after_s) == (kind, wait)
    assert not error.maybe_billed


@pytest.mark.parametrize("provider", BATCHERS)
@pytest.mark.parametrize(
    "answer",
    [
        as_json({"error": {"message": "boom"}}, 500),
        as_json({"error": {"message": "boom"}}, 503),
        Answer(200, b"<html>sorry</html>", {"content-type": "text/html"}),
        Answer(200, b'{"name": "batches/b1", "id": '),
        Answer(200, orjson.dumps(PLAIN), cut_at=5),
    ],
    ids=["500", "503", "html", "bad json", "cut"],
)
def test_a_create_that_may_have_been_carried_out_says_so(provider: str, answer: Answer) -> None:
    error = _failure(provider, answer, _create(provider))
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_refused_create_made_nothing(provider: str) -> None:
    answer = as_json({"error": {"message": "slow down"}}, 429)
    error = _failure(provider, answer, _create(provider))
    assert error.kind is ErrorKind.RATE_LIMITED and not error.maybe_billed


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_server_that_keeps_silent_times_out(provider: str) -> None:
    error = _failure(provider, Answer(hang=True), _create(provider), timeout_s=0.4)
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed and error.code == "no_reply"


@pytest.mark.parametrize("provider", BATCHERS)
def test_where_nobody_answers_nothing_can_have_been_billed(provider: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = base_url(provider, f"http://127.0.0.1:{free.getsockname()[1]}")

        async def failing(api: BatchApi) -> ProviderError:
            with pytest.raises(ProviderError) as caught:
                await _create(provider)(api)
            return caught.value

        error = asyncio.run(with_api(provider, base, failing))
    assert error.kind is ErrorKind.TRANSIENT and not error.maybe_billed


@pytest.mark.parametrize("provider", BATCHERS)
def test_the_environment_decides_neither_address_nor_key(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "sk-another-key-of-this-machine")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer sk-another")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1beta")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-other")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-other")
    job, (sent,) = exchange(
        provider, lambda _: as_json(PLAIN[provider]), lambda api: api.job(NAMES[provider])
    )
    assert job.name == NAMES[provider] and not job.state.ended
    key = sent.headers.get("x-goog-api-key") or sent.headers.get("authorization")
    assert key in (KEY, f"Bearer {KEY}")
    assert "sk-another" not in repr(sent.headers)
    assert not {"openai-organization", "openai-project"} & set(sent.headers)
    assert "/v1beta/" not in sent.path


@pytest.mark.parametrize("provider", BATCHERS)
@pytest.mark.parametrize(
    "name", ["..", "../files", "batches/..", "batches/a?b=c", "a/b", "a b", ""]
)
def test_a_name_that_leads_elsewhere_is_not_asked_for(provider: str, name: str) -> None:
    async def use(api: BatchApi) -> None:
        for call in (api.job(name), api.cancel(name)):
            with pytest.raises(ProviderError, match="no name"):
                await call
        with pytest.raises(ProviderError, match="no name"):
            await collect(api.results(ended(provider, name, name)))

    _, requests = exchange(provider, lambda _: as_json({}), use)
    assert requests == []


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_job_with_a_strange_name_is_not_taken_from_a_reply(provider: str) -> None:
    field = "name" if provider == "google" else "id"
    error = _failure(provider, as_json({field: "batches/../x"}), _create(provider))
    assert error.code == "unusable_name" and error.maybe_billed


def _good_line(provider: str, text: str) -> dict[str, Any]:
    if provider == "google":
        part = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        return {"key": "r1", "response": {"candidates": [part]}}
    if provider == "anthropic":
        message = {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}
        return {"custom_id": "r1", "result": {"type": "succeeded", "message": message}}
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return {"custom_id": "r1", "response": {"status_code": 200, "body": body}, "error": None}


def _results(provider: str, answer: Answer) -> list[LineResult]:
    job = ended(provider, NAMES[provider], FILES[provider])
    given, requests = exchange(provider, lambda _: answer, lambda api: collect(api.results(job)))
    assert len(requests) == 1
    return given


@pytest.mark.parametrize("provider", BATCHERS)
def test_only_a_newline_ends_a_line_of_results(provider: str) -> None:
    text = "one\u2028two\x85three\x0bfour"
    (result,) = _results(provider, as_lines(_good_line(provider, text)))
    assert result.reply is not None and result.custom_id == "r1"
    assert PROVIDERS[provider].codec.read(result.reply).text == text


@pytest.mark.parametrize("provider", BATCHERS)
def test_one_unreadable_line_costs_no_other_line(
    provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = orjson.dumps(_good_line(provider, "fine")) + b"\n"
    body = good + b'{"custom_id": "r2", "result\n' + good + b"\n" + b'{"nameless": 1}\n'
    assert len(_results(provider, Answer(200, body))) == 2
    assert "1 lines of a results file are not JSON" in caplog.text


@pytest.mark.parametrize("provider", BATCHERS)
@pytest.mark.parametrize("ending", ["connection", "line"])
def test_a_download_that_ends_early_is_transient_after_what_came(
    provider: str, ending: str
) -> None:
    whole = b"".join(orjson.dumps(_good_line(provider, "fine")) + b"\n" for _ in range(3))
    cut = len(whole) - 9
    answer = Answer(200, whole, cut_at=cut) if ending == "connection" else Answer(200, whole[:cut])
    came: list[LineResult] = []

    async def read(api: BatchApi) -> None:
        async for result in api.results(ended(provider, NAMES[provider], FILES[provider])):
            came.append(result)

    with pytest.raises(ProviderError) as caught:
        exchange(provider, lambda _: answer, read)
    assert caught.value.kind is ErrorKind.TRANSIENT
    assert len(came) <= 2 and (ending == "connection" or len(came) == 2)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_page_in_place_of_results_is_transient(provider: str) -> None:
    page = Answer(200, b"<html>\n<p>Back soon.</p>\n</html>\n", {"content-type": "text/html"})
    with pytest.raises(ProviderError, match="HTML, not JSON") as caught:
        _results(provider, page)
    assert caught.value.kind is ErrorKind.TRANSIENT


@pytest.mark.parametrize("provider", BATCHERS)
def test_results_that_are_not_there_any_more_are_gone(provider: str) -> None:
    with pytest.raises(ResultsGoneError):
        _results(provider, as_json({"error": {"message": "No such file"}}, 404))


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_busy_server_is_no_reason_to_think_that_results_are_gone(provider: str) -> None:
    with pytest.raises(ProviderError) as caught:
        _results(provider, as_json({"error": {"message": "busy"}}, 503))
    assert caught.value.kind is ErrorKind.TRANSIENT and caught.value.status == 503


@pytest.mark.parametrize("provider", BATCHERS)
def test_an_echoed_key_reaches_no_result(provider: str) -> None:
    (result,) = _results(provider, as_lines(_good_line(provider, f"your key is {KEY}")))
    assert result.reply is not None and KEY.encode() not in result.reply.body


@pytest.mark.parametrize("provider", BATCHERS)
def test_requests_at_the_same_time_do_not_mix_up_their_replies(provider: str) -> None:
    field = "name" if provider == "google" else "id"
    prefix = "batches/" if provider == "google" else "b-"

    def answer(sent: Recorded) -> Answer:
        return as_json({field: prefix + sent.path.rpartition("/")[2].removeprefix("b-")})

    async def many(api: BatchApi) -> list[str]:
        jobs = await asyncio.gather(*(api.job(f"{prefix}{n}") for n in range(20)))
        assert {job.state for job in jobs} == {JobState.UNKNOWN}
        return [job.name for job in jobs]

    names, _ = exchange(provider, answer, many)
    assert names == [f"{prefix}{n}" for n in range(20)]


@pytest.mark.parametrize("provider", BATCHERS)
def test_two_lines_of_one_request_differ_in_their_names_only(provider: str) -> None:
    with recording(lambda _: as_json({})) as server:
        base = base_url(provider, server.url)
        api = open_batch_api(provider, KEY, base)
        call = built(provider, base, request(provider, "the same"))
        one, two = api.line("a" * 64, call), api.line("b" * 64, call)
    assert one.replace(b"a" * 64, b"b" * 64) == two
    assert KEY.encode() not in one
