"""Worksheets of Google Sheets as tables: rows and their numbers, errors, limits, the account."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.access import (
    GOOGLE_URL,
    MissingCredentialsError,
    SheetAddress,
    is_sheet,
    parse_address,
    resolve_sheets_access,
)
from batch_pipeline.google_sheets.client import SheetsError
from batch_pipeline.google_sheets.wire import open_http
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sources.sheets import grid_table, read_cells
from batch_pipeline.sources.table import InputTable, TableSpec
from batch_pipeline_tests.sheets import BOOK, HEADER, Book, fresh_book, open_ledger
from batch_pipeline_tests.simulated import Simulator

NAMED = f"sheets:{BOOK}/INPUT"


@pytest.fixture
def book(simulator: Simulator) -> Book:
    return fresh_book(simulator)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def table(book: Book, ledger: Ledger, source: str = NAMED) -> InputTable:
    return read_cells(source, book.access, ledger).table()


# ---- addresses ----


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("sheets:1AbC-d_2", SheetAddress("1AbC-d_2")),
        ("sheets:1AbC-d_2/", SheetAddress("1AbC-d_2")),
        (" Sheets:1AbC-d_2/My brands / 2026", SheetAddress("1AbC-d_2", "My brands / 2026")),
        ("sheets:x/برندها", SheetAddress("x", "برندها")),
    ],
)
def test_an_address_names_a_spreadsheet_and_a_worksheet(text: str, address: SheetAddress) -> None:
    assert is_sheet(text)
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["sheets:", "sheets:/INPUT", "sheets:a b", "brands.csv", ""])
def test_another_text_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="sheets:<id>/<worksheet>"):
        parse_address(text)


def test_a_pasted_web_address_is_answered_with_the_right_one() -> None:
    with pytest.raises(UsageError, match="Write sheets:1AbC-d_2,"):
        parse_address("sheets:https://docs.google.com/spreadsheets/d/1AbC-d_2/edit#gid=0")


# ---- rows ----


def test_rows_are_texts_and_keep_their_numbers_in_the_sheet(book: Book, ledger: Ledger) -> None:
    book.load(HEADER, ["3M", "https://3m.com"], [], ["", " "], ["007", "", "پاکشو", "Completed"])
    found = table(book, ledger)
    assert list(found.columns) == HEADER
    assert (found.name, found.source) == ("INPUT", NAMED)
    rows = list(found.rows)
    assert [row.number for row in rows] == [2, 5]
    assert rows[0].values == dict(zip(HEADER, ["3M", "https://3m.com", "", "", ""], strict=True))
    assert rows[1].values["Brand Name"] == "007"
    assert rows[1].values["Parent Company"] == "پاکشو"
    assert rows[1].place == "row 5"


def test_a_table_is_read_with_one_look_and_one_read(book: Book, ledger: Ledger) -> None:
    book.load(HEADER, *[[f"brand {n}"] for n in range(300)])
    assert len(list(table(book, ledger).rows)) == 300
    assert [one["method"] for one in book.requests()] == ["spreadsheets.get", "values.get"]


def test_a_column_without_a_name_goes_by_its_place(book: Book, ledger: Ledger) -> None:
    book.load(["نام", "", "سایت"], ["تاژ", "", "https://t.example", "x"])
    found = table(book, ledger)
    assert list(found.columns) == ["نام", "سایت", "column_4"]
    [row] = found.rows
    assert list(row.values.values()) == ["تاژ", "https://t.example", "x"]


def test_the_first_worksheet_is_taken_where_none_is_named(book: Book, ledger: Ledger) -> None:
    book.put({"My 'best' brands": [["a"], ["1"]], "second": [["b"], ["2"]]})
    assert table(book, ledger, f"sheets:{BOOK}").columns == ["a"]
    assert table(book, ledger, f"sheets:{BOOK}/second").columns == ["b"]
    assert table(book, ledger, f"sheets:{BOOK}/My 'best' brands").columns == ["a"]


# ---- what is wrong ----


def test_a_missing_worksheet_is_named_with_those_there(book: Book, ledger: Ledger) -> None:
    book.put({"one": [["a"], ["1"]], "two": []})
    with pytest.raises(UsageError, match=r"no worksheet 'INPUT'\. There are: 'one', 'two'"):
        table(book, ledger)


def test_an_empty_sheet_and_one_without_rows_are_told_apart(book: Book, ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="INPUT is empty"):
        table(book.load(), ledger)
    with pytest.raises(UsageError, match="a header and no rows"):
        table(book.load(HEADER, [], [" "]), ledger)
    with pytest.raises(UsageError, match="required column 'Brand Name' is missing"):
        grid_table([["x"], ["1"]], TableSpec("INPUT", NAMED, required_columns=["Brand Name"]))


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "status", "status": 500},
        {"kind": "html", "status": 200},
        {"kind": "error_body"},
        {"kind": "malformed_json"},
        {"kind": "cut"},
        {"kind": "cut_body"},
    ],
    ids=lambda rule: rule["kind"],
)
def test_a_failed_read_is_an_error_and_never_an_empty_sheet(
    book: Book, ledger: Ledger, rule: dict[str, Any]
) -> None:
    book.load(HEADER, ["Acme"])
    every = {**rule, "provider": "sheets", "match": "values.get"}
    book.configure(faults=[every])
    with pytest.raises(SheetsError, match=r"cannot be read for now: .*5 times") as caught:
        table(book, ledger)
    assert caught.value.passing
    assert len(book.requests("values.get")) == 5
    book.configure(faults=[{**every, "count": 3}])
    assert len(list(table(book, ledger).rows)) == 1


def test_what_only_a_person_can_mend_is_asked_once(book: Book, ledger: Ledger) -> None:
    book.load(HEADER, ["Acme"], closed=True)
    with pytest.raises(UsageError, match=r"does not have permission.*Share the spreadsheet"):
        table(book, ledger)
    with pytest.raises(UsageError, match="no spreadsheet nobody"):
        table(book, ledger, "sheets:nobody")
    access = replace(book.access, token="bad-token")
    with pytest.raises(UsageError, match="invalid authentication"):
        read_cells(NAMED, access, ledger)
    assert len(book.requests()) == 3


def test_a_token_quoted_in_an_error_is_taken_out(book: Book, ledger: Ledger) -> None:
    book.load(HEADER, ["Acme"])
    book.configure(
        faults=[{"kind": "status", "status": 403, "provider": "sheets", "echo_key": True}]
    )
    access = replace(book.access, token="houseless-token-1234")
    with pytest.raises(UsageError, match=r"\[key removed\]") as caught:
        read_cells(NAMED, access, ledger)
    assert "houseless" not in f"{caught.value} {caught.value!r} {access}"


def test_reads_of_two_tables_keep_to_one_limit(book: Book, ledger: Ledger) -> None:
    """Google counts per account, not per spreadsheet or process."""
    book.load(HEADER, ["Acme"])
    access = replace(book.access, reads_per_minute=300.0)
    began = time.monotonic()
    for _ in range(3):
        read_cells(NAMED, access, ledger)
    # six reads, a fifth of a second apart
    assert time.monotonic() - began >= 0.95
    assert all(one["status"] == 200 for one in book.requests())


def test_a_429_is_waited_out(book: Book, ledger: Ledger) -> None:
    book.load(HEADER, ["Acme"])
    book.configure(faults=[{"kind": "status", "status": 429, "provider": "sheets", "count": 4}])
    assert len(list(table(book, ledger).rows)) == 1
    assert [one["status"] for one in book.requests()].count(429) == 4


# ---- the account ----


@pytest.fixture(scope="module")
def account() -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "client_email": "robot@project.example",
        "private_key": pem.decode(),
        "token_uri": "https://oauth2.googleapis.com/token",
    }


def key_file(folder: Path, content: object, mode: int = 0o600) -> Path:
    path = folder / "account.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "variable", ["GOOGLE_SERVICE_ACCOUNT_FILE", "GOOGLE_APPLICATION_CREDENTIALS"]
)
def test_the_account_of_the_environment_goes_to_google_and_is_never_shown(
    account: dict[str, str], tmp_path: Path, variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    access = resolve_sheets_access({variable: str(key_file(tmp_path, account))})
    assert access.base_url == GOOGLE_URL
    open_http(access).close()
    shown = f"{access!r} {access} {caplog.text}"
    assert "PRIVATE KEY" not in shown and account["client_email"] not in shown
    assert access.key_id.startswith("account-")


def test_the_simulator_never_gets_the_account(account: dict[str, str], tmp_path: Path) -> None:
    environ = {"GOOGLE_SERVICE_ACCOUNT_FILE": str(key_file(tmp_path, account))}
    access = resolve_sheets_access(environ, "http://127.0.0.1:1")
    assert (access.account, access.token) == (None, "sim-sheets-key")
    assert access.base_url == "http://127.0.0.1:1/sheets"
    assert not open_http(access).session.trust_env


def test_a_missing_account_is_told_with_what_to_set() -> None:
    with pytest.raises(MissingCredentialsError, match="Set GOOGLE_SERVICE_ACCOUNT_FILE"):
        resolve_sheets_access({})


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize(
    ("mode", "good"), [(0o600, True), (0o440, True), (0o604, False), (0o620, False)]
)
def test_a_key_file_that_others_can_read_is_refused(
    account: dict[str, str], tmp_path: Path, mode: int, good: bool
) -> None:
    environ = {"GOOGLE_SERVICE_ACCOUNT_FILE": str(key_file(tmp_path, account, mode))}
    if good:
        assert resolve_sheets_access(environ).account == account
        return
    with pytest.raises(UsageError, match="chmod 600"):
        resolve_sheets_access(environ)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "authorized_user"}, "not the key file of a service account"),
        ({"private_key": ""}, "lacks 'private_key'"),
        ({"token_uri": "https://thief.example/token"}, "not Google's"),
        ({"token_uri": "http://oauth2.googleapis.com/token"}, "not Google's"),
    ],
)
def test_another_key_file_is_refused_in_words(
    account: dict[str, str], tmp_path: Path, change: dict[str, str], words: str
) -> None:
    path = key_file(tmp_path, {**account, **change})
    with pytest.raises(UsageError, match=words) as caught:
        resolve_sheets_access({"GOOGLE_SERVICE_ACCOUNT_FILE": str(path)})
    assert "PRIVATE" not in str(caught.value)


def test_a_key_file_that_is_none_is_refused_in_words(
    account: dict[str, str], tmp_path: Path
) -> None:
    for path, words in (
        (key_file(tmp_path, "no json"), "is not JSON"),
        (tmp_path / "absent.json", "cannot be read"),
        (tmp_path, "is no file"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve_sheets_access({"GOOGLE_SERVICE_ACCOUNT_FILE": str(path)})
    access = resolve_sheets_access(
        {"GOOGLE_SERVICE_ACCOUNT_FILE": str(key_file(tmp_path, {**account, "private_key": "x"}))}
    )
    with pytest.raises(UsageError, match="private key of the service account") as caught:
        open_http(access)
    assert caught.value.__cause__ is None
