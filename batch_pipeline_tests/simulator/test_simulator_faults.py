"""Faults: what each one does on the wire, which requests it hits, what it costs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import anthropic
import httpx
import openai
import pytest
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from jsonschema import Draft202012Validator

from batch_pipeline.simulator.config import STATUSES, TAVILYS_OWN
from batch_pipeline_tests.simulator.running import Running

ELEMENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "summary": {"type": "string"},
        "score": {"type": "integer"},
    },
    "required": ["id", "summary", "score"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"results": {"type": "array", "items": ELEMENT}},
    "required": ["results"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "packed", "schema": SCHEMA}}
ROWS = [{"id": str(n), "text": f"Row {n} is about topic number {n * 7} today"} for n in range(5)]
IDS = [row["id"] for row in ROWS]


def ask_packed(simulator: Running, rows: list[dict[str, str]] = ROWS) -> list[dict[str, Any]]:
    reply = simulator.chat(json.dumps({"rows": rows}), response_format=FORMAT)
    results = json.loads(reply.json()["choices"][0]["message"]["content"])["results"]
    return list(results)


def claude(simulator: Running, **options: Any) -> anthropic.types.Message:
    return simulator.anthropic(**options).messages.create(
        model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": "hi"}]
    )


@pytest.mark.parametrize("status", sorted(set(STATUSES) - set(TAVILYS_OWN)))
def test_a_status_fault_has_each_providers_own_body(simulator: Running, status: int) -> None:
    simulator.configure(faults=[{"kind": "status", "status": status, "retry_after_s": 7}])
    with pytest.raises(anthropic.APIStatusError) as claude_error:
        claude(simulator)
    assert claude_error.value.status_code == status
    assert claude_error.value.type is not None
    assert claude_error.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.APIStatusError) as openai_error:
        simulator.openai().responses.create(model="gpt-6-luna", input="hi")
    assert openai_error.value.status_code == status and openai_error.value.type
    with pytest.raises(genai_errors.APIError) as google_error:
        simulator.google().models.generate_content(model="gemini-3.8-flash", contents="hi")
    assert google_error.value.code == status and google_error.value.status
    with pytest.raises(openai.APIStatusError) as router_error:
        simulator.openrouter().chat.completions.create(
            model="openai/gpt-6-luna", messages=[{"role": "user", "content": "hi"}]
        )
    assert router_error.value.status_code == status
    totals = simulator.summary()
    assert (totals["billed"], totals["price_usd"], totals["input_tokens"]) == (0, 0, 0)


def test_codes_make_an_error_terminal_or_transient(simulator: Running) -> None:
    limit = {"kind": "status", "status": 429, "code": "enforced_spend_limit_reached"}
    simulator.configure(faults=[limit])
    with pytest.raises(anthropic.RateLimitError) as spend:
        claude(simulator)
    assert spend.value.error_code == "enforced_spend_limit_reached"
    simulator.configure(faults=[{"kind": "status", "status": 429, "code": "insufficient_quota"}])
    error = simulator.chat().json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    simulator.configure(faults=[{"kind": "status", "status": 429, "code": "PerDay"}])
    with pytest.raises(genai_errors.ClientError) as quota:
        simulator.google().models.generate_content(model="gemini-3.8-flash", contents="hi")
    assert "PerDay" in str(quota.value.details["error"]["details"][0])
    code = "openrouter_in_flight_budget"
    simulator.configure(faults=[{"kind": "status", "status": 402, "code": code}])
    with pytest.raises(openai.APIStatusError) as budget:
        simulator.openrouter().chat.completions.create(
            model="openai/gpt-6-luna", messages=[{"role": "user", "content": "hi"}]
        )
    assert budget.value.response.json()["error"]["metadata"]["limit_source"] == code
    assert budget.value.response.headers["retry-after"] == "1"


def test_a_marked_key_is_out_of_something(simulator: Running) -> None:
    simulator.configure(
        key_marks={"key-poor": "no_credit", "xxxx": "spend_limit", "key-late": "daily_quota"}
    )
    with pytest.raises(anthropic.APIStatusError) as poor:
        claude(simulator, key="key-poor")
    assert (poor.value.status_code, poor.value.type) == (402, "billing_error")
    with pytest.raises(anthropic.RateLimitError) as limited:
        claude(simulator, key="sk-xxxx")
    assert limited.value.error_code == "enforced_spend_limit_reached"
    assert simulator.chat(key="key-poor").json()["error"]["code"] == "insufficient_quota"
    assert "requests per day" in simulator.chat(key="key-late").json()["error"]["message"]
    with pytest.raises(genai_errors.ClientError) as late:
        simulator.google(key="key-late").models.generate_content(
            model="gemini-3.8-flash", contents="hi"
        )
    assert "PerDay" in str(late.value.details)
    assert simulator.chat(key="key-fine").status_code == 200


def test_a_hung_request_is_billed_and_ends_when_the_client_leaves(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "hang", "count": 1}])
    with pytest.raises(openai.APITimeoutError):
        simulator.openai(timeout=0.3).responses.create(model="gpt-6-luna", input="hi")
    [record] = simulator.journal()
    assert (record["status"], record["fault"], record["billed"]) == (0, "hang", True)
    assert record["price_usd"] > 0
    simulator.openai().responses.create(model="gpt-6-luna", input="hi")


def test_a_cut_connection_is_billed_unless_the_rule_says_otherwise(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "cut"}])
    with pytest.raises(anthropic.APIConnectionError):
        claude(simulator)
    simulator.configure(faults=[{"kind": "cut", "billed": False}])
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.chat()
    paid, free = simulator.journal()
    assert (paid["status"], paid["billed"], paid["price_usd"] > 0) == (0, True, True)
    assert (free["status"], free["billed"], free["price_usd"]) == (0, False, 0)


def test_half_a_body_arrives_before_the_connection_is_cut(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "cut_body"}])
    headers = {"authorization": "Bearer k"}
    body = {"model": "gpt-6-luna", "input": "hi"}
    pieces: list[bytes] = []
    with (
        simulator.http.stream("POST", "/openai/v1/responses", json=body, headers=headers) as reply,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        pieces.extend(reply.iter_bytes())
    got = b"".join(pieces)
    assert got.startswith(b'{"id":"resp_') and b"service_tier" not in got
    assert simulator.journal()[0]["billed"] is True


@pytest.mark.parametrize("status", [200, 503])
def test_html_comes_instead_of_json(simulator: Running, status: int) -> None:
    simulator.configure(faults=[{"kind": "html", "status": status}])
    reply = simulator.chat()
    assert reply.status_code == status and reply.text.startswith("<html>")
    assert reply.headers["content-type"].startswith("text/html")


def test_a_200_can_carry_an_error_body(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "error_body"}])
    chat = simulator.openrouter().chat.completions.create(
        model="openai/gpt-6-luna", messages=[{"role": "user", "content": "hi"}]
    )
    assert chat.choices is None and (chat.model_extra or {})["error"]["code"] == 502
    assert simulator.journal()[0]["billed"] is False


def test_the_answers_text_can_be_no_json(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "malformed_json"}])
    with pytest.raises(json.JSONDecodeError):
        ask_packed(simulator)
    assert simulator.journal()[0]["price_usd"] > 0


def test_an_answer_can_be_cut_before_its_bound(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "truncated"}])
    reply = claude(simulator)
    assert reply.stop_reason == "max_tokens"
    assert simulator.journal()[0]["output_tokens"] == reply.usage.output_tokens < 50


def test_each_provider_refuses_in_its_own_form(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "refusal"}])
    message = claude(simulator)
    assert message.stop_reason == "refusal" and message.content == []
    ask: list[Any] = [{"role": "user", "content": "hi"}]
    chat = simulator.openai().chat.completions.create(model="gpt-6-luna", messages=ask)
    assert chat.choices[0].message.refusal and chat.choices[0].message.content is None
    response = simulator.openai().responses.create(model="gpt-6-luna", input="hi")
    assert response.to_dict()["output"][0]["content"][0]["type"] == "refusal"  # type: ignore[index]
    google = simulator.google()
    blocked = google.models.generate_content(model="gemini-3.8-flash", contents="hi")
    assert blocked.text is None and blocked.prompt_feedback is not None
    assert blocked.usage_metadata is not None
    assert blocked.usage_metadata.candidates_token_count is None
    simulator.configure(faults=[{"kind": "refusal", "code": "SAFETY"}])
    unsafe = google.models.generate_content(model="gemini-3.8-flash", contents="hi")
    assert unsafe.candidates is not None
    assert unsafe.candidates[0].finish_reason == genai_types.FinishReason.SAFETY
    assert simulator.summary()["billed"] == 5


def test_an_answer_can_be_empty(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "empty"}])
    assert claude(simulator).content == []
    assert simulator.chat().json()["choices"][0]["message"]["content"] == ""
    google = simulator.google().models.generate_content(model="gemini-3.8-flash", contents="hi")
    assert google.text is None
    assert simulator.openai().responses.create(model="gpt-6-luna", input="hi").output == []


def test_one_id_can_be_missing(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "drop_id"}])
    got = [row["id"] for row in ask_packed(simulator)]
    assert len(got) == 4 and set(got) < set(IDS)


def test_one_id_can_come_twice_with_other_content(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "duplicate_id"}])
    rows = ask_packed(simulator)
    [(twice, times)] = Counter(row["id"] for row in rows).most_common(1)
    assert (len(rows), times) == (6, 2)
    first, second = (row for row in rows if row["id"] == twice)
    assert first != second
    Draft202012Validator(ELEMENT).validate(second)


def test_ids_can_be_wrong(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "rename_id"}])
    assert len(set(IDS) - {row["id"] for row in ask_packed(simulator)}) == 1
    simulator.configure(faults=[{"kind": "corrupt_ids"}])
    assert not set(IDS) & {row["id"] for row in ask_packed(simulator)}
    simulator.configure(faults=[{"kind": "extra_id"}])
    rows = ask_packed(simulator)
    assert [row["id"] for row in rows[:5]] == IDS and rows[5]["id"] not in IDS


def test_one_item_can_break_the_schema(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "invalid_item", "match": "Row 3 "}])
    valid = {
        row["id"]: Draft202012Validator(ELEMENT).is_valid(row) for row in ask_packed(simulator)
    }
    assert valid == {one: one != "3" for one in IDS}


def test_match_makes_a_poison_row(simulator: Running) -> None:
    simulator.configure(
        faults=[
            {"kind": "refusal", "match": "Row 2 "},
            {"kind": "drop_id", "match": "Row 4 "},
        ]
    )
    reply = simulator.chat(json.dumps({"rows": ROWS}), response_format=FORMAT).json()
    assert reply["choices"][0]["message"]["refusal"]
    assert [row["id"] for row in ask_packed(simulator, ROWS[:2])] == ["0", "1"]
    assert [row["id"] for row in ask_packed(simulator, ROWS[3:])] == ["3"]


def test_count_after_and_filters_choose_the_requests(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 500, "count": 2, "after": 2}])
    assert [simulator.chat(f"q{n}").status_code for n in range(5)] == [200, 500, 500, 200, 200]
    simulator.configure(faults=[{"kind": "status", "status": 500, "key_last4": "9999"}])
    assert simulator.chat(key="sk-9999").status_code == 500
    assert simulator.chat(key="sk-8888").status_code == 200
    simulator.configure(faults=[{"kind": "status", "status": 500, "provider": "google"}])
    assert simulator.chat().status_code == 200


def test_a_share_hits_the_same_requests_in_any_order(simulator: Running) -> None:
    questions = [f"question {n}" for n in range(200)]
    rule = {"kind": "status", "status": 500, "share": 0.3}

    def hit(order: list[str]) -> set[str]:
        simulator.configure(faults=[], seed="test")
        simulator.configure(faults=[rule])
        return {q for q in order if simulator.chat(q).status_code == 500}

    forward = hit(questions)
    assert 40 <= len(forward) <= 80
    assert hit(questions[::-1]) == forward
    again = {q for q in questions if simulator.chat(q).status_code == 500}
    assert again != forward, "a re-ask is drawn anew"
    simulator.configure(seed="other")
    assert {q for q in questions if simulator.chat(q).status_code == 500} != forward


def test_a_refused_connection_costs_nothing_and_takes_no_time(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "refuse"}], latency={"base_s": 30})
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.chat()
    [record] = simulator.journal()
    assert (record["status"], record["fault"], record["billed"]) == (0, "refuse", False)
    assert record["price_usd"] == 0 and record["latency_s"] < 5


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "refuse"},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 429, "retry_after_s": 1},
        {"kind": "status", "status": 401, "after": 2},
        {"kind": "html", "status": 200},
        {"kind": "hang"},
    ],
)
def test_one_provider_fails_in_every_way_while_another_works(
    simulator: Running, fault: dict[str, Any]
) -> None:
    simulator.configure(faults=[{**fault, "provider": "openai"}])
    if "after" in fault:
        assert simulator.chat().status_code == 200
    try:
        broken = simulator.http.post(
            "/openai/v1/chat/completions",
            json={"model": "gpt-6-luna", "messages": [{"role": "user", "content": "hi"}]},
            headers={"authorization": "Bearer k"},
            timeout=0.5,
        )
    except (httpx.RemoteProtocolError, httpx.ReadTimeout):
        assert fault["kind"] in ("refuse", "hang")
    else:
        assert broken.status_code == fault["status"]
        assert ("retry-after" in broken.headers) == ("retry_after_s" in fault)
        assert (broken.headers["content-type"] == "text/html") == (fault["kind"] == "html")
    assert claude(simulator).stop_reason == "end_turn"


@pytest.mark.parametrize("kind", ["status", "html", "error_body"])
def test_a_careless_gateway_quotes_the_key(simulator: Running, kind: str) -> None:
    status = {"status": 401} if kind == "status" else {}
    simulator.configure(faults=[{"kind": kind, "echo_key": True, **status}])
    assert "sk-secret-0123456789" in simulator.chat(key="sk-secret-0123456789").text
    reply = simulator.http.put("/_sim/config", json={"faults": [{"kind": "cut", "echo_key": True}]})
    assert reply.status_code == 400 and "quote the key" in reply.text
