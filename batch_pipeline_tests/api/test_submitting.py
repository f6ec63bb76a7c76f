"""Submissions: what is answered, what is on disk by then, and what is refused."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from batch_pipeline.ledger.batches import Batch, find_batch, list_batches
from batch_pipeline_tests.api.conftest import Place, Server, articles

URLS = ["https://example.com/article1", "https://example.com/article2"]


def batch_of(server: Server, name: str) -> Batch:
    with server.open_ledger() as ledger, ledger.read() as connection:
        found = find_batch(connection, "simulated", name)
    assert found is not None
    return found


def problem(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    document = dict(reply.json())
    assert (document["status"], document["code"]) == (status, code)
    assert document["detail"]
    return document


def test_a_submission_answers_as_the_guide_says_and_is_on_disk_by_then(quiet: Server) -> None:
    reply = quiet.submit("first", 4)
    assert reply.status_code == 202
    answer = reply.json()
    assert answer["job_id"] == answer["batch_name"] == "first"
    assert (answer["item_count"], answer["url_count"], answer["status"]) == (4, 4, "SUBMITTED")
    assert answer["message"] == "Batch submitted. Use GET /batch/status/first to check progress"
    assert reply.headers["location"] == answer["links"]["status"] == "/batch/status/first"

    batch = batch_of(quiet, "first")
    assert (batch.row_count, batch.workload, batch.launch) == (4, "news", "api")
    kept = [path for path in (quiet.data / "uploads").rglob("first*") if path.is_file()]
    assert {path.suffix for path in kept} == {".jsonl", ".json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    status = quiet.status("first")
    assert (status["state"], status["done"]) == ("JOB_STATE_PENDING", False)
    assert status["total_count"] == 4 and "Waiting for its turn" in status["message"]


def test_the_same_content_under_the_same_name_is_the_same_run(quiet: Server) -> None:
    first, again = quiet.submit("same").json(), quiet.submit("same").json()
    assert first["run_id"] == again["run_id"] == "same.r0001"


def test_other_content_under_the_same_name_is_a_conflict_that_names_both(quiet: Server) -> None:
    quiet.submit("taken", 3)
    found = problem(quiet.submit("taken", 5), 409, "conflict")
    assert "'taken'" in found["detail"] and "3 rows" in found["detail"]
    assert "5 rows" in found["detail"] and str(quiet.data) not in found["detail"]
    assert quiet.status("taken")["total_count"] == 3


def test_a_wrong_row_is_named(quiet: Server) -> None:
    contents: list[dict[str, Any]] = [*articles("rows", 2), {"id": "x", "contents": 7}]
    reply = quiet.http.post("/batch/submit-contents", json={"contents": contents})
    found = problem(reply, 422, "invalid")
    assert {"where": "contents[2].contents", "row": 3} in [
        {"where": error["where"], "row": error["row"]} for error in found["errors"]
    ]
    assert "row 3" in found["detail"]


@pytest.mark.parametrize(("count", "status"), [(0, 422), (1, 202), (1_000, 202), (1_001, 422)])
def test_a_submission_holds_1_to_1000_articles(quiet: Server, count: int, status: int) -> None:
    assert quiet.submit(f"many-{count}", count).status_code == status


@pytest.mark.parametrize("name", ["../up", "a b", "", "-x", "a/b", "x" * 121, "nul\0"])
def test_a_name_that_is_no_safe_name_is_refused(quiet: Server, name: str) -> None:
    problem(quiet.submit(name), 422, "invalid")


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "https://example.com/a\nhttps://b.example", "nothing", "# x"]
)
def test_what_is_no_web_address_is_refused(quiet: Server, url: str) -> None:
    reply = quiet.http.post("/batch/submit", json={"urls": [*URLS, url], "batch_name": "bad-urls"})
    assert "row 3" in problem(reply, 422, "invalid")["detail"]


def test_a_list_of_urls_waits_for_its_pages(quiet: Server) -> None:
    body = {"urls": URLS, "batch_name": "pages"}
    reply = quiet.http.post("/batch/submit", json=body)
    assert reply.status_code == 202
    assert reply.json()["url_count"] == 2
    status = quiet.status("pages")
    assert (status["state"], status["total_count"]) == ("JOB_STATE_PENDING", 2)
    problem(quiet.get("/batch/results/pages/pages", partial=True), 400, "not_ready")
    assert quiet.http.post("/batch/submit", json=body).json()["run_id"] == "pages.r0001"

    other = {"urls": [*URLS, "https://example.com/c"], "batch_name": "pages"}
    problem(quiet.http.post("/batch/submit", json=other), 409, "conflict")
    problem(quiet.submit("pages"), 409, "conflict")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("route", "google/"), ("route", "nobody/model"), ("budget_usd", -1), ("limit", 0),
        ("lane", "slow"), ("deadline", "next week"), ("deadline", "9" * 30 + "d"), ("unknown", 1),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_refused(quiet: Server, option: str, value: Any) -> None:
    problem(quiet.submit("optional", 1, **{option: value}), 422, "invalid")
    assert quiet.get("/batch/status/optional").status_code == 404


# ---- files and references ------------------------------------------------------------------------


def upload(server: Server, filename: str, content: bytes, **form: Any) -> httpx.Response:
    return server.http.post("/batch/submit-file", files={"file": (filename, content)}, data=form)


def test_a_table_of_any_format_can_be_uploaded(quiet: Server, tmp_path: Path) -> None:
    frame = pd.DataFrame(articles("frame", 1_200))
    parquet = tmp_path / "t.parquet"
    frame.to_parquet(parquet)
    contents = {
        "a.csv": frame.to_csv(index=False).encode(),
        "a.json": frame.to_json(orient="records").encode(),
        "a.jsonl": frame.to_json(orient="records", lines=True).encode(),
        "a.parquet": parquet.read_bytes(),
    }
    for filename, content in contents.items():
        name = f"up-{filename.rpartition('.')[2]}"
        reply = upload(quiet, filename, content, batch_name=name)
        assert reply.status_code == 202, reply.text
        assert reply.json()["item_count"] == 1_200
        assert batch_of(quiet, name).row_count == 1_200


def test_an_uploaded_list_of_urls_is_one(quiet: Server) -> None:
    reply = upload(quiet, "urls.txt", b"# ours\nhttps://example.com/1\n", batch_name="listed")
    assert reply.status_code == 202
    assert quiet.status("listed")["state"] == "JOB_STATE_PENDING"
    problem(upload(quiet, "urls.txt", b"# none\n"), 422, "invalid")


def test_the_name_of_an_uploaded_file_is_no_path(quiet: Server) -> None:
    content = b"id,contents\n1,Some news.\n"
    reply = upload(quiet, "../../../outside/evil name.csv", content)
    assert reply.status_code == 202
    assert reply.json()["job_id"].startswith("evil-name-")
    assert not list(quiet.data.parent.rglob("evil name*"))


def test_an_uploaded_file_that_is_no_table_is_refused_and_leaves_nothing(quiet: Server) -> None:
    problem(upload(quiet, "page.exe", b"x"), 422, "invalid")
    found = problem(upload(quiet, "broken.csv", b"id,other\n1,2\n"), 422, "invalid")
    assert "broken.csv" in found["detail"] or "contents" in found["detail"]
    assert str(quiet.data) not in json.dumps(found)
    assert not list((quiet.data / "uploads").rglob("broken*"))


def test_a_reference_stays_inside_the_allowed_folders(quiet: Server, tmp_path: Path) -> None:
    inbox = quiet.data / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / "nov.csv").write_text("id,contents\n1,Some news.\n2,Other news.\n")
    (quiet.data / "secret.csv").write_text("id,contents\n1,secret\n")
    (inbox / "link.csv").symlink_to(quiet.data / "secret.csv")
    (inbox / "folder").symlink_to(quiet.data)

    def refer(path: str) -> httpx.Response:
        return quiet.http.post("/batch/submit-reference", json={"path": path})

    assert refer("nov.csv").json()["item_count"] == 2
    assert refer(str(inbox / "nov.csv")).status_code == 202
    for path in (
        "../secret.csv", "link.csv", "folder/secret.csv", "/etc/passwd", "../../nothing.csv",
        str(quiet.data / "secret.csv"), "nov.csv/../../secret.csv", "nul\0.csv", "~/x.csv/../../..",
    ):  # fmt: skip
        found = problem(refer(path), 403, "forbidden")
        assert "secret" not in found["detail"]
    problem(refer("missing.csv"), 422, "invalid")
    problem(refer("."), 422, "invalid")


# ---- any workload --------------------------------------------------------------------------------


def test_any_workload_can_be_run(quiet: Server) -> None:
    rows = [{"Topic": "Indexes", "Description": "What they cost."}]
    body = {"workload": "roadmaps", "rows": rows, "batch_name": "topics", "limit": 5}
    reply = quiet.http.post("/runs", json=body)
    assert reply.status_code == 202, reply.text
    answer = reply.json()
    assert batch_of(quiet, "topics").workload == "roadmaps"
    run = quiet.get(answer["links"]["run"]).json()
    assert (run["job_id"], run["state"]) == ("topics", "waiting")

    again = quiet.http.post("/runs", json={"workload": "roadmaps", "batch": "topics"})
    assert again.json()["run_id"] == answer["run_id"]
    wrong = quiet.http.post("/runs", json={"workload": "news", "batch": "topics"})
    assert "roadmaps" in problem(wrong, 422, "invalid")["detail"]
    unknown = quiet.http.post("/runs", json={"workload": "news", "batch": "nothing"})
    problem(unknown, 404, "not_found")
    for refused in ({"workload": "news"}, {"workload": "nobody", "rows": rows}):
        problem(quiet.http.post("/runs", json=refused), 422, "invalid")


def test_a_table_is_read_by_its_workloads_own_options(quiet: Server) -> None:
    rows = [
        {"topic_title": f"Ports {name}", "category_folder": folder}
        for name, folder in (("one", "001_cybersecurity"), ("two", "002_network"))
    ]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    reading = {"category": "002_network"}
    body = {"workload": "flashcards", "rows": rows, "batch_name": "net", "reading": reading}
    reply = quiet.http.post("/runs", json=body)
    assert reply.status_code == 202, reply.text
    assert reply.json()["item_count"] == batch_of(quiet, "net").row_count == 1
    form = {"workload": "flashcards", "reading": json.dumps(reading), "batch_name": "net-file"}
    assert upload(quiet, "t.jsonl", content, **form).json()["item_count"] == 1

    wrong = quiet.http.post("/runs", json={**body, "workload": "news", "batch_name": "wrong"})
    assert "category" in problem(wrong, 422, "invalid")["detail"]
    problem(upload(quiet, "t.jsonl", content, **{**form, "reading": "[1]"}), 422, "invalid")


# ---- many, and too much --------------------------------------------------------------------------


def test_fifty_clients_at_once_lose_nothing(quiet: Server) -> None:
    answers: list[tuple[int, str]] = []

    def submit(n: int) -> None:
        # fifty times all certificates of the machine would be most of the test
        with httpx.Client(base_url=quiet.url, timeout=60, verify=False) as client:
            body = {"contents": articles(f"client {n}", 5), "batch_name": f"client-{n}"}
            reply = client.post("/batch/submit-contents", json=body)
            status = client.get(f"/batch/status/client-{n}")
            answers.append((reply.status_code, status.json()["state"]))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [(202, "JOB_STATE_PENDING")] * 50
    with quiet.open_ledger() as ledger, ledger.read() as connection:
        every = {batch.batch_id: batch for batch in list_batches(connection, "simulated")}
    assert {f"client-{n}" for n in range(50)} <= every.keys()
    assert {every[f"client-{n}"].row_count for n in range(50)} == {5}
    names = []
    page = "/batch/jobs?limit=20"
    while page:
        document = quiet.get(page).json()
        names += [job["job_id"] for job in document["jobs"]]
        page = document["next"]
    assert len(names) == len(set(names)) == document["total"]
    assert {f"client-{n}" for n in range(50)} <= set(names)


@pytest.fixture(scope="module")
def small(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server with room for three, and for small requests only."""
    with make_place().serve(
        BATCH_PIPELINE_API_RUNS="0",
        BATCH_PIPELINE_API_MAX_WAITING="3",
        BATCH_PIPELINE_API_MAX_BODY_MB="1",
        BATCH_PIPELINE_API_MAX_UPLOAD_MB="2",
    ) as server:
        yield server


