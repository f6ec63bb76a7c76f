"""Limits of batch jobs, what is enqueued over time, and the clock that jobs run on."""

from __future__ import annotations

import time
from typing import Any

import anthropic
import openai
import pytest
from google.genai import errors as genai_errors

from batch_pipeline_tests.simulator.jobs import (
    FROZEN,
    MODELS,
    ROWS,
    SLOW,
    Provider,
    google_lines,
    jsonl,
)
from batch_pipeline_tests.simulator.running import Running, until

LIMITED = {"google": genai_errors.ClientError, "anthropic": anthropic.RateLimitError}


def enqueued(simulator: Running) -> dict[str, Any]:
    [gauge] = simulator.http.get("/_sim/enqueued").json()["enqueued"]
    return dict(gauge)


def tokens_of(simulator: Running, rows: list[str]) -> int:
    """What Gemini counts for the rows."""
    client = simulator.google()
    model = MODELS["google"]
    return sum(
        client.models.count_tokens(model=model, contents=row).total_tokens or 0 for row in rows
    )


def test_gemini_refuses_a_job_above_the_enqueued_tokens(simulator: Running) -> None:
    size = tokens_of(simulator, ROWS)
    simulator.configure(batches=[{**SLOW, "enqueued_tokens": 2 * size}], clock=FROZEN)
    provider = Provider(simulator, "google")
    first = provider.create()
    provider.create()
    with pytest.raises(genai_errors.ClientError) as caught:
        provider.create(ROWS[:1])
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    details = caught.value.details["error"]["details"]
    assert [one["@type"] for one in details] == ["type.googleapis.com/google.rpc.Help"]
    gauge = enqueued(simulator)
    assert (gauge["limit"], gauge["now"], gauge["peak"]) == (2 * size, 2 * size, 2 * size)
    # Another model, and another key, have room of their own.
    Provider(simulator, "google", key="other-key").create()
    provider.cancel(first)
    until(lambda: provider.state(first), lambda state: state == "cancelled")
    provider.create(ROWS[:1])
    assert simulator.summary()["other_calls"]["google batches.create 429"] == 1


def test_openai_accepts_a_job_above_the_enqueued_tokens_and_fails_it(simulator: Running) -> None:
    simulator.configure(batches=[{**SLOW, "duration_s": 0.2, "enqueued_tokens": 100}])
    provider = Provider(simulator, "openai")
    job = provider.create()
    # It has no part in what is enqueued.
    assert provider.done(job) == "failed"
    [error] = provider.get(job)["errors"]["data"]
    assert error["code"] == "token_limit_exceeded" and "Limit: 100 enqueued" in error["message"]
    assert simulator.http.get("/_sim/enqueued").json()["enqueued"] == []
    assert provider.done(provider.create(ROWS[:2])) == "completed"


def test_anthropic_refuses_a_job_above_a_limit_that_is_set(simulator: Running) -> None:
    simulator.configure(batches=[{**SLOW, "enqueued_tokens": 100}])
    with pytest.raises(anthropic.RateLimitError):
        Provider(simulator, "anthropic").create()


