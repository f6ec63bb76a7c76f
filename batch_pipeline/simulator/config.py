"""The simulator's settings: limits, latency, faults, marked keys.

They come from a file or `PUT /_sim/config`. What does not live here: what a fault does (`answers`,
`work`, `server`) and which requests it hits (`faults`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Provider = Literal["google", "anthropic", "openai", "openrouter"]
PROVIDERS: tuple[Provider, ...] = ("google", "anthropic", "openai", "openrouter")

WholeReplyFault = Literal[
    "status",
    "hang",
    "refuse",
    "cut",
    "cut_body",
    "html",
    "error_body",
    "malformed_json",
    "truncated",
    "refusal",
    "empty",
]
AnswerFault = Literal[
    "drop_id", "duplicate_id", "rename_id", "corrupt_ids", "extra_id", "invalid_item"
]
KeyMark = Literal["no_credit", "spend_limit", "daily_quota"]

ANSWER_FAULTS: frozenset[str] = frozenset(AnswerFault.__args__)  # type: ignore[attr-defined]
STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 429, 500, 502, 503, 504, 529)


class _Setting(BaseModel):
    # A misspelt setting would silently test nothing.
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Scope(_Setting):
    provider: Provider | None = None
    model: str | None = None
    key_last4: str | None = None

    def covers(self, provider: str, model: str, key: str) -> bool:
        """Say whether this setting applies to a request."""
        return (
            self.provider in (None, provider)
            and self.model in (None, model)
            and self.key_last4 in (None, key[-4:])
        )


class Limit(_Scope):
    """Limits of each provider+key+model that it covers; the first one that covers a request counts.

    A capacity is what a bucket holds when full; without one it is a minute's worth. A day begins at
    midnight, in California for Google and in UTC for the others; `SimulatorConfig.day` moves it.
    """

    requests_per_minute: float = Field(default=4_000, gt=0)
    request_capacity: float | None = Field(default=None, ge=1)
    input_tokens_per_minute: float = Field(default=10_000_000, gt=0)
    input_token_capacity: float | None = Field(default=None, ge=1)
    output_tokens_per_minute: float = Field(default=4_000_000, gt=0)
    output_token_capacity: float | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    concurrent: int = Field(default=2_000, ge=1)


class Latency(_Setting):
    """How long a reply takes: base + per output token + up to jitter (by the request's hash)."""

    base_s: float = Field(default=0.3, ge=0)
    per_output_token_s: float = Field(default=0.0005, ge=0)
    jitter_s: float = Field(default=0.1, ge=0)


class FaultRule(_Scope):
    """One fault and the requests it hits.

    Attributes:
        kind: what goes wrong; see docs/simulator.md.
        share: hit this share of the requests, drawn from seed, body and how often it was seen.
        count: hit at most this many requests; alone it hits the first ones.
        match: text that must occur in the request (for a fault of single items: in the item).
        after: let the first `after - 1` requests in scope pass.
        billed: whether the provider charges for it; None = as the provider does.
        status: of `status` and `html`.
        code: the provider's own error code, for the cases where the status does not tell.
        retry_after_s: what the provider asks the client to wait.
        echo_key: the error quotes the whole key, as careless gateways do.
    """

    kind: WholeReplyFault | AnswerFault
    share: float | None = Field(default=None, ge=0, le=1)
    count: int | None = Field(default=None, ge=0)
    match: str | None = None
    after: int = Field(default=1, ge=1)
    billed: bool | None = None
    status: int | None = None
    code: str | None = None
    retry_after_s: float | None = Field(default=None, ge=0)
    echo_key: bool = False

    @model_validator(mode="after")
    def _check_status(self) -> FaultRule:
        if self.kind == "status" and self.status not in STATUSES:
            raise ValueError(f"a status fault needs status, one of {', '.join(map(str, STATUSES))}")
        if self.kind == "html" and self.status not in (None, 200, 503):
            raise ValueError("an html fault has status 200 or 503")
        if self.echo_key and self.kind not in ("status", "html", "error_body"):
            raise ValueError("only a status, html or error_body fault can quote the key")
        return self


class SimulatorConfig(_Setting):
    """Everything that can be set.

    Attributes:
        key_marks: a key, or its last four characters, and what is wrong with its account.
        headers: whether replies say limits, remainders and how long to wait; without them a client
            has to find its limit out.
        day: the name of the day for `requests_per_day`; another name is another day. None is the
            real one.
    """

    seed: str = "simulator"
    limits: tuple[Limit, ...] = ()
    latency: Latency = Latency()
    faults: tuple[FaultRule, ...] = ()
    key_marks: dict[str, KeyMark] = Field(default_factory=dict)
    headers: bool = True
    day: str | None = None

    def limit_for(self, provider: str, model: str, key: str) -> Limit:
        """Return the limits of one provider+key+model."""
        return next((x for x in self.limits if x.covers(provider, model, key)), _GENEROUS)

    def mark_of(self, key: str) -> KeyMark | None:
        """Return what is wrong with a key's account, if anything."""
        return self.key_marks.get(key) or self.key_marks.get(key[-4:])


_GENEROUS = Limit()
