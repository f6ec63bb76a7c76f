"""The simulated Sheets API as gspread calls it: the captured replies, limits, faults, formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gspread
import httpx
import pytest
import requests
from gspread.exceptions import APIError
from gspread.http_client import HTTPClient

from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.simulator.running import Running, running

ID = "SID"
ROWS = [["id", "company", "out"], ["1", "Acme"], ["2", "Globex", "x"]]


def load(simulator: Running, values: list[list[Any]] = ROWS, name: str = ID, **terms: Any) -> None:
    sheets = {"Sheet1": values}
    reply = simulator.http.put(f"/_sim/sheets/{name}", json={"sheets": sheets, **terms})
    assert reply.status_code == 200, reply.text


def shown(simulator: Running, name: str = ID) -> dict[str, Any]:
    reply = simulator.http.get(f"/_sim/sheets/{name}")
    return dict(reply.json()["sheets"]["Sheet1"])


def client(simulator: Running, key: str = "fake") -> gspread.Client:
    class LocalHttp(HTTPClient):
        def request(self, method: str, endpoint: str, *args: Any, **kwargs: Any) -> Any:
            url = endpoint.replace("https://sheets.googleapis.com", f"{simulator.url}/sheets")
            return super().request(method, url, *args, **kwargs)

    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {key}"
    return gspread.Client(auth=None, session=session, http_client=LocalHttp)  # type: ignore[arg-type]


@pytest.fixture
def book(simulator: Running) -> gspread.Spreadsheet:
    simulator.configure(sheets_reads_per_minute=6_000, sheets_writes_per_minute=6_000)
    load(simulator)
    return client(simulator).open_by_key(ID)


def test_values_are_read_ragged_and_gspread_pads_them(
    simulator: Running, book: gspread.Spreadsheet
) -> None:
    assert book.values_get("'Sheet1'") == {
        "range": "Sheet1!A1:Z1000",
        "majorDimension": "ROWS",
        "values": ROWS,
    }
    assert book.sheet1.get_all_values() == [ROWS[0], ["1", "Acme", ""], ROWS[2]]
    assert book.values_get("'Sheet1'!D1:E9") == {
        "range": "Sheet1!D1:E9",
        "majorDimension": "ROWS",
    }


def test_everything_that_gspread_writes_is_read_again(
    simulator: Running, book: gspread.Spreadsheet
) -> None:
    sheet = book.worksheet("Sheet1")
    sheet.batch_update(
        [{"range": "C2", "values": [["a"]]}, {"range": "C3:D3", "values": [["b", 1]]}],
        value_input_option="RAW",  # type: ignore[arg-type]
    )
    sheet.update([["ID", "Company"]], "A1:B1", value_input_option="RAW")  # type: ignore[arg-type]
    sheet.append_rows([["3", "Init", ""]], value_input_option="RAW")  # type: ignore[arg-type]
    assert shown(simulator)["values"] == [
        ["ID", "Company", "out"],
        ["1", "Acme", "a"],
        ["2", "Globex", "b", 1],
        ["3", "Init"],
    ]
    assert sheet.get_all_values()[2] == ["2", "Globex", "b", "1"]
    found = book.values_batch_get(
        ["Sheet1!A1:B2", "Sheet1!D3"], params={"valueRenderOption": "UNFORMATTED_VALUE"}
    )
    assert [one["values"] for one in found["valueRanges"]] == [
        [["ID", "Company"], ["1", "Acme"]],
        [[1]],
    ]


def test_replies_have_the_fields_of_the_captured_ones(simulator: Running) -> None:
    folder = REFERENCE / "reference" / "captures"
    if not folder.is_dir():
        pytest.skip("the captures (shared/reference beside the checkout) are not here")
    simulator.configure(sheets_reads_per_minute=6_000, sheets_writes_per_minute=6_000)
    load(simulator)
    for path in sorted(folder.glob("sheets.*.json")):
        [capture] = json.loads(path.read_text())
        wanted = capture["response"]
        if wanted["status"] != 200:
            continue
        asked = capture["request"]
        reply = simulator.http.request(
            asked["method"],
            "/sheets" + asked["target"],
            content=None if asked["body"] is None else json.dumps(asked["body"]),
            headers={"authorization": "Bearer fake"},
        )
        assert reply.status_code == 200, (path.name, reply.text)
        assert set(reply.json()) == set(wanted["body"]), path.name


def test_raw_keeps_what_a_person_would_have_typed_as_a_formula(
    simulator: Running, book: gspread.Spreadsheet
) -> None:
    sheet = book.sheet1
    cells = [["=1+1", "007", "TRUE", "'x"]]
    sheet.update(cells, "A5:D5", value_input_option="RAW")  # type: ignore[arg-type]
    assert shown(simulator)["formulas"] == []
    assert shown(simulator)["values"][4] == cells[0]
    sheet.update(cells, "A6:D6", value_input_option="USER_ENTERED")  # type: ignore[arg-type]
    assert shown(simulator)["formulas"] == ["A6"]
    assert shown(simulator)["values"][5] == ["=1+1", 7, True, "x"]
    assert sheet.get("A6:D6") == [["#NAME?", "7", "TRUE", "x"]]
    sheet.update([["plain"]], "A6", value_input_option="RAW")  # type: ignore[arg-type]
    assert shown(simulator)["formulas"] == []


def test_a_write_beyond_the_grid_changes_nothing(
    simulator: Running, book: gspread.Spreadsheet
) -> None:
    load(simulator, rows=10, columns=3)
    sheet = book.sheet1
    with pytest.raises(APIError, match="exceeds grid limits"):
        sheet.batch_update(
            [{"range": "A2", "values": [["changed"]]}, {"range": "D2", "values": [["x"]]}],
            value_input_option="RAW",  # type: ignore[arg-type]
        )
    assert shown(simulator)["values"] == ROWS
    sheet.resize(cols=5)
    sheet.update([["x"]], "D2")
    assert shown(simulator)["columns"] == 5


def test_what_is_wrong_is_said_as_google_says_it(
    simulator: Running, book: gspread.Spreadsheet
) -> None:
    cases = [
        (lambda: client(simulator).open_by_key("nobody"), gspread.SpreadsheetNotFound),
        (lambda: client(simulator, "bad-key").open_by_key(ID), APIError),
        (lambda: book.values_get("'Nowhere'!A1"), APIError),
    ]
    for ask, error in cases:
        with pytest.raises(error):
            ask()  # type: ignore[no-untyped-call]
    load(simulator, name="closed", closed=True)
    load(simulator, name="shown", read_only=True)
    with pytest.raises(PermissionError):
        client(simulator).open_by_key("closed")
    with pytest.raises(APIError, match="permission"):
        client(simulator).open_by_key("shown").sheet1.update([["x"]], "A1")
    long = "x" * 50_001
    with pytest.raises(APIError, match="50000 characters"):
        book.sheet1.update([[long]], "A1")


def test_reads_and_writes_have_a_limit_each_and_each_key_its_own(simulator: Running) -> None:
    simulator.configure(sheets_reads_per_minute=3, sheets_writes_per_minute=2)
    load(simulator)
    path = f"/sheets/v4/spreadsheets/{ID}/values/Sheet1"

    def read(key: str) -> httpx.Response:
        return simulator.http.get(path, headers={"authorization": f"Bearer {key}"})

    def write(key: str) -> httpx.Response:
        return simulator.http.put(
            f"{path}!A1?valueInputOption=RAW",
            json={"values": [["x"]]},
            headers={"authorization": f"Bearer {key}"},
        )

    assert [read("one").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert [write("one").status_code for _ in range(3)] == [200, 200, 429]
    assert read("two").status_code == 200
    error = read("one").json()["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "Read requests per minute per user" in error["message"]
    calls = simulator.summary()["other_calls"]
    assert calls == {
        "sheets read": 6,
        "sheets read 429": 2,
        "sheets write": 3,
        "sheets write 429": 1,
    }
    assert simulator.journal() == []


@pytest.mark.parametrize(
    ("rule", "done"),
    [
        ({"kind": "status", "status": 503}, False),
        ({"kind": "cut"}, True),
        ({"kind": "cut", "billed": False}, False),
        ({"kind": "malformed_json"}, True),
        ({"kind": "html"}, False),
    ],
)
def test_a_fault_hits_before_or_after_the_work(
    simulator: Running, book: gspread.Spreadsheet, rule: dict[str, Any], done: bool
) -> None:
    simulator.configure(
        sheets_writes_per_minute=6_000,
        faults=[{**rule, "provider": "sheets", "model": "write", "count": 1}],
    )
    with pytest.raises((APIError, requests.RequestException)):
        book.sheet1.update([["new"]], "A2")
    assert (shown(simulator)["values"][1][0] == "new") is done
    book.sheet1.update([["new"]], "A2")


def test_spreadsheets_outlast_the_process_and_end_with_a_reset(tmp_path: Path) -> None:
    with running(tmp_path) as simulator:
        load(simulator, [["=a", 1, True]])
        client(simulator).open_by_key(ID).sheet1.update(
            [["=b"]],
            "B1",
            value_input_option="USER_ENTERED",  # type: ignore[arg-type]
        )
        before = shown(simulator)
    with running(tmp_path) as simulator:
        assert shown(simulator) == before
        assert before["formulas"] == ["B1"]
        simulator.http.post("/_sim/reset")
        assert simulator.http.get(f"/_sim/sheets/{ID}").status_code == 404


def test_an_unusable_spreadsheet_is_refused(simulator: Running) -> None:
    for name, body in (("a b", {"sheets": {"x": []}}), (ID, {}), (ID, {"sheets": {}}), (ID, [])):
        assert simulator.http.put(f"/_sim/sheets/{name}", json=body).status_code == 400
    reply = simulator.http.put("/_sim/config", json={"limits": [{"provider": "sheets"}]})
    assert reply.status_code == 400 and "sheets_reads_per_minute" in reply.json()["error"]
