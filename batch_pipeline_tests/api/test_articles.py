"""Articles over HTTP: jobs in, articles out, and what a person decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline_tests.api.conftest import Place, Server
from batch_pipeline_tests.api.test_submitting import problem
from batch_pipeline_tests.fetch.archive import Archive, shared_archive
from batch_pipeline_tests.simulator.running import INSTANT, Running

ANN = {"reviewer": "Ann", "reason": "The client agrees."}
# One provider for all, whose first tier has room enough for a test.
OPENAI: dict[str, Any] = {"route": "openai", "row_routes": False}
OPTIONS = {"strategy": "single_shot", "use_ahrefs": False, "enable_llm_profiling": False}


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    with shared_archive() as running:
        yield running


@pytest.fixture(scope="module")
def server(make_place: Callable[[], Place], archive: Archive) -> Iterator[Server]:
    """A server that carries submissions out, with the saved pages."""
    with make_place().serve(BATCH_PIPELINE_FETCH_ARCHIVE=archive.url) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(reference_data: Path) -> list[dict[str, str]]:
    header, *lines = (reference_data / "articles" / "jobs_offline_36.csv").read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def results(server: Server, job: str) -> list[dict[str, Any]]:
    reply = server.get(f"/batch/results/{job}/{job}")
    assert reply.status_code == 200, reply.text
    return list(reply.json()["results"])


def decide(server: Server, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = server.http.post(f"/reviews/{path}", json={**ANN, **body})
    assert reply.status_code == status, reply.text
    return dict(reply.json())


def test_jobs_are_written_reviewed_and_delivered(
    server: Server, api_simulator: Running, jobs: list[dict[str, str]]
) -> None:
    heading, sources, risky = jobs[3], jobs[7], {**jobs[11], "anchor": "best"}
    fixed, skipped = {**jobs[15], "anchor": "best"}, {**jobs[19], "anchor": "best"}
    aborted = {**jobs[5], "target": "https://nowhere.invalid/page"}
    faults = [
        {"kind": "article_link_in_heading", "match": heading["target"]},
        {"kind": "article_no_sources", "match": sources["target"]},
    ]
    api_simulator.configure(latency=INSTANT, faults=faults)
    body = {"jobs": [heading, sources, risky, fixed, skipped, aborted]}
    more = {"workload": "articles", "batch_name": "nov", "options": OPTIONS, **OPENAI}
    try:
        taken = server.http.post("/runs", json={**body, **more})
        assert taken.status_code == 202, taken.text
        assert (taken.json()["item_count"], taken.json()["workload"]) == (6, "articles")
        ended = server.ended("nov", 120)
    finally:
        api_simulator.configure(latency=INSTANT, faults=[])
    assert ended["outcomes"] == {"succeeded": 1, "blocked": 4, "failed": 1}, ended

    # The result is the delivered article: repaired, and whole.
    rows = results(server, "nov")
    assert [row["outcome"] for row in rows] == ["succeeded"] + ["blocked"] * 4 + ["failed"]
    link = f"[{heading['anchor']}]({heading['target']})"
    assert link in rows[0]["article"] and rows[0]["article"].startswith("# ")
    assert not any(link in line for line in rows[0]["article"].splitlines() if line[:1] == "#")
    assert (rows[0]["strategy"], rows[0]["model"]) == ("single_shot", "openai/gpt-6-luna")
    assert rows[1]["article"] is None and rows[5]["error"] and rows[0]["decision"] is None

    queue = server.get("/reviews", batch="nov", workload="articles").json()
    by_row = {line["row"]: line for line in queue["reviews"]}
    assert by_row.keys() == {2, 3, 4, 5} and queue["total"] == 4
    assert not by_row[2]["needs_writing"] and by_row[3]["needs_writing"]
    case = server.get("/reviews/nov/2").json()
    assert "trust_sources" in {one["category"] for one in case["issues"] if one["blocks"]}
    assert len(case["article"].split()) > 300 and len(case["files"]) == 5
    assert case["summary"]["strategy"] == "single_shot"

    refused = decide(server, "nov/2/override", 422)
    assert "needs a sign-off" in refused["detail"]
    assert decide(server, "nov/2/override", sign_off=True)["outcome"] == "succeeded"
    assert decide(server, "nov/3/override", sign_off=True)["outcome"] == "pending"
    package = job_package(server, 4)
    wrong = decide(server, "nov/5/regenerate", 422, package=package)
    assert "is of job" in wrong["detail"]
    package["input_minimal"]["anchor_text"] = "an answer of its own"
    half = decide(server, "nov/4/regenerate", 422, package=package)
    assert "two link texts" in half["detail"]
    package["anchor_profile"]["proposed_text"] = "an answer of its own"
    assert decide(server, "nov/4/regenerate", package=package)["details"]["edited"]
    assert decide(server, "nov/5/skip")["outcome"] == "skipped"
    assert decide(server, "nov/6/skip")["outcome"] == "skipped"

    before = len(journal(api_simulator))
    again = {"workload": "articles", "batch": "nov", "options": OPTIONS, **OPENAI}
    assert server.http.post("/runs", json=again).status_code == 202
    ended = server.ended("nov", 120)
    assert ended["outcomes"] == {"succeeded": 4, "skipped": 2}
    assert len(journal(api_simulator)) - before == 2, "two articles, and nothing else"
    rows = results(server, "nov")
    assert [row["decision"] for row in rows] == [
        None, "override", "override", "regenerate", "skip", "skip",
    ]  # fmt: skip
    assert f"[an answer of its own]({fixed['target']})" in rows[3]["article"]
    assert rows[1]["article"] == case["article"] and rows[1]["reviewer"] == "Ann"
    assert server.get("/reviews", batch="nov").json()["total"] == 0
    report = server.get("/batches/nov/report").json()
    assert report["outcomes"]["succeeded"] == 4 and report["workload"] == "articles"


def job_package(server: Server, row: int) -> dict[str, Any]:
    """A row's own package, from its files."""
    names = server.get(f"/reviews/nov/{row}").json()["files"]
    (name,) = (name for name in names if name.endswith("_job_package.json"))
    folder = server.data / "outputs" / "simulated" / "articles" / "nov"
    return dict(json.loads((folder / name).read_text("utf-8")))


