"""What every codec shares: encoding, reading JSON, redaction, and what each HTTP status means.

What does not belong here: any one provider's field names or codes; those live in its codec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import orjson

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import ErrorKind, LlmRequest, ProviderError, Usage, WireReply

MESSAGE_LIMIT = 500
"""Longest provider message that is kept, in characters."""

KEY_REMOVED = "[key removed]"

# Shapes of the providers' keys, masked forms (sk-ab***yz) included, and what a message calls a key.
# A key of no known shape (openai-compatible) is removed by the transport, which knows it.
_SECRET = re.compile(
    r"(?i:\bbearer\s+)[^\s\"',;<>]+"
    r"|\b(?:sk|tvly|xai|gsk|hf)[-_][A-Za-z0-9_*.…-]{3,}"
    r"|\bAIza[A-Za-z0-9_*.…-]{3,}"
    r"|\bAQ\.[A-Za-z0-9_*.…-]{8,}"
    r"|\bsim-[a-z-]+-key\b"
    r"|(?i:(?:x-goog-api-key|api[ _-]?key(?: provided)?|access[ _-]?token)[\"']?\s*[:=]\s*[\"']?)"
    r"[^\s\"',;&<>]+"
)

_RETRY_HINT = re.compile(r"\b(?:retry|try again) in ((?:\d+h)?(?:\d+m(?!s))?(?:[\d.]+m?s)?)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

# statuses with which a gateway reports that it lost a provider that may still have done the work
_GATEWAY_LOST = frozenset({502, 504, 520, 524})
_TRANSIENT_4XX = frozenset({408, 409, 425, 499})
_FATAL_4XX = frozenset({401, 402, 403, 404, 405, 407, 410})


def encode(body: Mapping[str, Any]) -> bytes:
    """`body` as JSON bytes.

    Raises:
        ProviderError: ITEM_PERMANENT where a text is not valid Unicode (a lone surrogate).
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ProviderError(
            ErrorKind.ITEM_PERMANENT,
            f"The row's text cannot be sent as JSON ({error}). Repair the text's encoding.",
            code="invalid_text",
        ) from None


