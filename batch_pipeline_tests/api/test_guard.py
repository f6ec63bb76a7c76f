"""Who may ask: token, Host and Origin; and what never leaves the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from batch_pipeline.api.config import TOKEN_VARIABLE, load_api_config
from batch_pipeline.errors import UsageError
from batch_pipeline.settings import Settings
from batch_pipeline_tests.api.conftest import Place, Server, articles

TOKEN = "0123456789abcdef" * 3
PATHS = ("/", "/batch/jobs", "/batch/status/x", "/batch/results/x/x", "/runs/x", "/nothing")


@pytest.fixture(scope="module")
def guarded(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server that asks for a token."""
    with make_place().serve(BATCH_PIPELINE_API_RUNS="0", **{TOKEN_VARIABLE: TOKEN}) as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
)
def test_nothing_is_answered_without_the_token(
    guarded: Server, path: str, given: str | None
) -> None:
    reply = guarded.http.get(path, headers={} if given is None else {"authorization": given})
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in reply.text


def test_nothing_is_written_without_the_token(guarded: Server) -> None:
    body = {"contents": articles("stranger", 2), "batch_name": "stranger"}
    assert guarded.http.post("/batch/submit-contents", json=body).status_code == 401
    assert not list((guarded.data / "uploads").rglob("stranger*"))
    headers = {"authorization": f"Bearer {TOKEN}"}
    reply = guarded.http.post("/batch/submit-contents", json=body, headers=headers)
    assert reply.status_code == 202
    assert guarded.http.get("/batch/jobs", headers=headers).json()["total"] == 1


def test_the_documents_and_the_health_are_open_and_hold_no_token(guarded: Server) -> None:
    for path in ("/health", "/docs", "/docs/start.js", "/openapi.json"):
        reply = guarded.http.get(path)
        assert reply.status_code == 200
        assert TOKEN not in reply.text
    assert TOKEN not in guarded.log.read_text()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403), ("evil.example:8001", 403), ("127.0.0.1.evil.example", 403),
        ("", 403), ("169.254.169.254", 403), ("localhost:9000", 200), ("127.0.0.1", 200),
        ("[::1]:8001", 200),
    ],
)  # fmt: skip
def test_on_loopback_the_host_names_this_machine(quiet: Server, host: str, status: int) -> None:
    assert quiet.http.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"]
)
def test_a_page_of_another_site_cannot_submit(quiet: Server, origin: str) -> None:
    body = {"contents": articles("page", 1), "batch_name": "from-a-page"}
    headers = {"origin": origin}
    reply = quiet.http.post("/batch/submit-contents", json=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
    assert quiet.get("/batch/status/from-a-page").status_code == 404
    ours = quiet.http.get("/health", headers={"origin": quiet.url})
    assert ours.status_code == 200
    assert "access-control-allow-origin" not in ours.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "api.example.com"])
def test_no_other_address_is_served_without_a_token(host: str, tmp_path: Path) -> None:
    settings = Settings(tmp_path, "sqlite://", True)
    with pytest.raises(UsageError, match=TOKEN_VARIABLE):
        load_api_config(settings, host=host, environ={})
    with pytest.raises(UsageError, match="weak"):
        load_api_config(settings, host=host, environ={TOKEN_VARIABLE: "short"})
    assert load_api_config(settings, host=host, environ={TOKEN_VARIABLE: TOKEN}).token == TOKEN


def test_the_token_is_in_no_words_about_the_settings(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "sqlite://", True)
    assert TOKEN not in repr(load_api_config(settings, environ={TOKEN_VARIABLE: TOKEN}))


def test_two_servers_do_not_share_a_folder(quiet: Server, make_place: Callable[[], Place]) -> None:
    place = make_place()
    place.data = quiet.data
    with pytest.raises(AssertionError, match="Another API server"), place.serve():
        pass
    assert httpx.get(f"{quiet.url}/health").status_code == 200