def journal(simulator: Running) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    while page := simulator.journal(len(records)):
        records += page
    return records


def test_a_table_is_uploaded_with_options(server: Server, jobs: list[dict[str, str]]) -> None:
    header = list(jobs[0])[:6]
    lines = [",".join(header), ",".join(jobs[23][name] for name in header), "not a domain,x,y,,,"]
    form = {
        "workload": "articles", "batch_name": "upload", "row_routes": "false", "route": "openai",
        "options": json.dumps(OPTIONS),
    }  # fmt: skip
    files = {"file": ("jobs.csv", "\n".join(lines) + "\n")}
    taken = server.http.post("/batch/submit-file", data=form, files=files)
    assert taken.status_code == 202, taken.text
    assert server.ended("upload", 120)["outcomes"] == {"succeeded": 1, "failed": 1}
    good, bad = results(server, "upload")
    assert (good["strategy"], good["model"]) == ("single_shot", "openai/gpt-6-luna")
    assert good["article"] and "not a domain" in bad["error"]

    # A file of jobs is taken as it stands, too.
    files = {"file": ("jobs.json", json.dumps({"jobs": [jobs[23]]}))}
    same = server.http.post("/batch/submit-file", data={**form, "batch_name": "json"}, files=files)
    assert same.status_code == 202, same.text
    assert same.json()["item_count"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"options": {"strategi": "x"}}, "strategi: there is no such option"),
        ({"options": {"country": "xx"}}, "'xx' is no ISO 3166 country code"),
        ({"options": {"strategy": ["x"]}}, "options"),
        ({"options": {}, "rows": [{}]}, "exactly one of batch, path, rows and jobs"),
        ({"workload": "roadmaps", "options": {"strategy": "x"}}, "has no options of its own"),
        ({"jobs": [{"publisher": "example.com"}]}, "lacks what every job needs"),
        ({"jobs": []}, "jobs"),
    ],
)
def test_what_cannot_be_used_is_a_problem(quiet: Server, body: dict[str, Any], said: str) -> None:
    job = {"publisher": "example.com", "target": "https://example.org/a", "anchor": "a"}
    given = {"workload": "articles", "jobs": [job], "batch_name": "refused", **body}
    found = problem(quiet.http.post("/runs", json=given), 422, "invalid")
    assert said in json.dumps(found)


@pytest.mark.parametrize("options", ["{", "[]", '{"strategy": {}}', '{"strategi": "x"}'])
def test_options_of_a_form_that_are_none_are_a_problem(quiet: Server, options: str) -> None:
    reply = quiet.http.post(
        "/batch/submit-file",
        data={"workload": "articles", "options": options},
        files={"file": ("jobs.csv", "publisher,target,anchor\na.example,https://b.example/,c\n")},
    )
    assert "option" in problem(reply, 422, "invalid")["detail"]
