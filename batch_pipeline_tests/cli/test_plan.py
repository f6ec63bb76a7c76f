"""What a run says before its first call, and while it goes on."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from batch_pipeline.cli.output import Output
from batch_pipeline.cli.plain import make_plain
from batch_pipeline.cli.plan import key_status, plan_lines
from batch_pipeline.cli.progress import ProgressView
from batch_pipeline.engine.job import Progress
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline_tests.simulated import Bench, Simulator

_PROGRESS = Progress(
    total=100,
    done=50,
    cached=10,
    failed=2,
    blocked=1,
    requests=40,
    attempts=41,
    searches=7,
    cost_usd=0.5,
    rate_wait_s=3.0,
    in_flight=4,
    note="",
    succeeded=47,
    chunks_done=2,
    chunks=4,
)


def test_before_its_first_call_a_run_says_rows_settings_cost_and_time(
    simulator: Simulator, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    rows = [f"C,S,Topic {n},About it,," for n in range(30)]
    table.write_text("Category,Subcategory,Topic,Description,Resources,route\n" + "\n".join(rows))
    bench = Bench(tmp_path, simulator, chunk_size=10, budget_usd=50.0)
    batch = bench.ingest(table)
    with bench.open() as ledger:
        keys, counts, settings, expected, basis = plan_lines(ledger, bench.config, batch)
    assert keys == "Keys: none needed, everything is simulated."
    assert counts == "Rows: 30 in the table, 30 to ask."
    assert "workers 8; 3 chunks of 10 rows; budget $50.00 for the batch" in settings
    assert expected.startswith("Expected: 2 requests, $0.") and "bound by" in expected
    assert "input by the text alone (±35%)" in basis
    bench.run(batch)
    with bench.open() as ledger:
        again = plan_lines(ledger, bench.config, batch)
        forced = plan_lines(ledger, bench.config, batch, force=True)
    assert again[1] == "Rows: 30 in the table, 30 finished before, 0 to ask."
    assert len(again) == 3, "nothing is expected to be asked"
    assert "30 to ask" in forced[1] and forced[3].startswith("Expected: 2 requests")


def test_key_status_holds_no_character_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "zqxj-wvk-0123456789"
    monkeypatch.setenv("GEMINI_API_KEY", secret)
    config = load_workload_config("roadmaps").with_options({"route": "google"})
    said = key_status(config, {"GEMINI_API_KEY": secret}, simulated=False)
    assert said == "google: set, checked before the first call"


def test_progress_has_every_count_the_cost_and_the_chunks() -> None:
    voice = Output()
    out = io.StringIO()
    voice.__dict__["err"] = Console(file=out, width=300, color_system=None)
    with ProgressView(voice) as view:
        view.update(_PROGRESS)
        view.update(replace(_PROGRESS, done=100, requests=1, searches=1, rate_wait_s=0.0))
    first, last = out.getvalue().strip().splitlines()
    assert first == (
        "50/100 rows · 47 succeeded · 2 failed · 1 blocked · 10 cached · $0.5000 · 40 requests · "
        "7 searches · 2/4 chunks · waited 3.0 s for rate limits"
    )
    assert last.endswith("$0.5000 · 1 request · 1 search · 2/4 chunks")


def test_a_terminal_without_unicode_gets_plain_words() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    make_plain(stream)
    stream.write("Asking … 2 failed · ±35% café سلام\n")
    stream.flush()
    assert raw.getvalue() == b"Asking ... 2 failed - +/-35% cafe ????\n"
    utf = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    make_plain(utf)
    assert utf.errors == "strict"
