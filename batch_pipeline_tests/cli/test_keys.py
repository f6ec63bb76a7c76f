"""`keys check`: exit codes, what is shown of a key, and the models of the routes."""

from __future__ import annotations

from typing import Any

from batch_pipeline_tests.cli.conftest import Cli
from batch_pipeline_tests.providers.recorder import as_json, recording

KEY = "AIzaSy-not-a-real-key-9f3a"


def _route(document: dict[str, Any]) -> dict[str, Any]:
    return next(dict(r) for r in document["routes"] if r["workload"] == "roadmaps")


def test_models_of_the_routes_are_marked_as_reachable(cli: Cli) -> None:
    done = cli("keys", "check", "--json")
    assert done.code == 0, done.err
    assert _route(done.document)["reachable"] is True
    shown = {entry["provider"]: entry for entry in done.document["keys"]}
    assert {entry["key"] for entry in shown.values()} == {f"…{cli.key[-4:]}"}
    assert (shown["openrouter"]["credit_usd"], shown["google"]["credit_usd"]) == (100, None)


def test_a_model_of_a_route_that_the_key_does_not_reach_ends_with_1(cli: Cli) -> None:
    listed = as_json({"models": [{"name": "models/gemini-3.1-flash-light"}]})
    with recording(lambda _: listed) as server:
        cli.extra |= {"GOOGLE_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": server.url}
        done = cli("keys", "check", "--live")
        assert done.code == 1, done.err
        assert "not reachable" in done.out and "gemini-3.1-flash-light?" in done.out
        assert {request.method for request in server.requests} == {"GET"}
    assert "…9f3a" in done.out and KEY not in done.out + done.err


def test_without_a_key_nothing_is_known_and_nothing_is_wrong(cli: Cli) -> None:
    done = cli("keys", "check", "--live", "--json")
    assert done.code == 0, done.err
    assert {entry["status"] for entry in done.document["keys"]} == {"missing"}
    route = _route(done.document)
    assert (route["reachable"], route["detail"]) == (None, "no key")


def test_a_key_that_is_not_accepted_ends_with_1(cli: Cli) -> None:
    refusal = {"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT",
                         "details": [{"reason": "API_KEY_INVALID"}]}}  # fmt: skip
    with recording(lambda _: as_json(refusal, 400)) as server:
        cli.extra |= {"GOOGLE_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": server.url}
        done = cli("keys", "check", "--live", "--json")
    assert done.code == 1, done.err
    route = _route(done.document)
    assert (route["reachable"], route["detail"]) == (None, "the key was not accepted")
