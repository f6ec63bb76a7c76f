"""Submissions to their end: real runs in processes of their own, servers that end in between."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from batch_pipeline.ledger.batches import count_outcomes
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.api.conftest import Place, Server, articles, until
from batch_pipeline_tests.simulator.running import INSTANT, Running

GUIDES_CLIENT = """
import requests

# Submit
response = requests.post(
    "http://localhost:8001/batch/submit-contents",
    json={
        "contents": [
            {"id": "1", "title": "Test", "contents": "Test content..."}
        ],
        "batch_name": "test_batch"
    }
)
job_id = response.json()["job_id"]

# Poll status
import time
while True:
    status = requests.get(f"http://localhost:8001/batch/status/{job_id}").json()
    print(f"Progress: {status['progress_percent']}%")
    if status["state"] == "JOB_STATE_SUCCEEDED":
        break
    time.sleep(30)

# Get results
results = requests.get(
    f"http://localhost:8001/batch/results/{job_id}/test_batch"
).json()
"""
"""The client of systems/2-news.md, section 3."""

FIX = (
    'if status["state"] == "JOB_STATE_SUCCEEDED":',
    'if status["state"] not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):',
)
"""Its one fix: any end ends it, not only the good one (W2-06)."""


@pytest.fixture(scope="module")
def busy(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server that runs what it takes, one at a time."""
    with make_place().serve(BATCH_PIPELINE_API_RUNS="1") as server:
        yield server


@pytest.fixture(scope="module")
def done(busy: Server) -> dict[str, Any]:
    """A batch of twelve articles, one of them empty, that has run to its end."""
    contents = articles("done", 12)
    contents[4]["contents"] = ""
    reply = busy.http.post(
        "/batch/submit-contents", json={"contents": contents, "batch_name": "done"}
    )
    assert reply.status_code == 202, reply.text
    return busy.ended("done")


