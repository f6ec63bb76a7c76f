"""A list of URLs is a table of articles: pages are fetched once, and those that fail say why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from batch_pipeline.workloads.news.workload import NewsWorkload
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.news.installation import NewsBench

STORY = (
    "The council of Varre voted for a new tram line on Monday evening. It will link the harbour "
    "with the hospital and cost about 210 million euros. The first trams are to run in three years."
)


@dataclass
class Site:
    """A web site on this machine."""

    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Pages below /story; everything else is not there."""
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked[self.path] += 1
            there = self.path.startswith("/story")
            page = (
                f"<html><head><title>Tram {self.path}</title></head><body><nav>Home About</nav>"
                f"<article><h1>Tram</h1><p>{STORY}</p><p>{STORY}</p></article></body></html>"
            ).encode()
            self.send_response(200 if there else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page) if there else 0))
            self.end_headers()
            if there:
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(tmp_path))
    monkeypatch.setenv("BATCH_PIPELINE_FETCH_ALLOW", f"127.0.0.1:{found.port}")
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_list_of_urls_runs_like_a_table(
    site: Site, tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text(
        f"# two stories\n{site.url('/story/1')}\n{site.url('/story/2')}  # the second\n\n"
        f"{site.url('/gone')}\nnot a url\n{site.url('/story/1')}\nhttp://127.0.0.2:1/x\n"
    )
    bench = NewsBench(tmp_path, simulator)
    batch = bench.ingest(urls)
    assert {path: count for path, count in site.asked.items() if "story" in path} == {
        "/story/1": 1,
        "/story/2": 1,
    }
    assert any("repeats the URL of line 2" in text for text in batch.warnings)
    # The same list is the same batch, from the cache.
    assert bench.ingest(urls).batch_id == batch.batch_id
    assert site.asked["/story/1"] == 1
    assert bench.run(batch).outcomes == {"succeeded": 2, "failed": 3}
    items = bench.items(batch)
    assert [item.number for item in items] == [2, 3, 5, 6, 8]
    row = NewsWorkload().deliverable_row(items[0].row, None)
    assert row["id"] == row["url"] == site.url("/story/1")
    assert row["page_title"].startswith("Tram")
    assert row["extracted_characters"] == row["total_characters"] >= len(STORY)
    errors = [item.error or "" for item in items if item.outcome.value == "failed"]
    assert "404" in errors[0] and "is no web address" in errors[1] and "127.0.0.2" in errors[2]