def test_gemini_has_a_hundred_open_jobs_at_most(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    provider = Provider(simulator, "google")
    name = provider.upload(google_lines(ROWS[:1]))
    client = simulator.google("test-key")
    for _ in range(100):
        client.batches.create(model=MODELS["google"], src=name)
    with pytest.raises(genai_errors.ClientError) as caught:
        client.batches.create(model=MODELS["google"], src=name)
    assert caught.value.code == 429
    assert enqueued(simulator)["open_jobs"] == enqueued(simulator)["peak_jobs"] == 100


@pytest.mark.parametrize("name", ["google", "anthropic", "openai"])
def test_the_number_of_open_jobs_can_be_limited(simulator: Running, name: str) -> None:
    simulator.configure(batches=[{**SLOW, "max_jobs": 1}], clock=FROZEN)
    provider = Provider(simulator, name)
    provider.create()
    with pytest.raises(LIMITED.get(name, openai.RateLimitError)):
        provider.create()


def test_a_job_has_a_largest_size(simulator: Running) -> None:
    simulator.configure(batches=[{**SLOW, "duration_s": 0.1, "max_lines": 5}])
    with pytest.raises(genai_errors.ClientError):
        Provider(simulator, "google").create()
    with pytest.raises(anthropic.BadRequestError, match="at most 5"):
        Provider(simulator, "anthropic").create()
    provider = Provider(simulator, "openai")
    job = provider.create()
    assert provider.done(job) == "failed"
    assert provider.get(job)["errors"]["data"][0]["code"] == "too_many_tasks"
    simulator.configure(batches=[{**SLOW, "duration_s": 0.1, "max_bytes": 300}])
    with pytest.raises(anthropic.APIStatusError) as caught:
        Provider(simulator, "anthropic").create()
    assert caught.value.status_code == 413
    job = provider.create()
    assert provider.done(job) == "failed"
    assert provider.get(job)["errors"]["data"][0]["code"] == "file_too_large"
    inline: Any = {"batch": {"inputConfig": {"requests": {"requests": [{"request": {}}] * 50}}}}
    reply = simulator.http.post(
        f"/google/v1/models/{MODELS['google']}:batchGenerateContent",
        json=inline,
        headers={"x-goog-api-key": "k"},
    )
    assert reply.status_code == 400 and "payload size" in reply.json()["error"]["message"]


def test_calls_around_jobs_can_be_limited_per_minute(simulator: Running) -> None:
    simulator.configure(batches=[{"calls_per_minute": 2}])
    client = simulator.openai()
    client.batches.list()
    client.files.list()
    with pytest.raises(openai.RateLimitError):
        client.batches.list()


def test_a_key_without_credit_makes_no_job(simulator: Running) -> None:
    simulator.configure(key_marks={"-key": "no_credit"}, batches=[SLOW])
    with pytest.raises(genai_errors.ClientError) as google:
        Provider(simulator, "google").create()
    assert google.value.code == 429
    with pytest.raises(anthropic.APIStatusError) as claude:
        Provider(simulator, "anthropic").create()
    assert claude.value.status_code == 402
    with pytest.raises(openai.RateLimitError, match="quota"):
        Provider(simulator, "openai").create()


def test_what_is_enqueued_is_there_as_a_series_of_changes(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    provider = Provider(simulator, "google")
    sizes = [tokens_of(simulator, ROWS), tokens_of(simulator, ROWS[:3])]
    provider.create()
    simulator.advance(100)
    second = provider.create(ROWS[:3])
    simulator.advance(901)
    until(lambda: enqueued(simulator)["open_jobs"], lambda count: count == 1)
    assert provider.state(second) == "running"
    gauge = enqueued(simulator)
    series = gauge["series"]
    assert [(tokens, jobs) for _, tokens, jobs in series] == [
        (sizes[0], 1),
        (sum(sizes), 2),
        (sizes[1], 1),
    ]
    start = series[0][0]
    assert [round(t - start) for t, _, _ in series] == [0, 100, 1_001]
    assert gauge["now"] == sizes[1] and gauge["peak"] == sum(sizes)
    [summed] = simulator.summary()["enqueued"]
    assert summed["peak"] == sum(sizes) and "series" not in summed


def test_the_clock_of_jobs_runs_faster_stops_and_moves_ahead(simulator: Running) -> None:
    def clock() -> dict[str, Any]:
        return dict(simulator.http.get("/_sim/clock").json())

    assert abs(clock()["now"] - time.time()) < 5
    simulator.configure(clock={"speed": 3_600})
    first = clock()["now"]
    until(lambda: clock()["now"], lambda now: now > first + 300)
    reply = simulator.http.post("/_sim/clock", json={"frozen": True, "advance_s": 3_600}).json()
    assert reply["frozen"] and reply["speed"] == 3_600
    assert clock()["now"] == reply["now"] and clock()["offset_s"] > 3_500
    for wrong in ({"advance_s": -1}, {"sped": 2}, {"speed": 0}, [1]):
        assert simulator.http.post("/_sim/clock", json=wrong).status_code == 400
    simulator.http.post("/_sim/reset")
    assert abs(clock()["offset_s"]) < 5


def test_a_job_of_a_day_ends_soon_on_a_fast_clock(simulator: Running) -> None:
    simulator.configure(
        batches=[{**SLOW, "duration_s": 80_000}], clock={"speed": 400_000, "frozen": False}
    )
    provider = Provider(simulator, "openai")
    job = provider.create()
    assert provider.done(job) == "completed"
    body = provider.get(job)
    assert 79_999 <= body["completed_at"] - body["created_at"] <= 80_001


def test_durations_are_drawn_around_their_mean_the_same_in_every_run(simulator: Running) -> None:
    simulator.configure(
        batches=[{"duration_s": 1_000, "per_line_s": 10, "duration_jitter": 0.5}], clock=FROZEN
    )
    runs = []
    for _ in range(2):
        simulator.http.post("/_sim/reset")
        provider = Provider(simulator, "openai")
        jobs = [provider.create(ROWS) for _ in range(4)]
        simulator.advance(2_000)
        for job in jobs:
            assert provider.done(job) == "completed"
        bodies = [provider.get(job) for job in jobs]
        runs.append([body["completed_at"] - body["created_at"] for body in bodies])
    assert all(abs(a - b) <= 1 for a, b in zip(*runs, strict=True))
    assert len(set(runs[0])) == 4
    assert all(549 <= duration <= 1_651 for duration in runs[0])


def test_five_hundred_jobs_are_listed_at_once(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    provider = Provider(simulator, "anthropic")
    request = {"custom_id": "a", "params": {"model": MODELS["anthropic"]}}
    for _ in range(500):
        simulator.http.post(
            "/anthropic/v1/messages/batches", json={"requests": [request]}, headers=provider.headers
        ).raise_for_status()
    reply = simulator.http.get(
        "/anthropic/v1/messages/batches", params={"limit": 1_000}, headers=provider.headers
    )
    assert len(reply.json()["data"]) == 500 and not reply.json()["has_more"]
    assert reply.elapsed.total_seconds() < 1


def test_the_server_answers_while_it_works_on_many_lines(simulator: Running) -> None:
    simulator.configure(batches=[{"duration_s": 0, "per_line_s": 0}])
    rows = [f"{n} {'word and more ' * 100}" for n in range(2_000)]
    provider = Provider(simulator, "google")
    job = provider.create(content=google_lines(rows))
    waits = []
    while provider.state(job) != "succeeded":
        started = time.monotonic()
        simulator.http.get("/_sim/health").raise_for_status()
        waits.append(time.monotonic() - started)
    assert waits and max(waits) < 0.5
    assert len(provider.results(job)) == 2_000


def test_a_gemini_file_with_an_unreadable_line_makes_a_failed_job(simulator: Running) -> None:
    simulator.configure(batches=[{"duration_s": 0.1, "per_line_s": 0}])
    provider = Provider(simulator, "google")
    job = provider.create(content=google_lines(ROWS[:1]) + b"{\n")
    assert provider.done(job) == "failed"
    assert provider.get(job)["error"]["code"] == 3
    job = provider.create(content=jsonl([{"key": "a", "request": {}}, {"key": "b"}]))
    assert provider.done(job) == "succeeded"
    assert {one["status"] for one in provider.results(job).values()} == {"INVALID_ARGUMENT"}