def test_a_full_queue_says_when_to_come_again(small: Server) -> None:
    for n in range(3):
        assert small.submit(f"queued-{n}").status_code == 202
    reply = small.submit("too-many")
    assert "3" in problem(reply, 429, "busy")["detail"]
    assert int(reply.headers["retry-after"]) > 0
    assert small.http.post("/batch/cancel/queued-1").status_code == 200
    assert small.submit("too-many").status_code == 202


def test_a_request_beyond_the_limit_is_refused(small: Server) -> None:
    big = [{"contents": "x" * 1_200_000}]
    reply = small.http.post("/batch/submit-contents", json={"contents": big})
    assert "1,048,576" in problem(reply, 413, "too_large")["detail"]
    problem(upload(small, "a.csv", b"x" * 2_200_000), 413, "too_large")


def test_a_request_that_does_not_say_how_long_it_is_is_stopped_too(small: Server) -> None:
    def pieces(head: bytes) -> Iterator[bytes]:
        yield head
        for _ in range(40):
            yield b"x" * 65_536

    def send(path: str, kind: str, head: bytes) -> httpx.Response:
        headers = {"content-type": kind}
        return httpx.post(f"{small.url}{path}", content=pieces(head), headers=headers)

    head = b'{"contents": [{"contents": "'
    problem(send("/batch/submit-contents", "application/json", head), 413, "too_large")
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    form = "multipart/form-data; boundary=b"
    problem(send("/batch/submit-file", form, part), 413, "too_large")
    assert small.get("/health").status_code == 200
