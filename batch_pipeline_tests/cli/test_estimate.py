"""`estimate` as a command: routes side by side, a sample that is kept, and one JSON object."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_pipeline.cli.estimate import _spread as spread
from batch_pipeline.ledger.batches import find_batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline_tests.cli.conftest import Cli, topics, write_topics

_CLAUDE = "anthropic/claude-haiku-5-5"


def test_it_asks_nobody_offline_and_writes_nothing(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(30, "offline"))
    ended = cli("estimate", "roadmaps", "--input", str(table), "--offline")
    assert ended.code == 0, ended.err
    assert "SIMULATED realm" in ended.out and "the text alone (±35%)" in ended.out
    assert cli("status", "--json").document["batches"] == []
    assert not cli.journal()


def test_routes_stand_side_by_side_in_one_table(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(30, "routes"))
    words = ("estimate", "roadmaps", "--input", str(table), "--offline")
    two = cli(*words, "--route", "google/gemini-3.8-flash", "--route", _CLAUDE, "--json").document
    assert [one["route"] for one in two["routes"]] == ["google/gemini-3.8-flash", _CLAUDE]
    assert two["route"] == "google/gemini-3.8-flash" and two["requests"] == 2
    compared = cli(*words, "--compare")
    assert compared.code == 0, compared.err
    for provider in ("google/", "anthropic/", "openai/", "openrouter/"):
        assert provider in compared.out


def test_a_model_without_a_price_shows_unknown_and_prices_yaml_gives_it_one(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(5, "price"))
    words = ("estimate", "roadmaps", "--input", str(table), "--offline",
             "--route", "openai/gpt-6.2-astra")  # fmt: skip
    unknown = cli(*words)
    assert unknown.code == 0 and "unknown" in unknown.out and "No price is known" in unknown.out
    (cli.data / "prices.yaml").write_text("openai/gpt-6.2-astra: {input: 1, output: 5}\n")
    assert cli(*words, "--json").document["expected"]["cost_usd"] > 0
    (cli.data / "prices.yaml").write_text("openai/gpt-6.2-astra: {input: 1}\n")
    broken = cli(*words)
    assert broken.code == 64
    assert "prices.yaml, entry openai/gpt-6.2-astra, output: Field required" in broken.err


def test_the_batch_lane_stands_beside_real_time_and_may_be_the_main_one(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(30, "lanes"))
    words = ("estimate", "roadmaps", "--input", str(table), "--offline")
    plain = cli(*words, "--json").document
    chosen = cli(*words, "--lane", "batch", "--json").document
    assert (plain["lane"], chosen["lane"]) == ("realtime", "batch")
    assert plain["lanes"] == chosen["lanes"]
    assert chosen["expected"]["cost_usd"] == pytest.approx(plain["expected"]["cost_usd"] / 2)
    shown = cli(*words, "--lane", "batch", "--compare")
    assert shown.code == 0, shown.err
    assert "within 24 h" in shown.out and "takes the batch lane" in shown.out
    assert "openrouter has no Batch API" in shown.out
    (cli.data / "prices.yaml").write_text("google/gemini-3.1-flash-lite: {input: 1, output: 5}\n")
    unknown = cli(*words, "--lane", "batch")
    assert unknown.code == 0 and "No batch price is known" in unknown.out


def test_a_workload_of_several_steps_has_a_line_for_each(cli: Cli) -> None:
    table = cli.data / "jobs.csv"
    table.write_text(
        "publisher,target,anchor,llm_provider,strategy,use_ahrefs\n"
        "example.com,https://example.org/a,a guide,auto,multi_stage,\n"
        "example.com,https://example.org/b,a page,anthropic,multi_stage,true\n"
        "example.com,https://example.org/c,a shop,auto,single_shot,false\n"
    )
    words = ("estimate", "articles", "--input", str(table), "--offline", "--route", "google")
    shown = cli(*words)
    assert shown.code == 0, shown.err
    assert "Steps by google, real time:" in shown.out
    assert "typical lengths until the first run" in shown.out
    assert "Rows that name their own model are priced by it: anthropic/" in shown.out
    found = cli(*words, "--json").document
    steps = {step["step"]: step for step in found["steps"]}
    assert {name: steps[name]["rows"] for name in ("outline", "draft", "single_shot")} == {
        "outline": 2,
        "draft": 2,
        "single_shot": 1,
    }
    assert found["requests"] == sum(step["requests"] for step in steps.values())
    searches = {one["provider"]: one["expected"] for one in found["searches"]}
    assert searches == {
        "ahrefs": {"calls": 2 * 4, "cost_usd": 0.0},
        "ahrefs-keywords": {"calls": 2, "cost_usd": 0.0},
    }
    # Live without a key nothing is searched.
    assert cli(*words, "--live", "--json").document["searches"] == []
    costs = [step["lanes"][0]["expected"]["cost_usd"] for step in steps.values()]
    assert found["expected"]["cost_usd"] == pytest.approx(sum(costs))
    plain = cli("estimate", "roadmaps", "--input", str(write_topics(cli.data / "t.csv", ["a"])),
                "--offline", "--json").document  # fmt: skip
    assert plain["steps"] == []

    # What wins over the rows in a run does so in its estimate.
    chosen = cli(*words, "--strategy", "single_shot", "--model", "gpt-6-luna", "--option",
                 "enable_llm_profiling=false", "--json").document  # fmt: skip
    assert chosen["route"] == "openai/gpt-6-luna" and chosen["requests"] == 3
    assert [step["step"] for step in chosen["steps"] if step["requests"]] == ["single_shot"]


def test_a_live_estimate_without_a_key_still_answers_and_says_what_it_lacks(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(5, "live"))
    found = cli("estimate", "roadmaps", "--input", str(table), "--live", "--json").document
    assert found["simulated"] is False and found["basis"]["input"] == "the text alone"
    assert "There is no key for google" in found["basis"]["notes"][0]


def test_a_live_sample_is_not_run_without_a_word_from_a_person(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(5, "confirm"))
    refused = cli("estimate", "roadmaps", "--input", str(table), "--live", "--sample", "2")
    assert refused.code == 64
    assert "--sample asks 2 rows now: about $" in refused.err and "--yes" in refused.err
    assert not cli.journal()


@pytest.mark.parametrize(
    ("chunks", "parts", "whole", "starts"),
    [
        (10, 4, False, [2, 4, 6, 8]),
        (200, 9, False, [40, 80, 120, 160]),
        (3, 4, False, [0, 1, 2]),
        (1, 4, False, [0]),
        (10, 1, False, [5]),
        (8, 4, True, [0]),
        (0, 4, False, []),
        (0, 4, True, []),
    ],
)
def test_the_parts_of_a_sample_lie_apart_and_never_overlap(
    chunks: int, parts: int, whole: bool, starts: list[int]
) -> None:
    keys = [f"b.{number:04d}" for number in range(chunks)]
    slices = spread(keys, parts, whole=whole)
    assert [keys.index(one[0]) for one in slices] == starts
    together = [key for one in slices for key in one]
    assert len(together) == len(set(together))


@pytest.fixture
def long_table(cli: Cli) -> Path:
    return write_topics(cli.data / "topics.csv", topics(60, "sampled"))


def test_a_sample_is_kept_not_paid_again_and_makes_the_rest_sure(
    cli: Cli, long_table: Path
) -> None:
    words = ("estimate", "roadmaps", "--input", str(long_table), "--pack", "5")
    sampled = cli(*words, "--rate-limit", "100000", "--sample", "20", "--json")
    assert sampled.code == 0, sampled.err
    found = sampled.document
    paid = cli.journal()
    assert found["sample"]["rows"] == 20 and found["sample"]["requests"] == len(paid)
    assert found["sample"]["cost_usd"] == pytest.approx(sum(one["price_usd"] for one in paid))
    assert (found["done"], found["to_ask"]) == (20, 40)
    assert found["basis"]["input"] == found["basis"]["output"] == "earlier calls"

    run = cli("run", "roadmaps", "--input", str(long_table), "--pack", "5",
              "--rate-limit", "100000", "--json")  # fmt: skip
    assert run.code == 0, run.err
    assert run.document["cache_hits"] == 20
    journal = cli.journal()
    whole = found["with_sample"]["expected"]
    for name in ("input_tokens", "output_tokens"):
        assert whole[name] == pytest.approx(sum(one[name] for one in journal), rel=0.05)
    cost = sum(one["price_usd"] for one in journal)
    assert whole["cost_usd"] == pytest.approx(cost, rel=0.1)

    ledger = Ledger(f"sqlite:///{cli.data / 'ledger.db'}", "simulated")
    with ledger, ledger.read() as connection:
        batch = find_batch(connection, "simulated", found["batch"])
    assert batch is not None and batch.estimate["made"] == "sample"
    assert batch.estimate["expected"] == whole
    assert (batch.estimate["rows"], batch.estimate["to_ask"]) == (60, 60)
