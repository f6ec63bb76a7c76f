"""The process: control endpoints, journal file, start and stop, bench mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from batch_pipeline.simulator.launch import (
    URL_VARIABLE,
    SimulatorError,
    base_urls,
    ensure_simulator,
    stop_simulator,
)
from batch_pipeline_tests.simulator.running import ROOT, Running, running
from batch_pipeline_tests.simulator.test_simulator_faults import FORMAT, IDS, ROWS

COMMAND = [sys.executable, "-m", "batch_pipeline.simulator"]
ENSURE = (
    "import sys; from pathlib import Path; from batch_pipeline.simulator.launch import "
    "ensure_simulator; sys.stdout.write(ensure_simulator(Path(sys.argv[1])))"
)


def test_the_journal_says_the_same_in_the_file_and_over_http(simulator: Running) -> None:
    for n in range(3):
        simulator.chat(f"q{n}")
    simulator.chat(key="bad")
    lines = [
        json.loads(line)
        for line in (simulator.state_dir / "journal.jsonl").read_text().splitlines()
    ]
    records = simulator.journal()
    assert lines == [{k: v for k, v in r.items() if k != "price_usd"} for r in records]
    assert [r["n"] for r in records] == [1, 2, 3, 4]
    page = simulator.http.get("/_sim/journal", params={"since": 1, "limit": 2}).json()
    assert [r["n"] for r in page["records"]] == [2, 3] and page["last"] == 4
    totals = simulator.summary()
    assert totals["by_status"] == {"200": 3, "401": 1}
    for name in ("input_tokens", "output_tokens"):
        assert totals[name] == sum(r[name] for r in records)
    assert totals["price_usd"] == pytest.approx(sum(r["price_usd"] for r in records))


def test_the_journal_has_the_clients_own_request_id(simulator: Running) -> None:
    simulator.openai().responses.create(
        model="gpt-6-luna", input="hi", extra_headers={"X-Client-Request-Id": "attempt-1"}
    )
    simulator.chat()
    assert [r["client_request_id"] for r in simulator.journal()] == ["attempt-1", ""]


def test_a_client_that_leaves_has_still_paid(simulator: Running) -> None:
    simulator.configure(latency={"base_s": 30})
    with pytest.raises(openai.APITimeoutError):
        simulator.openai(timeout=0.3).responses.create(model="gpt-6-luna", input="hi")
    deadline = time.monotonic() + 5
    while not simulator.journal() and time.monotonic() < deadline:
        pass
    [record] = simulator.journal()
    assert (record["status"], record["fault"], record["billed"]) == (0, "client_left", True)


def test_latency_is_what_was_set(simulator: Running) -> None:
    simulator.configure(latency={"base_s": 0.2, "per_output_token_s": 0, "jitter_s": 0})
    start = time.monotonic()
    simulator.chat()
    assert time.monotonic() - start >= 0.2
    assert simulator.journal()[0]["latency_s"] == pytest.approx(0.2, abs=0.1)


def test_a_wrong_setting_is_named(simulator: Running) -> None:
    reply = simulator.http.put("/_sim/config", json={"faults": [{"kind": "explode"}]})
    assert reply.status_code == 400 and "faults.0.kind" in reply.text
    reply = simulator.http.put("/_sim/config", json={"fautls": []})
    assert reply.status_code == 400 and "fautls" in reply.text
    assert simulator.http.get("/_sim/config").json()["faults"] == []


def test_reset_forgets_the_journal_and_the_faults(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 500}])
    assert simulator.chat().status_code == 500
    simulator.http.post("/_sim/reset")
    assert simulator.journal() == []
    assert (simulator.state_dir / "journal.jsonl").read_bytes() == b""
    assert simulator.chat().status_code == 200
    assert len(simulator.journal()) == 1


def test_only_loopback_names_are_served(simulator: Running) -> None:
    port = simulator.url.rpartition(":")[2]
    for host, status in (
        (f"127.0.0.1:{port}", 200),
        (f"localhost:{port}", 200),
        (f"evil.example:{port}", 403),
        ("evil.example", 403),
    ):
        assert simulator.http.get("/_sim/health", headers={"host": host}).status_code == status
    for origin, status in ((f"http://localhost:{port}", 200), ("https://evil.example", 403)):
        assert simulator.http.get("/_sim/health", headers={"origin": origin}).status_code == status


def test_a_bad_body_gets_the_providers_own_400(simulator: Running) -> None:
    headers = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}
    for path, body in (
        ("/anthropic/v1/messages", b"{"),
        ("/anthropic/v1/messages", b"[]"),
        ("/openai/v1/chat/completions", b'{"model": "gpt-6-luna", "messages": [3]}'),
        ("/openai/v1/responses", b'{"model": "gpt-6-luna", "input": 5}'),
        ("/openai/v1/responses", b"{}"),
    ):
        reply = simulator.http.post(path, content=body, headers=headers)
        assert (reply.status_code, "message" in reply.json()["error"]) == (400, True), body
    reply = simulator.http.get("/anthropic/v1/nothing", headers=headers)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


def test_half_a_surrogate_pair_in_a_row_is_answered(simulator: Running) -> None:
    rows = '{"rows": [{"id": "0", "text": "broken \\ud83d emoji"}]}'
    reply = simulator.chat(rows, response_format=FORMAT)
    assert json.loads(reply.json()["choices"][0]["message"]["content"])["results"][0]["id"] == "0"


def test_a_restarted_simulator_continues_its_journal(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"latency": {"base_s": 0, "jitter_s": 0}, "key_marks": {"1234": "no_credit"}}'
    )
    with running(tmp_path, "--config", str(config)) as first:
        assert first.chat("one").status_code == 200
        assert first.chat(key="sk-1234").status_code == 429
        assert json.loads((tmp_path / "simulator.json").read_text())["url"] == first.url
    assert not (tmp_path / "simulator.json").exists()
    with (tmp_path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"n": 3, "torn')
    with running(tmp_path, "--idle-exit-s", "60") as second:
        assert [record["status"] for record in second.journal()] == [200, 429]
        assert second.summary()["price_usd"] > 0


def test_a_wrong_config_file_ends_with_a_clear_error(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"limits": 3}')
    ended = subprocess.run(
        [*COMMAND, "--state-dir", str(tmp_path), "--config", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 64 and "limits" in ended.stderr


def test_an_idle_simulator_ends(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "--state-dir", str(tmp_path), "--idle-exit-s", "0.2"],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    assert ended.returncode == 0
    assert not (tmp_path / "simulator.json").exists()


def test_two_that_ask_at_once_get_one_simulator(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != URL_VARIABLE}

    def ensure(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", ENSURE, str(tmp_path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    try:
        with ThreadPoolExecutor(3) as pool:
            urls = set(pool.map(ensure, range(3)))
        [url] = urls
        health = httpx.get(f"{url}/_sim/health").json()
        assert health["simulator"] is True
        assert health["pid"] == json.loads((tmp_path / "simulator.json").read_text())["pid"]
        assert (tmp_path / "simulator.log").read_text().count('"url"') == 1
    finally:
        assert stop_simulator(tmp_path) is True
    assert stop_simulator(tmp_path) is False
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/_sim/health")


def test_a_dead_record_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    dead = {"url": "http://127.0.0.1:9", "pid": os.getpid(), "started_at": 0, "mode": "normal"}
    (tmp_path / "simulator.json").write_text(json.dumps(dead))
    assert stop_simulator(tmp_path) is False
    (tmp_path / "simulator.json").write_text(json.dumps(dead))
    url = ensure_simulator(tmp_path)
    try:
        assert url != dead["url"]
        assert ensure_simulator(tmp_path) == url
    finally:
        assert stop_simulator(tmp_path) is True


def test_the_url_of_the_environment_wins(
    simulator: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, simulator.url)
    assert ensure_simulator(tmp_path) == simulator.url
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(SimulatorError, match=URL_VARIABLE):
        ensure_simulator(tmp_path)


def test_launching_does_not_load_the_server() -> None:
    code = (
        "import sys, batch_pipeline.simulator.launch;"
        "heavy = {'aiohttp', 'pydantic', 'genai_prices', 'anthropic'} & set(sys.modules);"
        "sys.exit(1 if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_base_urls_name_every_provider() -> None:
    assert base_urls("http://127.0.0.1:5/") == {
        "google": "http://127.0.0.1:5/google",
        "anthropic": "http://127.0.0.1:5/anthropic",
        "openai": "http://127.0.0.1:5/openai/v1",
        "openrouter": "http://127.0.0.1:5/openrouter/api/v1",
    }


def test_bench_mode_answers_the_ids_it_was_asked(tmp_path: Path) -> None:
    with running(tmp_path, "--bench", "--latency-ms", "1") as bench:
        for rows in (ROWS, ROWS[:2], ROWS):
            reply = bench.chat(json.dumps({"rows": rows}), response_format=FORMAT).json()
            results = json.loads(reply["choices"][0]["message"]["content"])["results"]
            assert [row["id"] for row in results] == IDS[: len(rows)]
        google = bench.google().models.generate_content(
            model="gemini-3.8-flash", contents="hello there"
        )
        assert google.text == "You said: hello there"
        assert bench.summary()["attempts"] == 4
        assert bench.http.get("/_sim/health").json()["simulator"] is True


LOOK_UPS = {
    "/google/v1/models/gemini-3.8-flash": ("/google/v1/models/gemini-0", 400),
    "/anthropic/v1/models/claude-haiku-5-5": ("/anthropic/v1/models/claude-0", 401),
    "/openai/v1/models/gpt-6-luna": ("/openai/v1/models/gpt-0", 401),
    "/openrouter/api/v1/key": ("/openrouter/api/v1/models/openai/gpt-0", 401),
}


@pytest.mark.parametrize("path", LOOK_UPS)
def test_look_ups_tell_good_keys_bad_keys_and_unknown_models_apart(
    simulator: Running, path: str
) -> None:
    unknown, bad_status = LOOK_UPS[path]

    def status(path: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "x-goog-api-key": key}
        return simulator.http.get(path, headers=headers).status_code

    assert (status(path, "good"), status(path, "bad-key")) == (200, bad_status)
    assert status(unknown, "good") == 404
    assert simulator.journal() == []


def test_a_key_without_credit_has_nothing_left(simulator: Running) -> None:
    simulator.configure(key_marks={"1234": "no_credit"})
    for key, left in (("sk-or-1234", 0), ("sk-or-5678", 100)):
        reply = simulator.http.get(
            "/openrouter/api/v1/key", headers={"authorization": f"Bearer {key}"}
        )
        assert reply.json()["data"]["limit_remaining"] == left
