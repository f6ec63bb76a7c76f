"""Contract: for the same request our codecs send what the official SDKs really send."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.anthropic import (
    CACHE_FROM_CHARACTERS,
    DEFAULT_MAX_OUTPUT_TOKENS,
)
from batch_pipeline.providers.base import LlmRequest, WireCall
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.schemas import anthropic_schema, openai_strict_schema
from batch_pipeline_tests.providers.recorder import Recorded, as_json, recording


class Source(BaseModel):
    """Where a fact comes from."""

    url: str = Field(json_schema_extra={"format": "uri"})
    quote: str | None = Field(default=None, max_length=200)


class Person(BaseModel):
    """A model with all that the rewriting touches: limits, refs, unions, defaults, enums, lists."""

    name: str = Field(description="name", pattern="^[A-Z]")
    score: int = Field(ge=0, le=10)
    grade: Literal["a", "b"] = "a"
    tags: list[str] = Field(min_length=2, max_length=5, description="tags")
    aliases: list[str] = Field(default_factory=list, min_length=1)
    best: Source = Field(description="the best source")
    sources: list[Source]
    either: int | str | None = None


SCHEMA = Person.model_json_schema()
LONG = "You are a careful scorer. " * (CACHE_FROM_CHARACTERS // 20)

REQUESTS = {
    "plain": LlmRequest("M", "", "hi"),
    "system": LlmRequest("M", "You score.", 'hi é \N{SNOWMAN} "quoted"\n', None, "answer", 100),
    "schema": LlmRequest("M", "You score.", "hi", SCHEMA, "Person", 256, 0.0),
    "long system": LlmRequest("M", LONG, "hi", SCHEMA, "Person", 256),
}


def _with_model(request: LlmRequest, model: str) -> LlmRequest:
    return LlmRequest(
        model,
        request.system,
        request.user,
        request.schema,
        request.schema_name,
        request.max_output_tokens,
        request.temperature,
    )


def _sent(reply: Any, drive: Any) -> Recorded:
    with recording(lambda _: as_json(reply)) as server:
        asyncio.run(drive(server.url))
    assert len(server.requests) == 1
    return server.requests[0]


def _same(call: WireCall, sent: Recorded, base_url: str, auth: str) -> None:
    assert orjson.loads(call.body) == sent.json
    assert call.url == base_url + sent.path
    assert call.headers[auth] == sent.headers[auth]
    assert call.headers["content-type"] == sent.headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", REQUESTS)
def test_the_gemini_body_and_headers_equal_the_sdks(name: str) -> None:
    from google import genai
    from google.genai import types

    request = _with_model(REQUESTS[name], "gemini-3.8-flash")

    async def drive(url: str) -> None:
        client = genai.Client(
            api_key="AIzaTest",
            http_options=types.HttpOptions(
                base_url=url, retry_options=types.HttpRetryOptions(attempts=1)
            ),
        )
        settings_: dict[str, Any] = {}
        if request.system:
            settings_["system_instruction"] = request.system
        if request.max_output_tokens is not None:
            settings_["max_output_tokens"] = request.max_output_tokens
        if request.temperature is not None:
            settings_["temperature"] = request.temperature
        if request.schema is not None:
            settings_["response_mime_type"] = "application/json"
            settings_["response_json_schema"] = dict(request.schema)
        await client.aio.models.generate_content(
            model=request.model,
            contents=request.user,
            config=types.GenerateContentConfig(**settings_) if settings_ else None,
        )
        await client.aio.aclose()

    reply = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}
    sent = _sent(reply, drive)
    call = PROVIDERS["google"].codec.build(request, key="AIzaTest", base_url="http://h")
    _same(call, sent, "http://h", "x-goog-api-key")


MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-5-5",
    "content": [{"type": "text", "text": "x"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_anthropic_body_and_headers_equal_the_sdks(name: str) -> None:
    import anthropic

    request = _with_model(REQUESTS[name], "claude-haiku-5-5")

    async def drive(url: str) -> None:
        extra: dict[str, Any] = {}
        if len(request.system) >= CACHE_FROM_CHARACTERS:
            block = {"type": "text", "text": request.system}
            extra["system"] = [{**block, "cache_control": {"type": "ephemeral"}}]
        elif request.system:
            extra["system"] = request.system
        if request.schema is not None:
            schema = anthropic.transform_schema(copy.deepcopy(dict(request.schema)))
            extra["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        async with anthropic.AsyncAnthropic(
            api_key="sk-ant-test", base_url=url, max_retries=0
        ) as client:
            await client.messages.create(
                model=request.model,
                max_tokens=request.max_output_tokens or DEFAULT_MAX_OUTPUT_TOKENS,
                messages=[{"role": "user", "content": request.user}],
                **extra,
            )

    sent = _sent(MESSAGE, drive)
    call = PROVIDERS["anthropic"].codec.build(request, key="sk-ant-test", base_url="http://h")
    _same(call, sent, "http://h", "authorization")
    assert call.headers["anthropic-version"] == sent.headers["anthropic-version"] == "2026-10-21"


def test_the_anthropic_schema_equals_what_parse_sends_for_the_model() -> None:
    import anthropic

    async def drive(url: str) -> None:
        async with anthropic.AsyncAnthropic(
            api_key="sk-ant-test", base_url=url, max_retries=0
        ) as client:
            try:
                await client.messages.parse(
                    model="claude-haiku-5-5",
                    max_tokens=9,
                    messages=[{"role": "user", "content": "hi"}],
                    output_format=Person,
                )
            except ValueError:
                pass  # the scripted answer is no Person; what was sent is what counts

    sent = _sent(MESSAGE, drive)
    request = LlmRequest("claude-haiku-5-5", "", "hi", SCHEMA, "Person", 9)
    call = PROVIDERS["anthropic"].codec.build(request, key="k", base_url="http://h")
    assert orjson.loads(call.body) == sent.json


COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x", "refusal": None},
            "finish_reason": "stop",
        }
    ],
}


def _openai_extra(request: LlmRequest, bound: str, temperature: bool) -> dict[str, Any]:
    from openai.lib._pydantic import to_strict_json_schema

    extra: dict[str, Any] = {"messages": [{"role": "user", "content": request.user}]}
    if request.system:
        extra["messages"].insert(0, {"role": "system", "content": request.system})
    if request.max_output_tokens is not None:
        extra[bound] = request.max_output_tokens
    if request.temperature is not None and temperature:
        extra["temperature"] = request.temperature
    if request.schema is not None:
        form = {"name": "Person", "strict": True, "schema": to_strict_json_schema(Person)}
        extra["response_format"] = {"type": "json_schema", "json_schema": form}
    return extra


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    ("provider", "model", "bound", "temperature"),
    [
        ("openai", "gpt-6-luna", "max_completion_tokens", False),
        ("openai", "gpt-4o", "max_completion_tokens", True),
        ("openrouter", "meta-llama/llama-4", "max_tokens", True),
        ("openrouter", "anthropic/claude-haiku-5-5", "max_tokens", False),
        ("openai-compatible", "llama3.2:3b", "max_tokens", True),
    ],
)
def test_the_chat_completions_body_and_headers_equal_the_sdks(
    name: str, provider: str, model: str, bound: str, temperature: bool
) -> None:
    import openai

    request = _with_model(REQUESTS[name], model)

    async def drive(url: str) -> None:
        extra = _openai_extra(request, bound, temperature)
        if provider == "openrouter" and request.schema is not None:
            extra["extra_body"] = {"provider": {"require_parameters": True}}
        async with openai.AsyncOpenAI(
            api_key="sk-test", base_url=f"{url}/v1", max_retries=0
        ) as client:
            await client.chat.completions.create(model=request.model, **extra)

    sent = _sent(COMPLETION, drive)
    codec = PROVIDERS[provider].codec
    call = codec.build(request, key="sk-test", base_url="http://h/v1")
    _same(call, sent, "http://h", "authorization")
    left_out = request.temperature is not None and not temperature
    assert codec.left_out(request) == (("temperature",) if left_out else ())


def test_the_openai_schema_equals_what_parse_sends_for_the_model() -> None:
    import openai

    async def drive(url: str) -> None:
        async with openai.AsyncOpenAI(
            api_key="sk-test", base_url=f"{url}/v1", max_retries=0
        ) as client:
            try:
                await client.chat.completions.parse(
                    model="gpt-6-luna",
                    messages=[{"role": "user", "content": "hi"}],
                    response_format=Person,
                )
            except ValueError:
                pass  # the scripted answer is no Person; what was sent is what counts

    sent = _sent(COMPLETION, drive).json
    request = LlmRequest("gpt-6-luna", "", "hi", SCHEMA, "Person")
    call = PROVIDERS["openai"].codec.build(request, key="k", base_url="http://h")
    assert orjson.loads(call.body) == {k: v for k, v in sent.items() if k != "stream"}


def test_a_server_without_a_key_gets_no_authorization_header() -> None:
    request = LlmRequest("llama3.2:3b", "", "hi")
    codec = PROVIDERS["openai-compatible"].codec
    assert "authorization" not in codec.build(request, key="", base_url="http://h").headers


_LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "format": "date", "minLength": 2},
        {"type": "string", "format": "phone", "description": "a phone"},
        {"type": "integer", "minimum": 1, "title": "N"},
        {"type": "number", "default": None},
        {"type": "boolean"},
        {"enum": ["a", "b", None]},
        {"const": 3, "description": "three"},
        {"$ref": "#/$defs/Part"},
        {"$ref": "#/$defs/Part", "description": "annotated"},
    ]
)
_NAMES = st.sampled_from(["alpha", "beta", "gamma", "delta"])


def _node(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    members = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(
            lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": 9},
            inner,
            st.integers(0, 3),
        ),
        st.builds(
            lambda parts, extra: {"type": "object", "properties": parts, **extra},
            st.dictionaries(_NAMES, inner, max_size=3),
            st.sampled_from([{}, {"additionalProperties": True}, {"required": ["alpha"]}]),
        ),
        st.builds(lambda parts: {"anyOf": parts}, members),
        st.builds(lambda parts: {"oneOf": parts, "description": "one"}, members),
        st.builds(lambda parts: {"allOf": parts}, members),
    )


_SCHEMAS = st.recursive(_LEAVES, _node, max_leaves=8).map(
    lambda part: {
        "type": "object",
        "properties": {"root": part},
        "required": ["root"],
        "$defs": {"Part": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
)


@given(_SCHEMAS)
@settings(max_examples=150, deadline=None)
def test_any_schema_is_rewritten_as_the_sdks_rewrite_it(schema: dict[str, Any]) -> None:
    import anthropic
    from openai.lib._pydantic import _ensure_strict_json_schema

    ours = anthropic_schema(copy.deepcopy(schema))
    assert ours == anthropic.transform_schema(copy.deepcopy(schema))

    mine, theirs = copy.deepcopy(schema), copy.deepcopy(schema)
    assert openai_strict_schema(mine) == _ensure_strict_json_schema(theirs, path=(), root=theirs)


def test_a_list_of_types_becomes_a_union_where_the_sdk_gives_up() -> None:
    schema = {"type": ["string", "null"], "description": "maybe", "maxLength": 3}
    assert anthropic_schema(schema) == {
        "anyOf": [
            {"type": "string", "description": "maybe\n\n{maxLength: 3}"},
            {"type": "null", "description": "maybe\n\n{maxLength: 3}"},
        ],
        "description": "maybe",
    }


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {"a": {}}}, "no type at schema.a"),
        ({"type": "object", "properties": {"a": {"type": "blob"}}}, "'blob' at schema.a"),
        ({"type": "object", "properties": {"a": 3}}, "no JSON object at schema.a"),
    ],
)
def test_an_unusable_schema_is_refused_with_the_place_named(
    schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        PROVIDERS["anthropic"].codec.build(
            LlmRequest("m", "", "u", schema), key="k", base_url="http://h"
        )


_NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node", "description": "d"}}}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"$ref": "#/$defs/None", "description": "d"}, "leads nowhere"),
        ({"$ref": "elsewhere.json", "description": "d"}, "leads nowhere"),
        ({"$ref": "#/$defs/Node"}, "recursive"),
    ],
)
def test_a_reference_that_leads_nowhere_or_in_circles_is_refused(
    part: dict[str, Any], words: str
) -> None:
    schema = {"type": "object", "properties": {"a": part}, "$defs": {"Node": _NODE}}
    if words == "leads nowhere":
        del schema["$defs"]
    with pytest.raises(UsageError, match=words):
        PROVIDERS["openai"].codec.build(
            LlmRequest("m", "", "u", schema), key="k", base_url="http://h"
        )
