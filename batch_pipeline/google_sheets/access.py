"""Which worksheet is meant, and as whom it is opened.

What belongs here: addresses, the service account's file, limits. What does not: calls (client.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.registry import SIMULATED_KEY_VARIABLE, checked_url

SCHEME = "sheets:"
GOOGLE_URL = "https://sheets.googleapis.com"
CREDENTIAL_VARIABLES = ("GOOGLE_SERVICE_ACCOUNT_FILE", "GOOGLE_APPLICATION_CREDENTIALS")
"""Environment variables that may name the service account's key file; the first one set wins."""

REQUESTS_PER_MINUTE = 60.0
"""Of one account, reads and writes each (developers.google.com/workspace/sheets/api/limits)."""

_ID = re.compile(r"[A-Za-z0-9_-]+")
_IN_URL = re.compile(r"/spreadsheets/d/([A-Za-z0-9_-]+)")
_TOKEN_HOSTS = ("accounts.google.com", "oauth2.googleapis.com", "www.googleapis.com")
_NEEDED = ("client_email", "private_key", "token_uri")
# A group may read it (secrets mounted into a container); nobody else may do anything.
_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


class MissingCredentialsError(UsageError):
    """No service account is named in the environment."""


@dataclass(frozen=True, slots=True)
class SheetAddress:
    """A worksheet of a spreadsheet.

    Attributes:
        spreadsheet_id: what stands in its address after `/spreadsheets/d/`.
        worksheet: its title; empty is the first one.
    """

    spreadsheet_id: str
    worksheet: str = ""

    def __str__(self) -> str:
        end = f"/{self.worksheet}" if self.worksheet else ""
        return f"{SCHEME}{self.spreadsheet_id}{end}"


@dataclass(frozen=True, slots=True)
class SheetsAccess:
    """As whom and where the Sheets API is called.

    Attributes:
        key_id: shown in place of the account; what its limits go by.
        base_url: where the API is.
        token: a simulated key; empty where there are credentials.
        account: the service account's key file, as JSON; None in the simulated realm.
        reads_per_minute: of the account, in all processes.
        writes_per_minute: likewise.
        timeout_s: of a call; Google itself gives up after 180 s.
        backoff_s: first wait after a passing failure; doubles each time, with full jitter.
    """

    key_id: str
    base_url: str = GOOGLE_URL
    token: str = field(default="", repr=False)
    account: Mapping[str, Any] | None = field(default=None, repr=False)
    reads_per_minute: float = REQUESTS_PER_MINUTE
    writes_per_minute: float = REQUESTS_PER_MINUTE
    timeout_s: float = 60.0
    backoff_s: float = 1.0


def is_sheet(source: str) -> bool:
    """Whether a source names a worksheet and not a file."""
    return source.strip().lower().startswith(SCHEME)


def parse_address(source: str) -> SheetAddress:
    """Read `sheets:<id>` or `sheets:<id>/<worksheet>`.

    Raises:
        UsageError: it is something else.
    """
    text = source.strip()
    rest = text[len(SCHEME) :].strip() if is_sheet(text) else ""
    if inside := _IN_URL.search(text):
        raise UsageError(
            f"'{text}' is the address of a page.",
            f"Write {SCHEME}{inside[1]}, and /<worksheet> behind it unless it is the first one.",
        )
    spreadsheet_id, _, worksheet = rest.partition("/")
    if not _ID.fullmatch(spreadsheet_id):
        raise UsageError(
            f"'{text}' names no worksheet.",
            f"Write {SCHEME}<id>/<worksheet>; the id stands in the spreadsheet's address after "
            "/spreadsheets/d/.",
        )
    return SheetAddress(spreadsheet_id, worksheet.strip())


def resolve_sheets_access(
    environ: Mapping[str, str], simulator_url: str | None = None
) -> SheetsAccess:
    """As whom and where to call the Sheets API.

    With `simulator_url` the key is a dummy and no file is read: a real account never goes to the
    simulator. Without it, the address is Google's.

    Args:
        environ: the environment variables.
        simulator_url: the simulator's address, or None in the live realm.

    Raises:
        MissingCredentialsError: no service account is named.
        UsageError: its file cannot be used.
    """
    if simulator_url is not None:
        token = environ.get(SIMULATED_KEY_VARIABLE) or "sim-sheets-key"
        base_url = checked_url(simulator_url, "simulator URL") + "/sheets"
        return SheetsAccess(_key_id(token), base_url, token)
    for variable in CREDENTIAL_VARIABLES:
        if name := environ.get(variable, "").strip():
            account = _read_account(Path(name).expanduser(), variable)
            return SheetsAccess(_key_id(account["client_email"]), account=account)
    raise MissingCredentialsError(
        "Google Sheets needs a service account, and none is set.",
        f"Set {CREDENTIAL_VARIABLES[0]} to its JSON key file and share the spreadsheet with it "
        "(docs/sheets.md), or rehearse with --simulate.",
    )


def _key_id(account: str) -> str:
    return f"account-{hashlib.sha256(account.encode()).hexdigest()[:8]}"


def _read_account(path: Path, variable: str) -> dict[str, Any]:
    """The key file. What is in it stands in no message."""
    again = "Make a new key of the service account in Google's console, as JSON."
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"{variable} names {path}, which is no file.", "Name the key file.")
        if os.name == "posix" and mode & _FORBIDDEN_MODE:
            raise UsageError(
                f"{variable}: others may read or change the key file {path} "
                f"(mode {stat.S_IMODE(mode):04o}).",
                f"Take that away: chmod 600 {path}.",
            )
        account = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{variable} names {path}, which cannot be read: {error.strerror}.",
            "Check the path and who may read it.",
        ) from None
    except ValueError:
        raise UsageError(f"{variable}: {path} is not JSON.", again) from None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise UsageError(f"{variable}: {path} is not the key file of a service account.", again)
    for name in _NEEDED:
        if not isinstance(account.get(name), str) or not account[name]:
            raise UsageError(f"{variable}: {path} lacks '{name}'.", again)
    address = urlsplit(account["token_uri"])
    if address.scheme != "https" or address.hostname not in _TOKEN_HOSTS:
        # What is signed with the key would go there.
        raise UsageError(
            f"{variable}: the token_uri in {path} is not Google's.",
            "Use the key file as Google gave it.",
        )
    return account
