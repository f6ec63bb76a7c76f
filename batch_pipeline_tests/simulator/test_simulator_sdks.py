"""The official SDKs, unchanged, against every endpoint of the simulator."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from genai_prices import extract_usage
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from batch_pipeline_tests.simulator.running import Running

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["name", "score"],
    "additionalProperties": False,
}
PACKED = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "summary": {"type": "string"},
                    "verdict": {"enum": ["keep", "drop", "ask"]},
                },
                "required": ["id", "summary", "verdict"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["results"],
    "additionalProperties": False,
}
ROWS = [
    {"id": "0", "title": "Pie", "body": "The recipe for rhubarb   pie needs four eggs, not five."},
    {"id": "1", "title": "Owls", "body": "Barn owls hunt by ear in complete darkness."},
]
PROMPT = f"Judge these rows.\n{json.dumps({'rows': ROWS})}"
LONG = " ".join(f"Rule {n}: be exact." for n in range(400))


class Person(BaseModel):
    name: str
    score: int = Field(ge=0, le=10)


def check_packed(text: str) -> None:
    value = json.loads(text)
    Draft202012Validator(PACKED).validate(value)
    assert [row["id"] for row in value["results"]] == ["0", "1"]
    for row, asked in zip(value["results"], ROWS, strict=True):
        assert row["summary"] in " ".join(asked["body"].split())
        assert 0 < len(row["summary"].split()) <= 8
        assert row["summary"][-1] not in ".,;:!?"


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_google_answers_a_packed_json_schema(simulator: Running, version: str) -> None:
    reply = simulator.google(version=version).models.generate_content(
        model="gemini-3.8-flash",
        contents=PROMPT,
        config=genai_types.GenerateContentConfig(
            system_instruction="Be brief.",
            response_mime_type="application/json",
            response_json_schema=PACKED,
            max_output_tokens=500,
        ),
    )
    assert reply.text is not None and reply.usage_metadata is not None
    check_packed(reply.text)
    [record] = simulator.journal()
    assert record["input_tokens"] == reply.usage_metadata.prompt_token_count
    assert record["output_tokens"] == reply.usage_metadata.candidates_token_count
    assert record["input_tokens"] > 50 and record["output_tokens"] > 10
    assert record["items"] == 2 and record["request_id"] == reply.response_id


def test_google_answers_a_pydantic_response_schema(simulator: Running) -> None:
    reply = simulator.google().models.generate_content(
        model="gemini-3.8-flash",
        contents="Who is Ada Lovelace?",
        config={"response_mime_type": "application/json", "response_schema": Person},
    )
    assert isinstance(reply.parsed, Person)


def test_google_counts_lists_and_gets(simulator: Running) -> None:
    client = simulator.google()
    counted = client.models.count_tokens(model="gemini-3.8-flash", contents="hello there")
    reply = client.models.generate_content(model="gemini-3.8-flash", contents="hello there")
    assert reply.usage_metadata is not None
    assert counted.total_tokens == reply.usage_metadata.prompt_token_count
    assert "models/gemini-3.8-flash" in [model.name for model in client.models.list()]
    assert client.models.get(model="gemini-3.8-flash").input_token_limit == 1_048_576


def test_google_keeps_latest_aliases_on_v1beta(simulator: Running) -> None:
    simulator.google(version="v1beta").models.generate_content(
        model="gemini-flash-latest", contents="hi"
    )
    with pytest.raises(genai_errors.ClientError) as caught:
        simulator.google().models.generate_content(model="gemini-flash-latest", contents="hi")
    assert caught.value.code == 404


def test_google_refuses_what_the_real_one_refuses(simulator: Running) -> None:
    with pytest.raises(genai_errors.ClientError) as caught:
        simulator.google(key="bad-key").models.generate_content(
            model="gemini-3.8-flash", contents="hi"
        )
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    with pytest.raises(genai_errors.ClientError) as caught:
        simulator.google().models.generate_content(model="gemini-2.5-flash", contents="hi")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    assert {record["status"] for record in simulator.journal()} == {400, 404}
    assert simulator.summary()["price_usd"] == 0


def test_anthropic_answers_a_packed_json_schema(simulator: Running) -> None:
    raw = simulator.anthropic().messages.with_raw_response.create(
        model="claude-haiku-5-5",
        max_tokens=500,
        system="Be brief.",
        messages=[{"role": "user", "content": PROMPT}],
        output_config={"format": {"type": "json_schema", "schema": PACKED}},
    )
    message = raw.parse()
    assert message.stop_reason == "end_turn"
    assert message.content[0].type == "text"
    check_packed(message.content[0].text)
    [record] = simulator.journal()
    assert record["request_id"] == raw.headers["request-id"]
    assert record["input_tokens"] == message.usage.input_tokens
    assert record["output_tokens"] == message.usage.output_tokens
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "4000"
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "3999"
    assert raw.headers["anthropic-ratelimit-input-tokens-reset"].endswith("Z")


def test_anthropic_honours_bounds_that_its_sdk_moves_into_descriptions(simulator: Running) -> None:
    message = simulator.anthropic().messages.parse(
        model="claude-haiku-5-5",
        max_tokens=100,
        messages=[{"role": "user", "content": "Who is Ada Lovelace?"}],
        output_format=Person,
    )
    assert message.parsed_output is not None


def test_anthropic_counts_lists_and_gets(simulator: Running) -> None:
    client = simulator.anthropic()
    counted = client.messages.count_tokens(
        model="claude-haiku-5-5", messages=[{"role": "user", "content": "hello there"}]
    )
    message = client.messages.create(
        model="claude-haiku-5-5",
        max_tokens=50,
        messages=[{"role": "user", "content": "hello there"}],
    )
    assert counted.input_tokens == message.usage.input_tokens
    assert "claude-haiku-5-5" in [model.id for model in client.models.list()]
    assert client.models.retrieve("claude-haiku-5-5").lifecycle == "active"


def test_anthropic_refuses_what_the_real_one_refuses(simulator: Running) -> None:
    ask: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(anthropic.AuthenticationError):
        simulator.anthropic(key="bad").messages.create(model="claude-haiku-5-5", **ask)
    with pytest.raises(anthropic.NotFoundError):
        simulator.anthropic().messages.create(model="claude-2", **ask)
    for name in ("temperature", "top_p", "top_k"):
        with pytest.raises(anthropic.BadRequestError, match=name):
            simulator.anthropic().messages.create(
                model="claude-haiku-5-5", extra_body={name: 1}, **ask
            )
    older = {"anthropic-version": "2023-06-01"}
    simulator.anthropic().messages.create(
        model="claude-haiku-5-5", extra_body={"temperature": 1}, extra_headers=older, **ask
    )


def test_anthropic_takes_the_key_in_either_header(simulator: Running) -> None:
    reply = simulator.http.post(
        "/anthropic/v1/messages",
        json={
            "model": "claude-haiku-5-5",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
        },
        headers={"x-api-key": "sk-ant-old-1234", "anthropic-version": "2026-10-21"},
    )
    assert reply.status_code == 200
    assert simulator.journal()[0]["key_last4"] == "1234"


def test_openai_answers_on_chat_and_responses(simulator: Running) -> None:
    client = simulator.openai()
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-6-luna",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "packed", "strict": True, "schema": PACKED},
        },
    )
    chat = raw.parse()
    check_packed(chat.choices[0].message.content or "")
    assert raw.headers["x-ratelimit-remaining-requests"] == "3999"
    response = client.responses.create(
        model="gpt-6-luna",
        instructions="Be brief.",
        input=PROMPT,
        text={"format": {"type": "json_schema", "name": "packed", "schema": PACKED}},
    )
    check_packed(response.output_text)
    assert chat.usage is not None and response.usage is not None
    assert chat.usage.prompt_tokens == response.usage.input_tokens
    assert [record["endpoint"] for record in simulator.journal()] == [
        "chat.completions",
        "responses",
    ]
    parsed = client.chat.completions.parse(
        model="gpt-6-luna",
        messages=[{"role": "user", "content": "Who is Ada Lovelace?"}],
        response_format=Person,
    )
    assert parsed.choices[0].message.parsed is not None


def test_openai_counts_lists_and_gets(simulator: Running) -> None:
    client = simulator.openai()
    counted = client.responses.input_tokens.count(model="gpt-6-luna", input="hello there")
    response = client.responses.create(model="gpt-6-luna", input="hello there")
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
    assert "gpt-6-luna" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-6-luna").id == "gpt-6-luna"


def test_openai_refuses_what_the_real_one_refuses(simulator: Running) -> None:
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(openai.AuthenticationError) as unauthenticated:
        simulator.openai(key="bad").chat.completions.create(model="gpt-6-luna", **ask)
    assert unauthenticated.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        simulator.openai().chat.completions.create(model="gpt-1", **ask)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="does not stream"):
        simulator.openai().chat.completions.create(model="gpt-6-luna", stream=True, **ask)


def test_openrouter_says_the_cost_and_the_key(simulator: Running) -> None:
    client = simulator.openrouter()
    chat = client.chat.completions.create(
        model="openai/gpt-6-luna", messages=[{"role": "user", "content": "hello there"}]
    )
    assert chat.usage is not None
    cost = (chat.usage.model_extra or {})["cost"]
    [record] = simulator.journal()
    assert cost == pytest.approx(record["price_usd"]) and cost > 0
    assert client.models.retrieve("openai/gpt-6-luna").id == "openai/gpt-6-luna"
    headers = {"authorization": "Bearer sk-or-v1-abcd"}
    key = simulator.http.get("/openrouter/api/v1/key", headers=headers).json()
    assert key["data"]["limit_remaining"] == 100
    bad = simulator.http.get("/openrouter/api/v1/key", headers={"authorization": "Bearer bad"})
    assert bad.status_code == 401


def test_every_provider_wants_a_key(simulator: Running) -> None:
    model = "/google/v1/models/gemini-3.8-flash"
    for path, status in (
        (f"{model}:generateContent", 403),
        ("/anthropic/v1/messages", 401),
        ("/openai/v1/chat/completions", 401),
        ("/openrouter/api/v1/chat/completions", 401),
    ):
        reply = simulator.http.post(path, json={})
        assert (reply.status_code, "error" in reply.json()) == (status, True), path


def test_an_answer_above_the_output_bound_is_cut_and_says_so(simulator: Running) -> None:
    google = simulator.google().models.generate_content(
        model="gemini-3.8-flash", contents=LONG, config={"max_output_tokens": 4}
    )
    assert google.candidates is not None
    assert google.candidates[0].finish_reason == genai_types.FinishReason.MAX_TOKENS
    message = simulator.anthropic().messages.create(
        model="claude-haiku-5-5", max_tokens=4, messages=[{"role": "user", "content": LONG}]
    )
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)
    chat = simulator.openai().chat.completions.create(
        model="gpt-6-luna",
        max_completion_tokens=4,
        messages=[{"role": "user", "content": LONG}],
    )
    assert chat.choices[0].finish_reason == "length"
    response = simulator.openai().responses.create(
        model="gpt-6-luna", max_output_tokens=4, input=LONG
    )
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_the_same_request_gets_the_same_answer(simulator: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": PACKED}}
    texts = {
        simulator.chat(PROMPT, response_format=schema).json()["choices"][0]["message"]["content"]
        for _ in range(3)
    }
    assert len(texts) == 1


def test_choices_follow_the_content_of_an_item_and_not_its_id(simulator: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": PACKED}}

    def ask(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        reply = simulator.chat(json.dumps({"rows": rows}), response_format=schema).json()
        results = json.loads(reply["choices"][0]["message"]["content"])["results"]
        return list(results)

    forward = ask(ROWS)
    swapped = ask([{**ROWS[1], "id": "0"}, {**ROWS[0], "id": "1"}])
    without_id = [{k: v for k, v in row.items() if k != "id"} for row in forward]
    assert without_id == [{k: v for k, v in row.items() if k != "id"} for row in swapped[::-1]]


def test_long_equal_prefixes_are_cached_as_each_provider_does_it(simulator: Running) -> None:
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    usages = []
    for marked in (system, system, LONG, LONG):
        message = simulator.anthropic().messages.create(
            model="claude-haiku-5-5",
            max_tokens=50,
            system=marked,  # type: ignore[arg-type]
            messages=[{"role": "user", "content": "hi"}],
        )
        usages.append(message.usage)
    first, second, plain, again = usages
    assert first.cache_creation_input_tokens == second.cache_read_input_tokens
    assert (second.cache_read_input_tokens or 0) > 1_024
    assert first.cache_read_input_tokens == 0 == again.cache_read_input_tokens
    assert plain.cache_creation_input_tokens == 0
    read: list[Any] = []
    for question in ("a", "b"):
        chat = simulator.openai().chat.completions.create(
            model="gpt-6-luna",
            messages=[{"role": "system", "content": LONG}, {"role": "user", "content": question}],
        )
        assert chat.usage is not None and chat.usage.prompt_tokens_details is not None
        read.append(chat.usage.prompt_tokens_details.cached_tokens)
        google = simulator.google().models.generate_content(
            model="gemini-3.8-flash", contents=question, config={"system_instruction": LONG}
        )
        assert google.usage_metadata is not None
        read.append(google.usage_metadata.cached_content_token_count)
    assert read[:2] == [0, None]
    assert read[2] >= 1_024 and read[2] % 128 == 0 and read[3] >= 1_024


def test_the_journal_charges_what_genai_prices_reads_from_the_reply(simulator: Running) -> None:
    body = {
        "model": "claude-haiku-5-5",
        "max_tokens": 50,
        "system": [
            {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ],
        "messages": [{"role": "user", "content": "hi"}],
    }
    headers = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}
    prices = []
    for _ in range(2):
        reply = simulator.http.post("/anthropic/v1/messages", json=body, headers=headers).json()
        extracted = extract_usage(reply, provider_id="anthropic", api_flavor="default")
        prices.append(float(extracted.calc_price().total_price))
    chat = simulator.chat("hello")
    extracted = extract_usage(chat.json(), provider_id="openai", api_flavor="chat")
    prices.append(float(extracted.calc_price().total_price))
    assert [record["price_usd"] for record in simulator.journal()] == pytest.approx(prices)
    assert simulator.summary()["price_usd"] == pytest.approx(sum(prices))
