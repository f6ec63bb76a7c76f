"""Routes on the command line: fallback, rows' own models, keys looked at before the first call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline_tests.cli.conftest import Cli, topics, write_topics

GOOGLE, OPENAI = "google/gemini-3.1-flash-lite", "openai/gpt-6-luna"
_FAST = ("--rate-limit", "6000", "--json")


@pytest.fixture
def google_refuses(cli: Cli) -> Iterator[Cli]:
    """Google accepts the key and then no call; the other providers work."""
    cli.simulator.configure(faults=[{"kind": "status", "status": 403, "provider": "google"}])
    yield cli
    cli.simulator.configure(faults=[])


def _answered(cli: Cli) -> Counter[str]:
    """Rows answered by provider."""
    rows: Counter[str] = Counter()
    for entry in cli.journal():
        if entry["status"] == 200:
            rows[entry["provider"]] += entry["items"]
    return rows


def _write_routed(path: Path, routes: list[str]) -> Path:
    lines = ["Topic,Description,route"]
    lines += [f"Routed {place},About it.,{route}" for place, route in enumerate(routes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _summed(document: dict[str, Any]) -> dict[str, int]:
    counts = {**document["outcomes"], "pending": document["pending"]}
    return {name: count for name, count in counts.items() if count}


def test_no_fallback_stays_with_the_first_model_and_a_run_with_it_goes_on(
    google_refuses: Cli,
) -> None:
    cli = google_refuses
    table = write_topics(cli.data / "rows.csv", topics(20, "fallback"))
    run = ("run", "roadmaps", "--input", str(table), "--route", f"{GOOGLE}, {OPENAI}", *_FAST)
    stayed = cli(*run, "--no-fallback")
    assert stayed.code == 1, stayed.err
    assert stayed.document["status"] == "stopped"
    assert f"{GOOGLE} refuses every call (HTTP 403" in stayed.document["message"]
    assert _summed(stayed.document) == {"pending": 20}, "what was not tried is not failed"
    assert _answered(cli) == {}

    # A retry would take `--no-fallback` over from that run.
    went_on = cli(*run)
    assert went_on.code == 0, went_on.err
    assert _summed(went_on.document) == {"succeeded": 20}
    assert _answered(cli) == {"openai": 20}


def test_each_row_is_asked_of_the_model_in_its_route_column(cli: Cli) -> None:
    routes = ["", "auto", "openai", OPENAI, "anthropic/claude-haiku-5-5", "gogle/gemini"]
    table = _write_routed(cli.data / "routed.csv", routes)
    ended = cli("run", "roadmaps", "--input", str(table), *_FAST)
    assert ended.code == 1, ended.err
    assert _summed(ended.document) == {"succeeded": 5, "failed": 1}
    assert _answered(cli) == {"google": 2, "openai": 2, "anthropic": 1}
    (row,) = cli("failed", ended.document["batch"], "--json").document["rows"]
    assert row["row"] == 6 and "Did you mean 'google'" in row["error"]


def test_a_rows_own_model_is_left_only_with_fallback(google_refuses: Cli) -> None:
    cli = google_refuses
    table = _write_routed(cli.data / "own.csv", ["", "", "google", "google"])
    run = ("run", "roadmaps", "--input", str(table), "--route", OPENAI, *_FAST)
    kept = cli(*run)
    assert kept.code == 1, kept.err
    assert _summed(kept.document) == {"succeeded": 2, "pending": 2}
    left = cli(*run, "--fallback")
    assert left.code == 0, left.err
    assert _answered(cli) == {"openai": 4}


def test_a_bad_key_is_found_before_anything_is_asked_and_shown_by_its_last_four_characters(
    cli: Cli,
) -> None:
    cli.key = "bad-key-of-a-test-7c2e"
    table = write_topics(cli.data / "rows.csv", topics(20, "keys"))
    ended = cli("run", "roadmaps", "--input", str(table), *_FAST)
    assert ended.code == 1, ended.err
    assert ended.document["status"] == "stopped"
    assert "The key …7c2e of google does not work" in ended.document["message"]
    assert "keys check" in ended.document["message"]
    assert (ended.document["attempts"], ended.document["pending"]) == (0, 20)
    assert cli.key not in ended.out + ended.err
    assert cli.journal() == []
