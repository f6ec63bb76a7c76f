"""The transport against real servers that answer, cut, hang, redirect, echo keys, or are gone."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest

from batch_pipeline.providers.base import ErrorKind, ProviderError, WireCall, WireReply
from batch_pipeline.providers.transport import Transport
from batch_pipeline.providers.wire import retry_after
from batch_pipeline_tests.providers.recorder import Answer, as_json, recording

KEY = "secret-key-0123456789"


def _call(url: str, key: str = KEY) -> WireCall:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return WireCall(f"{url}/v1/messages", headers, b'{"a":1}')


def _send(
    call: WireCall, *, timeout_s: float = 10, transport: Transport | None = None
) -> WireReply:
    async def go() -> WireReply:
        async with transport or Transport() as opened:
            return await opened.send(call, timeout_s=timeout_s)

    return asyncio.run(go())


def _failure(call: WireCall, *, timeout_s: float = 10, limit: int = 1 << 20) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        _send(call, timeout_s=timeout_s, transport=Transport(limit))
    return caught.value


def test_a_call_arrives_as_built_and_its_reply_comes_back_whole() -> None:
    with recording(lambda _: as_json({"x": "y" * 200_000}, 429, Retry_After="3")) as server:
        reply = _send(_call(server.url))
    assert (reply.status, len(reply.body)) == (429, 200_008)
    assert reply.headers["retry-after"] == "3"
    sent = server.requests[0]
    assert (sent.method, sent.path, sent.body) == ("POST", "/v1/messages", b'{"a":1}')
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"
    assert "cookie" not in sent.headers


def test_a_call_takes_the_attempts_id_along_and_keeps_its_own_headers() -> None:
    async def go(call: WireCall) -> None:
        async with Transport() as transport:
            await transport.send(call, timeout_s=10, request_id="attempt-1")
            await transport.send(call, timeout_s=10)

    with recording(lambda _: as_json({})) as server:
        call = _call(server.url)
        asyncio.run(go(call))
    first, second = server.requests
    assert first.headers["x-client-request-id"] == "attempt-1"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert "x-client-request-id" not in {**second.headers, **call.headers}


def test_a_look_up_is_a_get_without_a_body_and_its_echoed_key_is_removed() -> None:
    async def go(url: str) -> WireReply:
        async with Transport() as transport:
            headers = {"authorization": f"Bearer {KEY}"}
            return await transport.get(f"{url}/v1/models/m", headers, timeout_s=10)

    with recording(lambda _: as_json({"error": f"key {KEY}"}, 401)) as server:
        reply = asyncio.run(go(server.url))
    (sent,) = server.requests
    assert (sent.method, sent.path, sent.body) == ("GET", "/v1/models/m", b"")
    assert (reply.status, KEY in reply.body.decode()) == (401, False)


def test_one_session_keeps_its_connections_and_sends_many_calls_at_once() -> None:
    async def go(url: str) -> list[WireReply]:
        async with Transport() as transport:
            calls = (transport.send(_call(url), timeout_s=20) for _ in range(60))
            return list(await asyncio.gather(*calls))

    with recording(lambda _: as_json({})) as server:
        assert {reply.status for reply in asyncio.run(go(server.url))} == {200}
    assert len(server.requests) == 60


def test_a_compressed_reply_is_read_as_its_content() -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    with recording(lambda _: Answer(200, gzip.compress(b'{"ok":true}'), headers)) as server:
        assert _send(_call(server.url)).body == b'{"ok":true}'


def test_a_reply_that_grows_beyond_the_bound_is_given_up() -> None:
    headers = {"content-encoding": "gzip"}
    bomb = gzip.compress(b"0" * 50_000_000)
    with recording(lambda _: Answer(200, bomb, headers)) as server:
        error = _failure(_call(server.url))
    assert (error.kind, error.code, error.maybe_billed) == (
        ErrorKind.TRANSIENT,
        "reply_too_long",
        True,
    )


def test_a_redirect_is_not_followed_and_takes_no_key_along() -> None:
    with recording(lambda _: as_json({})) as other:
        target = {"location": f"{other.url}/steal"}
        with recording(lambda _: Answer(307, b"", target)) as server:
            assert _send(_call(server.url)).status == 307
    assert other.requests == []


def test_a_server_that_is_not_there_is_transient_and_not_billed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # bound but not listening: nobody else can take the port meanwhile
        error = _failure(_call(f"http://127.0.0.1:{probe.getsockname()[1]}"))
    assert (error.kind, error.status, error.maybe_billed) == (ErrorKind.TRANSIENT, 0, False)


def test_a_reply_that_never_comes_is_transient_and_maybe_billed() -> None:
    with recording(lambda _: Answer(hang=True)) as server:
        error = _failure(_call(server.url), timeout_s=0.3)
        assert len(server.requests) == 1
    assert (error.kind, error.status, error.maybe_billed) == (ErrorKind.TRANSIENT, 0, True)
    assert "0.3 s" in error.message


def test_a_connection_cut_in_the_reply_is_transient_and_maybe_billed_and_sent_once() -> None:
    with recording(lambda _: Answer(200, b'{"long": "body"}', cut_at=5)) as server:
        error = _failure(_call(server.url))
        assert len(server.requests) == 1
    assert (error.kind, error.status, error.maybe_billed) == (ErrorKind.TRANSIENT, 0, True)


def test_a_connection_closed_without_a_reply_is_maybe_billed_and_sent_once() -> None:
    with recording(lambda _: Answer(hang=True)) as server:
        server.release.set()  # the server reads the request and closes at once
        error = _failure(_call(server.url))
        assert len(server.requests) == 1
    assert (error.kind, error.status, error.maybe_billed) == (ErrorKind.TRANSIENT, 0, True)


@pytest.mark.parametrize("url", ["http://", "ftp://127.0.0.1:1", "nonsense"])
def test_an_unusable_address_stops_the_batch(url: str) -> None:
    error = _failure(WireCall(url, {"authorization": f"Bearer {KEY}"}, b"{}"))
    assert (error.kind, error.maybe_billed) == (ErrorKind.BATCH_FATAL, False)


@pytest.mark.parametrize("status", [200, 401])
def test_a_key_that_the_server_echoes_never_comes_back(status: int) -> None:
    answer = as_json({"error": f"key {KEY} is wrong"}, status, X_Request_Id=f"r-{KEY}")
    with recording(lambda _: answer) as server:
        reply = _send(_call(server.url))
    assert KEY not in reply.body.decode() + str(reply.headers)
    assert "[key removed]" in reply.body.decode()


def test_a_dummy_key_that_is_a_word_does_not_change_good_answers() -> None:
    with recording(lambda _: as_json({"text": "ollama runs models"})) as server:
        assert b"ollama runs" in _send(_call(server.url, "ollama")).body


def test_a_retry_date_can_be_read_even_when_the_server_sends_no_date() -> None:
    answer = as_json({}, 429, Retry_After="Sat, 01 Jan 2200 00:00:00 GMT")
    with recording(lambda _: answer) as server:
        wait = retry_after(_send(_call(server.url)).headers)
    assert wait is not None and wait > 1e9


def test_a_proxy_from_the_environment_is_used_but_never_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with recording(lambda _: as_json({"by": "proxy"})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        assert _send(_call("http://provider.invalid")).body == b'{"by":"proxy"}'
        assert proxy.requests[0].path == "http://provider.invalid/v1/messages"
        with recording(lambda _: as_json({"by": "itself"})) as server:
            assert _send(_call(server.url)).body == b'{"by":"itself"}'
        assert _failure(_call("http://direct.invalid")).code == "no_connection"
    assert len(proxy.requests) == 1
