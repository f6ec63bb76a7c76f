"""Rows that wait for a person, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.calls import Owner
from batch_pipeline_tests.api.conftest import Place, Server
from batch_pipeline_tests.cli.conftest import ROOT
from batch_pipeline_tests.workloads.essays import WORKLOAD, blocked_batch, lease

ANN = {"reviewer": "Ann", "reason": "It is fine."}


@pytest.fixture(scope="module")
def server(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server that finds the tests' own workload, and runs nothing."""
    with make_place().serve(BATCH_PIPELINE_API_RUNS="0", PYTHONPATH=str(ROOT)) as running:
        yield running


def essays(server: Server, batch_id: str, *topics: str, **more: Any) -> Batch:
    with server.open_ledger() as ledger:
        return blocked_batch(ledger, topics, batch_id=batch_id, **more)


def decide(server: Server, path: str, **body: Any) -> httpx.Response:
    return server.http.post(f"/reviews/{path}", json={**ANN, **body})


def test_the_queue_comes_page_by_page_and_can_be_narrowed(server: Server) -> None:
    essays(server, "queue", "cats", "money", "dogs")
    first = server.get("/reviews", batch="queue", limit=2).json()
    assert (first["total"], first["simulated"]) == (3, True) and first["oldest"].endswith("Z")
    assert [line["row"] for line in first["reviews"]] == [1, 2]
    money = first["reviews"][1]
    assert (money["name"], money["signoff_required"]) == ("job_queue_1", True)
    assert [one["category"] for one in money["issues"]] == ["length", "style"]
    rest = server.get(first["next"]).json()
    assert [line["row"] for line in rest["reviews"]] == [3] and rest["next"] is None
    assert server.get("/reviews", workload="news").json()["total"] == 0
    assert server.get("/reviews", workload=WORKLOAD).json()["total"] >= 3
    missing = server.get("/reviews", batch="nowhere")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    case = server.get(money["link"]).json()
    assert case["article"].startswith("# money") and case["summary"] == {"topic": "money"}
    assert case["decisions"] == []


@pytest.mark.parametrize(
    ("way", "outcome"),
    [("override", "succeeded"), ("regenerate", "pending"), ("skip", "skipped")],
)
def test_a_decision_is_recorded_and_says_what_comes_next(
    server: Server, way: str, outcome: str
) -> None:
    essays(server, f"by-{way}", "cats", "dogs")
    done = decide(server, f"by-{way}/job_by-{way}_1/{way}")
    assert done.status_code == 200, done.text
    answer = done.json()
    assert (answer["row"], answer["was"], answer["outcome"]) == (2, "blocked", outcome)
    assert (answer["reviewer"], answer["decision"], answer["sequence"]) == ("Ann", way, 1)
    assert f'"batch": "by-{way}"' in answer["next_step"] and "POST /runs" in answer["next_step"]
    case = server.get(f"/reviews/by-{way}/2").json()
    assert case["outcome"] == outcome
    assert [one["reason"] for one in case["decisions"]] == ["It is fine."]
    again = decide(server, f"by-{way}/2/skip")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert f"{way} by Ann" in again.json()["detail"]
    assert server.get("/reviews", batch=f"by-{way}").json()["total"] == 1


def test_of_many_at_once_one_decides_and_the_others_get_409(server: Server) -> None:
    essays(server, "race", "cats")
    with ThreadPoolExecutor(6) as pool:
        replies = list(
            pool.map(lambda at: decide(server, "race/1/skip", reviewer=f"R{at}"), range(6))
        )
    assert sorted(reply.status_code for reply in replies) == [200, 409, 409, 409, 409, 409]
    (winner,) = (reply.json()["reviewer"] for reply in replies if reply.status_code == 200)
    assert all(f"skip by {winner}" in r.json()["detail"] for r in replies if r.status_code == 409)


def test_an_edited_package_is_kept_and_a_wrong_one_names_its_field(server: Server) -> None:
    essays(server, "edited", "cats")
    wrong = decide(server, "edited/1/regenerate", package={"job": "job_edited_0", "words": "x"})
    assert wrong.status_code == 422 and "The plan's words" in wrong.json()["detail"]
    other = decide(server, "edited/1/regenerate", package={"job": "job_other_0", "words": 1})
    assert other.status_code == 422 and "is of job job_other_0" in other.json()["detail"]
    done = decide(server, "edited/1/regenerate", package={"job": "job_edited_0", "words": 900})
    assert done.status_code == 200 and done.json()["details"]["edited"] is True


def test_a_sign_off_is_asked_for(server: Server) -> None:
    essays(server, "vouch", "money")
    refused = decide(server, "vouch/1/override")
    assert refused.status_code == 422 and "needs a sign-off" in refused.json()["detail"]
    assert "Ann, Bo Ek" in refused.json()["next_step"]
    other = decide(server, "vouch/1/override", reviewer="Cy", sign_off=True)
    assert other.status_code == 422 and "may not sign off" in other.json()["detail"]
    assert decide(server, "vouch/1/override", sign_off=True).json()["signed_off"] is True


def test_a_row_that_a_run_holds_is_a_conflict(server: Server) -> None:
    batch = essays(server, "held", "cats")
    with server.open_ledger() as ledger:
        lease(ledger, Owner.here("run-2"), batch, 0)
    busy = decide(server, "held/1/skip")
    assert busy.status_code == 409 and "which run run-2" in busy.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("nowhere/1/skip", ANN, 404),
        ("asked/9/skip", ANN, 404),
        ("asked/1/skip", {"reviewer": "Ann"}, 422),
        ("asked/1/skip", {"reviewer": " ", "reason": "x"}, 422),
        ("asked/1/skip", {**ANN, "package": {}}, 422),
        ("asked/1/approve", ANN, 404),
    ],
)
def test_what_cannot_be_done_is_a_problem(
    server: Server, path: str, body: dict[str, Any], status: int
) -> None:
    with server.open_ledger() as ledger:
        blocked_batch(ledger, ["cats"], batch_id="asked")
    reply = server.http.post(f"/reviews/{path}", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["status"] == status and reply.json()["detail"]


def test_a_decision_asks_for_the_token(make_place: Callable[[], Place]) -> None:
    with make_place().serve(
        BATCH_PIPELINE_API_RUNS="0", BATCH_PIPELINE_API_TOKEN="a-token-of-this-test"
    ) as guarded:
        for reply in (guarded.get("/reviews"), decide(guarded, "any/1/skip")):
            assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
        headers = {"authorization": "Bearer a-token-of-this-test"}
        assert guarded.http.get("/reviews", headers=headers).json()["total"] == 0
