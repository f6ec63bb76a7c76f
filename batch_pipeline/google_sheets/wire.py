"""gspread's HTTP client, pointed at one address, with every failure classified.

What belongs here: one request, one reply. What does not: limits, waiting, tries (client.py).

Importing this module costs a third of a second: it is done when a sheet is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import requests
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession
from google.oauth2.service_account import Credentials
from gspread.http_client import FileType, HTTPClient, ParamsType
from gspread.utils import absolute_range_name, rowcol_to_a1

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.access import GOOGLE_URL, SheetsAccess
from batch_pipeline.providers.base import ErrorKind, ProviderError
from batch_pipeline.providers.wire import KEY_REMOVED, redact

__all__ = ["SheetsHttp", "absolute_range_name", "open_http", "rowcol_to_a1"]

_SCOPES = ("https://www.googleapis.com/auth/spreadsheets",)
_TRANSIENT = frozenset({408, 409})
_FATAL = frozenset({401, 403, 404})
_CONNECT_S = 10.0


class SheetsHttp(HTTPClient):
    """One HTTP request for each call, none behind our back, and ProviderError for what fails."""

    def __init__(self, session: requests.Session, base_url: str, timeout_s: float) -> None:
        # With a session of its own the parent looks at no credentials.
        super().__init__(None, session)  # type: ignore[arg-type]
        self._base_url = base_url
        self.timeout = (_CONNECT_S, timeout_s)

    def request(
        self,
        method: str,
        endpoint: str,
        params: ParamsType | None = None,
        data: bytes | None = None,
        json: Mapping[str, Any] | None = None,
        files: FileType = None,
        headers: MutableMapping[str, str] | None = None,
    ) -> requests.Response:
        """Send one request.

        Raises:
            ProviderError: for everything but a reply of status 200.
        """
        try:
            reply = self.session.request(
                method=method,
                url=self._base_url + endpoint.removeprefix(GOOGLE_URL),
                params=params,
                data=data,
                json=json,
                files=files,
                headers=headers,
                timeout=self.timeout,
                allow_redirects=False,
            )
        except (requests.RequestException, TransportError) as error:
            # The words of these errors quote addresses, never headers; a class name says enough.
            raise ProviderError(
                ErrorKind.TRANSIENT, f"no reply came ({type(error).__name__})", maybe_billed=True
            ) from None
        except GoogleAuthError as error:
            raise ProviderError(
                ErrorKind.BATCH_FATAL,
                f"Google does not accept the service account ({type(error).__name__})",
                status=401,
            ) from None
        if reply.status_code != 200:
            raise _failure(reply)
        return reply

    def close(self) -> None:
        """Close the connections."""
        self.session.close()


def open_http(access: SheetsAccess) -> SheetsHttp:
    """A client for `access`; nothing is sent yet.

    Raises:
        UsageError: the private key in the account's file cannot be used.
    """
    if access.account is None:
        session = requests.Session()
        # No proxy and no .netrc of this machine: the simulator is on loopback.
        session.trust_env = False
        session.headers["authorization"] = f"Bearer {access.token}"
        return SheetsHttp(session, access.base_url, access.timeout_s)
    try:
        credentials = Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            access.account, scopes=_SCOPES
        )
    except (ValueError, GoogleAuthError):
        raise UsageError(
            "The private key of the service account cannot be read.",
            "Make a new key in Google's console, as JSON.",
        ) from None
    authorized = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return SheetsHttp(authorized, access.base_url, access.timeout_s)


def checked_object(reply: Any) -> Mapping[str, Any]:
    """A reply that came with status 200.

    Raises:
        ProviderError: it is no JSON object, or an error all the same.
    """
    if not isinstance(reply, dict):
        raise ProviderError(ErrorKind.TRANSIENT, "the reply is no JSON object", status=200)
    if "error" in reply:
        raise ProviderError(ErrorKind.TRANSIENT, "the reply holds an error", status=200)
    return reply


def _failure(reply: requests.Response) -> ProviderError:
    status = reply.status_code
    try:
        said = reply.json()
    except ValueError:
        said = None
    if status == 429:
        kind = ErrorKind.RATE_LIMITED
    elif status >= 500 or status in _TRANSIENT:
        kind = ErrorKind.TRANSIENT
    elif status in _FATAL:
        kind = ErrorKind.BATCH_FATAL
    else:
        kind = ErrorKind.ITEM_PERMANENT
    waits = reply.headers.get("retry-after", "")
    # A careless proxy quotes the token in its words.
    _, _, token = str(reply.request.headers.get("authorization", "")).partition(" ")
    words = _words(said).replace(token, KEY_REMOVED) if token else _words(said)
    return ProviderError(
        kind,
        redact(words) or f"status {status}",
        status=status,
        retry_after_s=float(waits) if waits.isdecimal() else None,
    )


def _words(said: Any) -> str:
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
