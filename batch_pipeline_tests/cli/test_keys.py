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


def _search(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["provider"]: entry for entry in document["search"]}


def test_search_providers_are_asked_where_that_costs_nothing(cli: Cli) -> None:
    done = cli("keys", "check", "--json")
    found = _search(done.document)
    assert {name: entry["status"] for name, entry in found.items()} == {
        "ahrefs": "ok", "exa": "set", "tavily": "ok",
    }  # fmt: skip
    assert {entry["key"] for entry in found.values()} == {f"…{cli.key[-4:]}"}
    assert "credits are left" in found["tavily"]["detail"]
    assert "Not checked" in found["exa"]["detail"], "it is not said to work"
    shown = cli("keys", "check")
    assert "tavily" in shown.out and "Not checked" in shown.out
    assert cli.journal() == []


def test_a_search_key_that_is_spent_ends_with_1_and_a_missing_one_does_not(cli: Cli) -> None:
    key = "tvly-not-a-real-key-7c2e"
    usage = {"key": {"usage": 50, "limit": None},
             "account": {"plan_usage": 1_000, "plan_limit": 1_000, "paygo_usage": 5,
                         "paygo_limit": 5}}  # fmt: skip
    with recording(lambda _: as_json(usage)) as server:
        cli.extra |= {"TAVILY_API_KEY": key, "TAVILY_BASE_URL": server.url}
        done = cli("keys", "check", "--live", "--json")
        assert [(r.method, r.path) for r in server.requests] == [("GET", "/usage")]
    assert done.code == 1, done.err
    found = _search(done.document)
    assert (found["tavily"]["status"], found["tavily"]["key"]) == ("no_credit", "…7c2e")
    assert {found[name]["status"] for name in ("ahrefs", "exa")} == {"missing"}
    assert "EXA_API_KEY is not set" in found["exa"]["detail"]
    assert key not in done.out + done.err

    refusal = {"detail": {"error": f"Unauthorized: {key} is no key of ours."}}
    with recording(lambda _: as_json(refusal, 401)) as server:
        cli.extra["TAVILY_BASE_URL"] = server.url
        done = cli("keys", "check", "--live", "--json")
    assert done.code == 1 and _search(done.document)["tavily"]["status"] == "invalid"
    assert key not in done.out + done.err
