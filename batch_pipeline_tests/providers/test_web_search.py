"""Web search by the model: what is asked of OpenRouter, what comes back, and who cannot do it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.pricing.prices import NANO_PER_USD, require_pricer
from batch_pipeline.providers.base import (
    Citation,
    ErrorKind,
    LlmRequest,
    ProviderError,
    Reply,
    Usage,
    WebSearch,
    WireReply,
)
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport
from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.simulated import Simulator

CODEC = PROVIDERS["openrouter"].codec
CAPTURE = REFERENCE / "reference/captures/openrouter.chat.web_plugin.json"
MODEL = "openai/gpt-6-luna"
SCHEMA = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "text": {"type": "string"}},
                "required": ["id", "text"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["results"],
    "additionalProperties": False,
}
ASKED = LlmRequest(
    MODEL,
    "Explain it.",
    '{"topics": [{"id": "0", "topic": "Zero trust networks"}]}',
    SCHEMA,
    max_output_tokens=500,
)


def _body(search: WebSearch | None, model: str = MODEL) -> dict[str, Any]:
    request = LlmRequest(model, "s", "hi", web_search=search)
    body: dict[str, Any] = orjson.loads(CODEC.build(request, key="k", base_url="http://h").body)
    return body


def _ask(simulator: Simulator, request: LlmRequest) -> Reply:
    async def go() -> Reply:
        async with Transport() as transport:
            call = CODEC.build(
                request, key="sk-or-v1-x", base_url=f"{simulator.url}/openrouter/api/v1"
            )
            return CODEC.read(await transport.send(call, timeout_s=20))

    return asyncio.run(go())


def _message(annotations: Any, **usage: Any) -> WireReply:
    message = {"role": "assistant", "content": "x", "annotations": annotations}
    body = {
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, **usage},
    }
    return WireReply(200, {}, orjson.dumps(body))


def test_the_server_tool_is_asked_for_with_every_bound_that_it_takes() -> None:
    search = WebSearch(max_results=4, max_uses=2, max_characters=900)
    body = _body(search)
    parameters = {
        "engine": "exa",
        "max_results": 4,
        "max_total_results": 8,
        "max_uses": 2,
        "max_characters": 900,
    }
    assert body["tools"] == [{"type": "openrouter:web_search", "parameters": parameters}]
    assert body["stop_server_tools_when"] == [{"type": "step_count_is", "step_count": 2}]
    assert "plugins" not in body
    assert _body(None) == {k: v for k, v in body.items() if k in ("model", "messages")}


@pytest.mark.parametrize("engine", ["exa", "native"])
def test_the_older_plugin_is_asked_for_where_it_is_wanted(engine: Any) -> None:
    body = _body(WebSearch(max_results=3, engine=engine, plugin=True))
    assert body["plugins"] == [{"id": "web", "engine": engine, "max_results": 3}]
    assert "tools" not in body and "stop_server_tools_when" not in body


def test_the_plugin_chooses_its_engine_where_none_is_named() -> None:
    body = _body(WebSearch(max_results=3, engine="auto", plugin=True))
    assert body["plugins"] == [{"id": "web", "max_results": 3}]


@pytest.mark.skipif(not CAPTURE.is_file(), reason="the captures are not beside this checkout")
def test_the_body_of_the_plugin_equals_what_the_sdk_sent() -> None:
    sent = json.loads(CAPTURE.read_text())[0]["request"]
    ours = _body(WebSearch(max_results=3, engine="exa", plugin=True))
    # The recorder also routed to one host, and asked for usage, which has long come by itself.
    theirs = {k: v for k, v in sent["body"].items() if k not in ("provider", "usage")}
    assert ours == theirs
    with_schema = replace(ASKED, web_search=WebSearch(plugin=True))
    body = orjson.loads(CODEC.build(with_schema, key="k", base_url="http://h").body)
    assert body["provider"] == {
        "require_parameters": sent["body"]["provider"]["require_parameters"]
    }


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - {"openrouter"}))
def test_other_providers_name_openrouter(name: str) -> None:
    assert not PROVIDERS[name].codec.web_search and CODEC.web_search
    request = LlmRequest("some-model", "s", "hi", web_search=WebSearch())
    with pytest.raises(UsageError, match=f"{name}/some-model") as caught:
        PROVIDERS[name].codec.build(request, key="k", base_url="http://h")
    assert "openrouter/" in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("search", "fee", "counted"),
    [
        (WebSearch(), 0.020, 1),
        (WebSearch(max_results=2), 0.008, 1),
        (WebSearch(plugin=True), 0.020, 1),
        (WebSearch(max_results=10, plugin=True), 0.040, 1),
        (WebSearch(engine="native"), 0.010, 1),
    ],
)
def test_an_answer_names_its_pages_and_its_price_holds_the_search(
    simulator: Simulator, search: WebSearch, fee: float, counted: int
) -> None:
    plain = _ask(simulator, ASKED)
    reply = _ask(simulator, replace(ASKED, web_search=search))
    assert plain.citations == () and plain.usage is not None and plain.usage.web_searches == 0
    assert reply.text == plain.text
    pages = 5 if search.engine == "native" else search.max_results
    assert len(reply.citations) == pages
    for page in reply.citations:
        assert "Zero trust networks" in page.title and "Zero trust networks" in page.text
    assert reply.usage is not None and reply.usage.web_searches == counted
    assert reply.usage.input_tokens > plain.usage.input_tokens
    tokens = require_pricer("openrouter", MODEL).cost_nano(
        replace(reply.usage, web_searches=0), 1_795_000_000
    )
    assert reply.provider_cost_usd == pytest.approx(tokens / NANO_PER_USD + fee, abs=1e-6)
    assert simulator.journal()[-1]["price_usd"] == pytest.approx(reply.provider_cost_usd)


@pytest.mark.parametrize("plugin", [True, False])
@pytest.mark.parametrize("engine", ["exa", "native", "auto"])
@pytest.mark.parametrize("results", [1, 5, 20])
def test_no_answer_costs_more_than_its_worst_case(
    simulator: Simulator, plugin: bool, engine: Any, results: int
) -> None:
    search = WebSearch(results, engine, plugin)
    request = replace(ASKED, web_search=search)
    body = CODEC.build(request, key="k", base_url="http://h").body
    worst = require_pricer("openrouter", MODEL).worst_nano(
        len(body), 500, 1_795_000_000, web_search=search, long_cache=False
    )
    paid = _ask(simulator, request).provider_cost_usd
    assert paid is not None and round(paid * NANO_PER_USD) <= worst


def test_a_request_that_is_refused_pays_for_no_search(simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 503, "provider": "openrouter"}])
    with pytest.raises(ProviderError) as caught:
        _ask(simulator, replace(ASKED, web_search=WebSearch()))
    assert caught.value.kind is ErrorKind.TRANSIENT
    assert simulator.journal()[-1]["price_usd"] == 0


def test_citations_are_read_in_either_form_each_page_once() -> None:
    nested = {"url": "https://a.example/1", "title": "A", "content": "text", "start_index": 3}
    flat = {"type": "url_citation", "url": "https://b.example/2"}
    broken = [
        "text", {"type": "file"}, {"type": "url_citation"}, {"type": "url_citation", "url": 5},
        {"type": "url_citation", "url": "javascript:alert(1)"},
        {"type": "url_citation", "url": "https://[broken"},
    ]  # fmt: skip
    first = {"type": "url_citation", "url_citation": nested}
    reply = CODEC.read(_message([first, *broken, flat, first]))
    assert reply.citations == (
        Citation("https://a.example/1", "A", "text"),
        Citation("https://b.example/2"),
    )
    assert reply.usage == Usage(input_tokens=5, output_tokens=2, web_searches=1)


@pytest.mark.parametrize("name", ["server_tool_use", "server_tool_use_details"])
def test_searches_are_counted_as_the_reply_counts_them(name: str) -> None:
    flat = {"type": "url_citation", "url": "https://b.example/2"}
    usage = CODEC.read(_message([flat], **{name: {"web_search_requests": 3}})).usage
    assert usage is not None and usage.web_searches == 3
    without = CODEC.read(_message(None, **{name: {"web_search_requests": 2}}))
    assert without.usage is not None and without.usage.web_searches == 2


def test_an_answer_that_quotes_the_word_has_no_citations() -> None:
    message = {"role": "assistant", "content": "url_citation"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    reply = CODEC.read(WireReply(200, {}, orjson.dumps(body)))
    assert (reply.citations, reply.usage) == ((), None)