def schema_bytes(schema: Mapping[str, Any]) -> bytes:
    """An output schema as JSON: the key under which its rewritten form is cached.

    Raises:
        UsageError: the schema holds something that JSON does not have.
    """
    try:
        return orjson.dumps(schema, default=_plain)
    except orjson.JSONEncodeError as error:
        raise UsageError(
            f"The output schema cannot be written as JSON ({error}).",
            "Use plain JSON values in the output model.",
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")


def refuse_web_search(request: LlmRequest, provider: str) -> None:
    """For codecs that cannot ask for a web search.

    Raises:
        UsageError: the request wants one.
    """
    if request.web_search is not None:
        raise UsageError(
            f"Web search is not available with {provider}/{request.model}.",
            "Put models of OpenRouter into the route, such as `openrouter/openai/gpt-6-luna`, or "
            "take a mode of the workload that searches by itself.",
        )


def redact(text: str) -> str:
    """`text` without anything that looks like a key, at most MESSAGE_LIMIT characters long."""
    # cut after redaction: a cut first could leave half a key that no pattern knows
    text = _SECRET.sub(KEY_REMOVED, text[: 4 * MESSAGE_LIMIT])
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def as_dict(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def first_dict(value: Any) -> dict[str, Any]:
    """The first element of a JSON array of objects, else an empty object."""
    return as_dict(value[0]) if isinstance(value, list) and value else {}


def as_text(value: Any) -> str:
    """`value` if it is a JSON string, else the empty string."""
    return value if isinstance(value, str) else ""


def as_count(value: Any) -> int:
    """A token count: a non-negative integer, 0 for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    if isinstance(value, float) and math.isfinite(value):
        return max(0, int(value))
    return 0


def as_code(value: Any) -> str:
    """A machine-readable code, whether the provider gives it as text or as a number."""
    if isinstance(value, str):
        return redact(value)[:80]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def make_usage(
    *,
    input_tokens: int,
    cached: int,
    output_tokens: int,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    thinking: int = 0,
    web_searches: int = 0,
) -> Usage:
    """Usage whose parts never exceed their totals, which pricing relies on."""
    cached = min(cached, input_tokens)
    cache_write = min(cache_write, input_tokens - cached)
    cache_write_1h = min(cache_write_1h, input_tokens - cached - cache_write)
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=cache_write_1h,
        output_tokens=output_tokens,
        thinking_tokens=min(thinking, output_tokens),
        web_searches=web_searches,
    )


def parse_object(reply: WireReply, request_id: str = "") -> dict[str, Any] | None:
    """The JSON object in `reply`; None where an error reply has none.

    Raises:
        ProviderError: TRANSIENT and maybe billed, for a 200 without a JSON object (cut, HTML).
    """
    try:
        data = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        data = None
    if isinstance(data, list):
        # Gemini wraps errors of streaming methods in an array
        data = first_dict(data) or None
    if isinstance(data, dict):
        return data
    if reply.status == 200:
        raise unusable_200(reply, request_id)
    return None


def unusable_200(
    reply: WireReply, request_id: str = "", usage: Usage | None = None
) -> ProviderError:
    """The error for a 200 with a body that is not the provider's: its work may well be billed."""
    return ProviderError(
        ErrorKind.TRANSIENT,
        f"HTTP 200, but the body is {_describe(reply)}.",
        status=200,
        code="unreadable_reply",
        usage=usage,
        maybe_billed=usage is None,
        request_id=request_id,
    )


def _describe(reply: WireReply) -> str:
    body = reply.body.strip()
    if not body:
        return "empty"
    sample = redact(body[:400].decode("utf-8", "replace"))[:120]
    if "html" in reply.headers.get("content-type", "") or body[:1] == b"<":
        return f"HTML, not JSON: {sample}"
    return f"not the provider's JSON ({len(reply.body)} bytes): {sample}"


def kind_of_status(status: int) -> ErrorKind:
    """What a status means where the body says nothing more precise (DESIGN 4).

    400, 412, 413, 422 and unknown 4xx concern this request only; a codec that reads in the body
    that every row would fail (an unsupported parameter, a refused schema) makes it BATCH_FATAL.
    """
    if status == 429:
        return ErrorKind.RATE_LIMITED
    if status in _FATAL_4XX or 300 <= status < 400:
        return ErrorKind.BATCH_FATAL
    if 400 <= status < 500 and status not in _TRANSIENT_4XX:
        return ErrorKind.ITEM_PERMANENT
    return ErrorKind.TRANSIENT


def raise_error(
    reply: WireReply,
    *,
    message: str,
    code: str = "",
    kind: ErrorKind | None = None,
    status: int | None = None,
    retry_after_s: float | None = None,
    usage: Usage | None = None,
    request_id: str = "",
) -> NoReturn:
    """Raise the error that `reply` is.

    Args:
        reply: the reply as received.
        message: the provider's own words; redacted here. Empty: the body is described instead.
        code: the provider's machine-readable code.
        kind: what the codec read in the body; None decides by the status.
        status: the status that counts where it is not the reply's (an error inside a 200).
        retry_after_s: a delay read in the body; a header wins over it.
        usage: tokens that the body says were billed.
        request_id: the provider's id of the exchange.
    """
    effective = reply.status if status is None else status
    if 300 <= effective < 400:
        message = "The server redirects; keys are not sent to another address. Check the base URL."
    foreign = not message
    text = redact(message) or f"HTTP {effective}, the body is {_describe(reply)}."
    header_delay = retry_after(reply.headers)
    raise ProviderError(
        kind or kind_of_status(effective),
        text,
        status=effective,
        code=code,
        retry_after_s=header_delay if header_delay is not None else retry_after_s,
        usage=usage,
        maybe_billed=foreign and effective in _GATEWAY_LOST,
        request_id=request_id,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or date, against `date`)."""
    if (milliseconds := as_number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := as_number(value)) is not None:
        return seconds if value is not None else None
    try:
        # the reply's own date, because a codec has no clock and the two hosts' clocks may differ
        delay = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, delay.total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def as_number(value: str | None) -> float | None:
    """A header's number, not below 0; None for anything else."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def seconds_until(moment: str | None, headers: Mapping[str, str]) -> float | None:
    """Seconds from a reply's own `date` to `moment` (RFC 3339); None where either is missing."""
    try:
        reset = datetime.fromisoformat(moment or "")
        left = reset - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, left.total_seconds())


def duration_s(text: str) -> float | None:
    """A Go-style duration (`14s`, `6m0s`, `12ms`, `0.5s`) in seconds; None for anything else."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    total = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return total if math.isfinite(total) else None


def retry_hint(message: str) -> float | None:
    """The delay that a message names in words ("Please try again in 7m12s"), in seconds."""
    found = _RETRY_HINT.search(message[: 4 * MESSAGE_LIMIT])
    return duration_s(found.group(1).rstrip(".")) if found else None