def run_client(server: Server, code: str) -> tuple[dict[str, Any], str]:
    """Run the guide's client against a server, whose port is not 8001, without its naps."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    at_server = code.replace("http://localhost:8001", server.url).replace("sleep(30)", "sleep(0.2)")
    with contextlib.redirect_stdout(printed):
        exec(at_server, names)
    return names, printed.getvalue()


def test_the_client_of_the_guide_runs_with_its_one_fix(busy: Server) -> None:
    assert GUIDES_CLIENT.count(FIX[0]) == 1
    names, printed = run_client(busy, GUIDES_CLIENT.replace(*FIX))
    assert names["status"]["state"] == "JOB_STATE_SUCCEEDED"
    assert printed.splitlines()[-1] == "Progress: 100.0%"
    results = names["results"]
    assert (results["job_id"], results["total_count"]) == ("test_batch", 1)
    row = results["results"][0]
    assert row["page_title"] == "Test" and row["is_financial"] in ("Yes", "No")
    assert row.keys() >= {
        "page_title", "is_financial", "country", "sector", "companies", "sentiment",
        "confident_score", "summary_en", "summary_tr", "extracted_characters",
    }  # fmt: skip


def test_a_job_that_has_ended_says_so_and_gives_its_rows(
    busy: Server, done: dict[str, Any]
) -> None:
    assert (done["state"], done["done"]) == ("JOB_STATE_SUCCEEDED", True), done
    assert (done["completed_count"], done["total_count"]) == (12, 12)
    assert done["progress_percent"] == 100.0
    assert done["outcomes"] == {"succeeded": 11, "skipped": 1}
    rows = []
    page = "/batch/results/done/done?limit=5"
    while page:
        document = busy.get(page).json()
        assert document["total_count"] == 12
        rows += document["results"]
        page = document["next"]
    assert [row["item_id"] for row in rows] == [f"done-{n}" for n in range(1, 13)]
    assert [row["id"] for row in rows] == [row["item_id"] for row in rows]
    assert [row["outcome"] for row in rows].count("skipped") == 1
    assert all(row["summary_en"] for row in rows if row["outcome"] == "succeeded")


def test_a_run_shows_what_it_came_to_and_is_a_dagster_run(
    busy: Server, done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = busy.get(f"/runs/{done['run_id']}").json()
    assert (run["state"], run["job_id"]) == ("ended", "done")
    assert run["summary"]["requests"] == 11 and run["summary"]["cost_usd"] > 0
    report = busy.get("/batches/done/report").json()
    assert report["outcomes"]["succeeded"] == 11
    from dagster import DagsterInstance
    from dagster._core.instance import InstanceRef

    home = busy.data / "dagster_home"
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(busy.data))
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        found = instance.get_run_by_id(run["dagster_run_id"])
        assert found is not None and found.is_success
        assert found.job_name == "news_run"


def test_the_list_shows_the_state_of_today(busy: Server, done: dict[str, Any]) -> None:
    lines = {job["job_id"]: job for job in busy.get("/batch/jobs").json()["jobs"]}
    line = lines[done["job_id"]]
    assert (line["status"], line["completed_count"]) == ("JOB_STATE_SUCCEEDED", 12)
    assert line["batch_file"] == "done.jsonl" and line["submitted_at"].endswith("Z")
    only = busy.get("/batch/jobs", state="JOB_STATE_SUCCEEDED", workload="news").json()
    assert done["job_id"] in {job["job_id"] for job in only["jobs"]}
    assert busy.get("/batch/jobs", workload="roadmaps").json()["total"] == 0


def test_a_wait_is_bounded_and_never_blocks(busy: Server, done: dict[str, Any]) -> None:
    busy.submit("waited", 2, wait_for_completion=False)
    short = busy.http.post(
        "/batch/submit-contents?wait_s=0.2",
        json={
            "contents": articles("waited", 2),
            "batch_name": "waited",
            "wait_for_completion": True,
        },
    )
    assert short.status_code == 202 and short.headers["location"] == "/batch/status/waited"
    assert short.json()["status"] in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")
    busy.ended("waited")
    # Nothing is left to do: the same submission is answered with the same run.
    again = busy.submit("waited", 2, wait_for_completion=True)
    assert again.status_code == 200
    assert again.json()["run_id"] == short.json()["run_id"]
    assert again.json()["status"] == "JOB_STATE_SUCCEEDED"


def test_a_page_that_may_not_be_fetched_says_why(busy: Server) -> None:
    lost = {"urls": ["http://127.0.0.1:1/refused"], "batch_name": "refused"}
    assert busy.http.post("/batch/submit", json=lost).status_code == 202
    ended = busy.ended("refused")
    assert ended["state"] == "JOB_STATE_FAILED"
    row = busy.get("/batch/results/refused/refused").json()["results"][0]
    assert row["outcome"] == "failed" and "127.0.0.1" in row["error"]


# ---- pages ---------------------------------------------------------------------------------------

PAGE = """<!doctype html><html><head><title>{title}</title></head><body><nav>Home</nav><article>
<h1>{title}</h1>{text}</article></body></html>"""


class _Pages(BaseHTTPRequestHandler):
    """Two articles, and nothing else."""

    def do_GET(self) -> None:
        text = "".join(
            f"<p>Paragraph {n} of a long story about rates. {LONG}</p>" for n in range(9)
        )
        known = self.path in ("/one", "/two")
        body = PAGE.format(title=f"Story {self.path[1:]}", text=text).encode() if known else b"none"
        self.send_response(200 if known else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


LONG = "The central bank left its rate where it was, and the markets took it calmly. " * 4


def test_a_list_of_urls_is_fetched_and_classified(make_place: Callable[[], Place]) -> None:
    pages = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{pages.server_port}"
    try:
        with make_place().serve(BATCH_PIPELINE_FETCH_ALLOW=host) as server:
            urls = [f"http://{host}/{name}" for name in ("one", "two", "three")]
            urls.append("http://169.254.169.254/latest/meta-data/")
            body = {"urls": urls, "batch_name": "fetched"}
            assert server.http.post("/batch/submit", json=body).status_code == 202
            ended = server.ended("fetched", 90)
            assert ended["state"] == "JOB_STATE_PARTIALLY_SUCCEEDED", json.dumps(ended)
            assert ended["outcomes"] == {"succeeded": 2, "failed": 2}
            rows = server.get("/batch/results/fetched/fetched").json()["results"]
            assert [row["url"] for row in rows] == urls
            assert [row["page_title"] for row in rows[:2]] == ["Story one", "Story two"]
            assert rows[0]["extracted_characters"] > 1_000
            assert all(row["error"] for row in rows[2:])
            # Failed rows may be asked again, by the same submission too.
            again = server.http.post("/batch/submit", json=body).json()
            assert again["run_id"] == "fetched.r0002"
    finally:
        pages.shutdown()
        pages.server_close()


# ---- the batch lane ------------------------------------------------------------------------------


def test_a_job_in_the_batch_lane_comes_back_without_a_daemon(
    busy: Server, api_simulator: Running
) -> None:
    reply = busy.submit("lane", 6, lane="batch")
    assert reply.status_code == 202, reply.text
    until(lambda: bool(busy.status("lane")["provider_jobs"]))
    job = busy.status("lane")["provider_jobs"][0]
    assert (job["job_id"], job["provider"], job["item_count"]) == ("lane.j0001", "google", 6)
    ended = busy.ended("lane", 120)
    assert (ended["state"], ended["outcomes"]) == ("JOB_STATE_SUCCEEDED", {"succeeded": 6}), ended
    job = ended["provider_jobs"][0]
    assert job["name"].startswith("batches/") and job["state"] == "collected"

    for name in (job["name"], job["name"].replace("/", "%2F"), "batch_jobs/lane.j0001"):
        assert busy.status(name)["job_id"] == "lane", name
        page = busy.get(f"/batch/results/{name}/lane").json()
        assert page["total_count"] == len(page["results"]) == 6, name
    assert busy.get(f"/runs/{ended['run_id']}").json()["state"] == "ended"


def test_a_cancelled_job_in_the_batch_lane_ends(busy: Server, api_simulator: Running) -> None:
    api_simulator.configure(latency=INSTANT, batches=[{"duration_s": 3_600.0}])
    try:
        busy.submit("called-off", 5, lane="batch")
        until(lambda: any(one["name"] for one in busy.status("called-off")["provider_jobs"]))
        until(lambda: busy.get("/health").json()["running"] == 0)
        answer = busy.http.post("/batch/cancel/called-off")
        assert answer.status_code == 200, answer.text
        assert answer.json()["provider_jobs"] == 1
        ended = busy.ended("called-off", 90)
        assert ended["state"] == "JOB_STATE_CANCELLED", json.dumps(ended)
        assert ended["outcomes"] == {"pending": 5}
        assert len(ended["provider_jobs"]) == 1
        again = busy.http.post("/batch/cancel/called-off")
        assert again.status_code == 409, again.text
    finally:
        api_simulator.configure(latency=INSTANT)


# ---- servers that end ----------------------------------------------------------------------------


@pytest.fixture
def place(make_place: Callable[[], Place]) -> Place:
    return make_place()


def outcomes(server: Server, batch: str) -> dict[Outcome, int]:
    with server.open_ledger() as ledger, ledger.read() as connection:
        return count_outcomes(connection, "simulated", batch)


def test_a_server_goes_on_with_what_waited_before_it(place: Place) -> None:
    with place.serve(BATCH_PIPELINE_API_RUNS="0") as first:
        for n in range(2):
            assert first.submit(f"left-{n}", 3).status_code == 202
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    with place.serve(BATCH_PIPELINE_API_RUNS="2") as second:
        for n in range(2):
            assert second.ended(f"left-{n}", 90)["outcomes"] == {"succeeded": 3}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_run_survives_the_end_of_its_server_and_pays_nothing_twice(
    place: Place, api_simulator: Running, end: signal.Signals
) -> None:
    slow = {"base_s": 0.5, "per_output_token_s": 0, "jitter_s": 0}
    key = f"key-{os.urandom(6).hex()}"
    place.extra["BATCH_PIPELINE_SIM_KEY"] = key
    api_simulator.configure(latency=slow)
    try:
        with place.serve(BATCH_PIPELINE_API_RUNS="1") as first:
            first.submit("long", 60, route="google/gemini-3.1-flash-lite")
            until(lambda: outcomes(first, "long")[Outcome.SUCCEEDED] > 0)
            assert first.stop(end) == (0 if end is signal.SIGINT else -end)
        with place.serve(BATCH_PIPELINE_API_RUNS="0") as second:
            assert second.status("long")["done"] is False
            before = outcomes(second, "long")[Outcome.SUCCEEDED]
            second.stop(signal.SIGKILL)
        with place.serve(BATCH_PIPELINE_API_RUNS="1") as third:
            assert third.ended("long", 90)["outcomes"] == {"succeeded": 60}
            assert before > 0
    finally:
        api_simulator.configure(latency=INSTANT)
    asked = [one for one in journal(api_simulator) if one["key_last4"] == key[-4:]]
    assert len(asked) == 60


def test_a_cancelled_run_keeps_what_is_done(place: Place, api_simulator: Running) -> None:
    api_simulator.configure(latency={"base_s": 1.0, "per_output_token_s": 0, "jitter_s": 0})
    try:
        with place.serve(BATCH_PIPELINE_API_RUNS="1") as server:
            server.submit("going", 900)
            server.submit("behind", 2)
            until(lambda: outcomes(server, "going")[Outcome.SUCCEEDED] > 0)
            assert server.http.post("/batch/cancel/behind").json()["state"] == "JOB_STATE_CANCELLED"
            answer = server.http.post("/batch/cancel/batch_jobs/going")
            assert answer.status_code == 200, answer.text
            ended = server.ended("going", 60)
            assert ended["state"] == "JOB_STATE_CANCELLED", json.dumps(ended)
            assert 0 < ended["completed_count"] < 900
            partly = server.get("/batch/results/going/going", limit=1).json()
            assert partly["total_count"] == 900
            again = server.http.post("/batch/cancel/going")
            assert (again.status_code, again.json()["code"]) == (409, "conflict")
    finally:
        api_simulator.configure(latency=INSTANT)


def journal(simulator: Running) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    while page := simulator.journal(len(records)):
        records += page
    return records
