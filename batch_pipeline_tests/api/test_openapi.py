"""The OpenAPI document is whole, its page works without a network, and no request breaks a server.

The requests are schemathesis' own, made from the document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from batch_pipeline_tests.api.conftest import Place, Server
from batch_pipeline_tests.chromium import CHROMIUM, chromium

CASES = 1_200
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(quiet: Server) -> Server:
    """A server with a job that waits."""
    assert quiet.submit("my_batch", 3).status_code == 202
    return quiet


@pytest.fixture(scope="module")
def target(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server of its own for requests of all kinds, with jobs that they can hit."""
    with make_place().serve(
        BATCH_PIPELINE_API_RUNS="0", BATCH_PIPELINE_API_MAX_WAITING="100000"
    ) as running:
        running.submit("my_batch", 3)
        yield running


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    """The OpenAPI document."""
    return dict(server.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_endpoint_says_what_it_is_and_what_it_answers(document: dict[str, Any]) -> None:
    ids = Counter(operation["operationId"] for _, _, operation in operations(document))
    assert set(ids.values()) == {1} and len(ids) >= 12
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        errors = {status for status in operation["responses"] if status[0] in "45"}
        assert {"401", "403", "500", "503"} <= errors, where
        for status in errors:
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"]["$ref"] == "#/components/schemas/Problem", where
            assert content["example"]["status"] == int(status), where
        if path != "/health":
            assert operation["security"] == [{"token": []}], where
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_requests_and_answers_have_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in (
        "UrlSubmission", "ContentsSubmission", "ReferenceSubmission", "RunSubmission", "Submitted",
        "JobStatus", "Results", "Jobs", "RunStatus",
    ):  # fmt: skip
        assert schemas[name]["example"], name


def test_the_examples_are_taken(server: Server, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for path, name in (
        ("/batch/submit-contents", "ContentsSubmission"), ("/runs", "RunSubmission"),
    ):  # fmt: skip
        assert server.http.post(path, json=schemas[name]["example"]).status_code == 202


def test_no_request_makes_the_server_fail(target: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    # Whatever cannot be read of the document is an error here.
    every: list[Any] = [cast(Any, found).ok() for found in schema.get_all_operations()]
    strategies = [operation.as_strategy() for operation in every]
    statuses: Counter[int] = Counter()
    asked: Counter[str] = Counter()
    session = requests.Session()

    for strategy in strategies:

        @seed(20_261_122)
        @settings(
            max_examples=-(-CASES // len(strategies)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: Any) -> None:
            reply = case.call(session=session, timeout=30)
            statuses[reply.status_code] += 1
            asked[case.operation.label] += 1
            case.validate_response(reply, checks=CHECKS)
            if reply.status_code >= 400:
                assert reply.json().keys() >= {"status", "code", "detail"}, reply.text

        ask()

    assert asked.total() >= 1_000, asked
    assert len(asked) == len(every)
    assert 202 in statuses and 404 in statuses and 422 in statuses
    assert target.get("/health").status_code == 200
    assert "Traceback" not in target.log.read_text()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"contents": [{"contents": "\\ud800"}]}',
        b'{"contents": [{"contents": "x", "more": "\\ud800"}]}', b"[" * 100_000,
        b'{"contents": [{"contents": "x", "more": 1e999}]}',
        b'{"contents": [{"contents": "x", "id": 1' + b"0" * 5_000 + b"}]}",
        b'{"contents": [{"contents": "x", "more": 1' + b"0" * 30 + b"}]}",
        b'{"contents": [{"contents": "x", "": {"a": [1, null]}}]}',
        b'{"contents": [{"contents": "x", "item_id": 1, "outcome": {}, "url": []}]}',
        b'{"contents": [{"contents": "\\u0000"}]}',
    ],
)  # fmt: skip
def test_strange_bodies_are_refused_or_taken(target: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = target.http.post("/batch/submit-contents", content=body, headers=headers)
    assert reply.status_code in (202, 400, 409, 422), reply.text


@pytest.mark.parametrize(
    "path",
    [
        "/batch/status/my_batch", "/batch/status/batch_jobs/my_batch",
        "/batch/status/batch_jobs%2Fmy_batch", "/batch/status/my_batch/",
    ],
)  # fmt: skip
def test_job_ids_with_slashes_work(server: Server, path: str) -> None:
    reply = server.get(path)
    assert reply.status_code == 200, reply.text
    assert reply.json()["job_id"] == "my_batch"


def test_results_name_the_job_and_the_batch(server: Server) -> None:
    for job in ("my_batch", "batch_jobs/my_batch", "batch_jobs%2Fmy_batch"):
        reply = server.get(f"/batch/results/{job}/my_batch")
        assert (reply.status_code, reply.json()["code"]) == (400, "not_ready"), job
        page = server.get(f"/batch/results/{job}/my_batch", partial=True, limit=2).json()
        assert [row["outcome"] for row in page["results"]] == ["pending"] * 2
        rest = server.get(page["next"]).json()
        assert [row["item_id"] for row in rest["results"]] == ["my_batch-3"]
        assert (rest["next"], rest["total_count"]) == (None, 3)
    wrong = server.get("/batch/results/my_batch/other")
    assert (wrong.status_code, wrong.json()["code"]) == (404, "not_found")
    assert "'my_batch'" in wrong.json()["detail"] and "'other'" in wrong.json()["detail"]


def test_the_report_of_a_batch_is_its_json(server: Server) -> None:
    report = server.get("/batches/my_batch/report").json()
    assert (report["rows"], report["outcomes"]["pending"], report["simulated"]) == (3, 3, True)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_of_the_documents_loads_nothing_from_elsewhere(
    server: Server, screenshots: Path
) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(f"{server.url}/docs")
        page.get_by_text("/batch/submit-contents").first.wait_for()
        page.screenshot(path=screenshots / "api_docs.png")
        page.locator("#operations-batch-get_status .opblock-summary-control").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_placeholder("job_id").fill("my_batch")
        page.get_by_role("button", name="Execute").click()
        page.locator(".live-responses-table .microlight").first.wait_for()
        assert '"job_id": "my_batch"' in page.locator(".live-responses-table").inner_text()
        page.screenshot(path=screenshots / "api_docs_answer.png")
    assert wrong == []
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
        server.url.removeprefix("http://")
    }
