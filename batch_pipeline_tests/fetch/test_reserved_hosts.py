"""Names that are reserved for examples: the simulator has their pages, in the simulated realm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.addresses import AddressRules
from batch_pipeline.fetch.archive import ARCHIVE_VARIABLE, Archive
from batch_pipeline.fetch.async_pages import AsyncPages
from batch_pipeline.fetch.errors import (
    RefusedAddressError,
    StatusError,
    UnreachableError,
)
from batch_pipeline.fetch.extract import EXTRACTOR
from batch_pipeline.fetch.settings import FetchSettings, load_fetch_settings
from batch_pipeline.ledger.pages import Page
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.workloads.articles.batch_report import read_batch_report, write_batch_report
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.fetch.archive import serve_archive
from batch_pipeline_tests.fetch.site import Site, fetch, fetch_all, page, quick, resolves
from batch_pipeline_tests.simulated import Bench, Simulator

NOBODY = resolves()
LAMP = "https://www.lampan.example/guider/valja-laslampa"
SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples" / "articles"


@pytest.fixture
def settings(simulator: Simulator) -> FetchSettings:
    archive = load_fetch_settings({}, simulator=simulator.url).archive
    return quick(AddressRules(), archive=archive)


@pytest.mark.parametrize(
    ("host", "reserved"),
    [
        ("a.example", True),
        ("www.a.EXAMPLE.", True),
        ("a.test", True),
        ("example.com", True),
        ("www.example.org", True),
        ("shop.client.example.net", True),
        ("example", False),
        ("test", False),
        ("example.se", False),
        ("myexample.com", False),
        ("example.com.evil.io", False),
        ("a.invalid", False),
        ("localhost", False),
        ("127.0.0.1", False),
        ("[::1]", False),
    ],
)
def test_only_reserved_names_are_the_simulators(host: str, reserved: bool) -> None:
    found = Archive.of_simulator("http://127.0.0.1:8099")
    assert found.has(httpx.URL(f"https://{host}/")) is reserved


def test_a_page_of_a_reserved_name_is_the_simulators(settings: FetchSettings) -> None:
    got = fetch(LAMP, settings, resolver=NOBODY)
    assert got.status == 200 and got.final_url == LAMP
    assert "<title>Välja läslampa | Lampan</title>" in got.content
    with pytest.raises(StatusError, match="404"):
        fetch("https://www.lampan.example/404/x", settings, resolver=NOBODY)


def test_other_pages_are_fetched_from_the_web_as_ever(settings: FetchSettings) -> None:
    with pytest.raises(UnreachableError):
        fetch("https://lampan.se/", settings, resolver=NOBODY)
    with pytest.raises(RefusedAddressError):
        fetch("https://lampan.se/", settings, resolver=resolves(lampan_se=["127.0.0.1"]))


def test_a_redirect_from_the_web_to_a_reserved_name_and_back_keeps_to_the_rules(
    simulator: Simulator,
) -> None:
    with Site() as site:
        site.redirect("/a", LAMP)
        site.put("/b", page())
        archive = Archive.of_simulator(simulator.url)
        chosen = quick(site.rules, obey_robots=False, archive=archive)
        got = fetch(site.url("/a"), chosen)
        assert got.final_url == LAMP and "Lampan" in got.content
        # The operator's own server is let through; the simulator is, for its pages alone.
        assert "the new bridge" in fetch(site.url("/b"), chosen).content
        with pytest.raises(RefusedAddressError):
            fetch(f"{simulator.url}/_sim/health", chosen)


def test_reserved_names_are_not_looked_up_in_robots_txt_and_nobody_is_waited_for(
    simulator: Simulator,
) -> None:
    clock = ManualClock()
    started = clock.now()
    archive = Archive.of_simulator(simulator.url)
    chosen = quick(AddressRules(), archive=archive, obey_robots=True, host_delay_s=60.0)
    urls = [f"https://lampan.example/guider/{number}-valja" for number in range(6)]
    assert len(fetch_all(urls, chosen, resolver=NOBODY, clock=clock)) == 6
    assert clock.now() == started
    assert simulator.summary()["other_calls"] == {"web pages": 6}


def test_without_a_simulator_reserved_names_are_asked_of_the_web() -> None:
    assert load_fetch_settings({}).archive is None
    with pytest.raises(UnreachableError):
        fetch(LAMP, quick(AddressRules()), resolver=NOBODY)


def test_an_archive_that_the_operator_names_wins_for_all(simulator: Simulator) -> None:
    with serve_archive() as saved:
        saved.override(LAMP, body=page())
        given = load_fetch_settings({ARCHIVE_VARIABLE: saved.url}, simulator=simulator.url)
        got = fetch(LAMP, quick(AddressRules(), archive=given.archive), resolver=NOBODY)
    assert "the new bridge" in got.content and saved.requests == {LAMP: 1}


def test_simulated_pages_are_kept_and_are_apart_from_those_of_an_archive_and_the_web(
    simulator: Simulator, tmp_path: Path
) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "simulated") as ledger, Site() as site:
        site.put("/b", page())
        archive = Archive.of_simulator(simulator.url)
        simulated = quick(site.rules, obey_robots=False, archive=archive)
        first, own = read(ledger, simulated, LAMP, site.url("/b"))
        assert (first.title, first.facts.language) == ("Välja läslampa | Lampan", "sv")
        assert (first.extractor, own.extractor) == (f"{EXTRACTOR}+simulator", EXTRACTOR)
        assert read(ledger, simulated, LAMP, site.url("/b")) == [first, own]
        assert simulator.summary()["other_calls"] == {"web pages": 1}
        assert site.paths == ["/b"]

        with serve_archive() as saved:
            saved.override(LAMP, body=page())
            chosen = quick(AddressRules(), archive=Archive.parse(saved.url))
            assert read(ledger, chosen, LAMP)[0].title == "The bridge"
        assert read(ledger, simulated, "no address")[0].error is not None


def read(ledger: Ledger, chosen: FetchSettings, *urls: str) -> list[Page]:
    """Pages as a new reader gives them."""

    async def run() -> list[Page]:
        async with AsyncPages(ledger, chosen) as pages:
            return [await pages.read(url) for url in urls]

    return asyncio.run(run())


def test_the_samples_run_without_a_network_and_end_as_their_readme_says(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, workload="articles", search_rate_limit=6_000.0)
    batch = bench.ingest(SAMPLES / "jobs.csv")
    assert bench.run(batch).outcomes == {"succeeded": 8, "failed": 1, "blocked": 1}
    items = bench.items(batch)
    aborted, blocked = items[8], items[9]
    assert aborted.error is not None and "404 Not Found" in aborted.error
    assert blocked.error is not None and "billiga lån köp" in blocked.error
    pages = [item.row["target"] for item in items] + [item.row["publisher"] for item in items]
    assert simulator.summary()["other_calls"]["web pages"] == len(set(pages))
    with bench.open() as ledger:
        report = read_batch_report(write_batch_report(ledger, batch, tmp_path / "out", 1e9))
        deliver(ledger, bench.config, batch, tmp_path / "out")
    (loans,) = (tmp_path / "out").glob(f"{report.results[5].job_id}_article.md")
    assert "Finansiella tjänster innebär risker. Sök alltid rådgivning." in loans.read_text("utf-8")
    configs = [result.job_config for result in report.results]
    assert {configs[row].writing_strategy for row in (1, 4, 7)} == {"single_shot"}
    # An empty cell: the batch's default is what it was written by, and a retry leaves it empty.
    assert (configs[6].writing_strategy, configs[6].strategy) == ("multi_stage", None)
    again = bench.ingest(SAMPLES / "jobs.json", "again")
    assert bench.run(again, "again").outcomes == {"succeeded": 3}
