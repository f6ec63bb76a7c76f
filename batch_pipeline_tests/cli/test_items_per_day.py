"""`--items-per-day`: a share of the rows each day, and what is said when it is used up."""

from __future__ import annotations

from batch_pipeline_tests.cli.conftest import Cli, topics, write_topics


def test_a_run_stops_at_the_rows_of_a_day_and_says_when_to_go_on(cli: Cli) -> None:
    table = write_topics(cli.data / "days.csv", topics(9, "a day"))
    run = (
        "run",
        "roadmaps",
        "--input",
        str(table),
        "--pack",
        "2",
        "--rate-limit",
        "6000",
        "--json",
    )

    first = cli(*run, "--items-per-day", "4")
    assert first.code == 3, first.err
    assert first.document["outcomes"]["succeeded"] == 4 and first.document["pending"] == 5
    assert "4 of 4 items of today are done; 5 left, again after 20" in first.err

    batch = first.document["batch"]
    again = cli("retry", batch, "--json")
    assert again.code == 3 and again.document["requests"] == 0
    assert "4 of 4 items of today are done; 5 left" in again.err

    rest = cli(*run, "--items-per-day", "9")
    assert rest.code == 0, rest.err
    assert rest.document["pending"] == 0
    assert sum(record["items"] for record in cli.journal()) == 9
