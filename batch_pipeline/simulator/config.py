"""The simulator's settings: limits, latency, faults, marked keys.

They come from a file or `PUT /_sim/config`. What does not live here: what a fault does (`answers`,
`work`, `server`) and which requests it hits (`faults`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Provider = Literal["google", "anthropic", "openai", "openrouter"]
PROVIDERS: tuple[Provider, ...] = ("google", "anthropic", "openai", "openrouter")
SearchProvider = Literal["ahrefs", "exa", "tavily"]
SEARCH_PROVIDERS: frozenset[str] = frozenset({"ahrefs", "exa", "tavily"})
OtherProvider = Literal["sheets"]

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
    "voter_down",
    "brand_prose",
]
AnswerFault = Literal[
    "drop_id", "duplicate_id", "rename_id", "corrupt_ids", "extra_id", "invalid_item"
]
ArticleFault = Literal[
    "article_short",
    "article_no_sources",
    "article_no_link",
    "article_link_in_heading",
    "article_wrong_target",
    "article_few_terms",
    "article_other_language",
    "article_no_disclaimer",
    "article_link_thrice",
]
CardsFault = Literal["cards_short", "cards_bad"]
VoteFault = Literal["votes_same", "votes_reject", "votes_unsure"]
TopicFault = Literal["objectives_generic", "no_findings"]
BrandFault = Literal["brand_empty"]
JobFault = Literal[
    "batch_create", "batch_fail", "batch_expire", "batch_partial", "upload", "download", "poll"
]
Lane = Literal["realtime", "batch"]
KeyMark = Literal["no_credit", "spend_limit", "daily_quota"]

ARTICLE_FAULTS: frozenset[str] = frozenset(ArticleFault.__args__)  # type: ignore[attr-defined]
# Faults of what is written for items, and the kinds of writing that they hit: `article`, or one
# of `writers`. `web` is a reply with pages that a web search found.
CONTENT_FAULTS: Mapping[str, frozenset[str]] = {
    **{kind: frozenset({"article"}) for kind in ARTICLE_FAULTS},
    "cards_short": frozenset({"cards"}),
    "cards_bad": frozenset({"cards"}),
    "votes_same": frozenset({"vote"}),
    "votes_reject": frozenset({"vote"}),
    "votes_unsure": frozenset({"vote"}),
    "objectives_generic": frozenset({"synthesis"}),
    "no_findings": frozenset({"findings", "web"}),
    "brand_empty": frozenset({"insights"}),
}
# Faults of the whole text of an answer that hit just such writing.
_TEXTS_OF = {"voter_down": frozenset({"vote"}), "brand_prose": frozenset({"brand", "insights"})}
ANSWER_FAULTS: frozenset[str] = frozenset(CONTENT_FAULTS) | frozenset(
    AnswerFault.__args__  # type: ignore[attr-defined]
)
# Faults that change the text of an answer, as those of items do.
TEXT_FAULTS = frozenset({"malformed_json", "truncated", *_TEXTS_OF})
JOB_FAULTS: frozenset[str] = frozenset(JobFault.__args__)  # type: ignore[attr-defined]
# Faults that a call of a search provider can have.
SEARCH_FAULTS = frozenset(
    {"status", "hang", "refuse", "cut", "cut_body", "html", "error_body", "malformed_json",
     "no_findings"}
)  # fmt: skip
# Faults of the connection, which a line of a batch job does not have.
WIRE_FAULTS = frozenset({"hang", "refuse", "cut", "cut_body", "html", "error_body"})
TAVILYS_OWN = (432, 433)
STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 429, 432, 433, 500, 502, 503, 504, 529)


class _Setting(BaseModel):
    # A misspelt setting would silently test nothing.
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Scope(_Setting):
    provider: Provider | SearchProvider | OtherProvider | None = None
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
        voter: hit only votes of this voter.
        after: let the first `after - 1` requests in scope pass.
        billed: whether the provider charges for it; None = as the provider does.
        status: of `status` and `html`.
        code: the provider's own error code, for the cases where the status does not tell.
        retry_after_s: what the provider asks the client to wait.
        echo_key: the error quotes the whole key, as careless gateways do.
        lane: hit only requests in real time, or only lines of batch jobs.
        made: of `batch_create`: the job is made all the same, and only its reply is lost.
        part: of `upload` and `download`: the part of the bytes that passes before the cut; of
            `batch_expire` and `batch_partial`: the part of the lines that is answered.
    """

    kind: (
        WholeReplyFault
        | AnswerFault
        | ArticleFault
        | CardsFault
        | VoteFault
        | TopicFault
        | BrandFault
        | JobFault
    )
    share: float | None = Field(default=None, ge=0, le=1)
    count: int | None = Field(default=None, ge=0)
    match: str | None = None
    voter: str | None = None
    after: int = Field(default=1, ge=1)
    billed: bool | None = None
    status: int | None = None
    code: str | None = None
    retry_after_s: float | None = Field(default=None, ge=0)
    echo_key: bool = False
    lane: Lane | None = None
    made: bool = False
    part: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check_status(self) -> FaultRule:
        if self.kind == "status" and self.status not in STATUSES:
            raise ValueError(f"a status fault needs status, one of {', '.join(map(str, STATUSES))}")
        if self.status in TAVILYS_OWN and self.provider != "tavily":
            raise ValueError(f"status {self.status} is one that only tavily has: name the provider")
        if self.kind in JOB_FAULTS and self.status not in (None, *STATUSES):
            raise ValueError(f"status is one of {', '.join(map(str, STATUSES))}, or absent: a cut")
        if self.kind == "voter_down" and not self.voter:
            raise ValueError("a voter_down fault needs voter, such as clarity")
        if self.made and self.kind != "batch_create":
            raise ValueError("only a batch_create fault can have made the job")
        if self.kind == "html" and self.status not in (None, 200, 503):
            raise ValueError("an html fault has status 200 or 503")
        if self.echo_key and self.kind not in ("status", "html", "error_body"):
            raise ValueError("only a status, html or error_body fault can quote the key")
        return self

    def suits(self, written: Collection[str], voters: Collection[str | None]) -> bool:
        """Say whether it can hit an answer with such writing, about votes of these voters."""
        of = CONTENT_FAULTS.get(self.kind) or _TEXTS_OF.get(self.kind)
        return (of is None or not of.isdisjoint(written)) and self.voter in (None, *voters)


class BatchSetting(_Scope):
    """How batch jobs of each provider+key+model go; the first setting that covers a job counts.

    All times are seconds of the job clock.

    Attributes:
        enqueued_tokens: input tokens of all open jobs together; None = no limit.
        max_jobs: open jobs; None = the provider's own limit (Gemini: 100).
        max_lines: of one job; None = the provider's own limit.
        max_bytes: of one job's input; None = the provider's own limit.
        calls_per_minute: of the endpoints of batches and files, per provider and key (a setting
            with a model does not count here); None = no limit.
        duration_s: from create to the end, before jitter, plus `per_line_s` for each line.
        duration_jitter: share; the duration is drawn from [1 - j, 1 + j] times itself.
        pending_share: part of the duration before the first line is answered.
        expires_after_s: from create; None = 24 h, on Gemini 48 h.
        results_kept_s: None = 29 days from create on Anthropic, 48 h on Gemini, 30 days on OpenAI.
        shuffle: whether results come in another order than the requests.
    """

    enqueued_tokens: int | None = Field(default=None, ge=1)
    max_jobs: int | None = Field(default=None, ge=1)
    max_lines: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    calls_per_minute: float | None = Field(default=None, gt=0)
    duration_s: float = Field(default=1.5, ge=0)
    per_line_s: float = Field(default=0.02, ge=0)
    duration_jitter: float = Field(default=0.2, ge=0, le=1)
    pending_share: float = Field(default=0.2, ge=0, le=1)
    expires_after_s: float | None = Field(default=None, gt=0)
    results_kept_s: float | None = Field(default=None, gt=0)
    shuffle: bool = True


class ClockSetting(_Setting):
    """How the clock of batch jobs and files runs: `speed` seconds in each real one, or not."""

    speed: float = Field(default=1.0, gt=0)
    frozen: bool = False


class SimulatorConfig(_Setting):
    """Everything that can be set.

    Attributes:
        key_marks: a key, or its last four characters, and what is wrong with its account.
        headers: whether replies say limits, remainders and how long to wait; without them a client
            has to find its limit out.
        day: the name of the day for `requests_per_day`; another name is another day. None is the
            real one.
        batches: how batch jobs go.
        clock: of batch jobs and files; see `jobclock`.
        ahrefs_per_minute: calls of each Ahrefs key; its bucket holds a minute's worth.
        exa_per_second: calls of each Exa key; its bucket holds a second's worth.
        tavily_per_minute: calls of each Tavily key; its bucket holds a tenth of that.
        sheets_reads_per_minute: of each key of Google Sheets, in all its spreadsheets.
        sheets_writes_per_minute: likewise; a batch of changes counts as one.
        slips: share of flashcards, and of answers about brands, that are not quite as asked for.
    """

    seed: str = "simulator"
    limits: tuple[Limit, ...] = ()
    latency: Latency = Latency()
    faults: tuple[FaultRule, ...] = ()
    key_marks: dict[str, KeyMark] = Field(default_factory=dict)
    headers: bool = True
    day: str | None = None
    batches: tuple[BatchSetting, ...] = ()
    clock: ClockSetting = ClockSetting()
    ahrefs_per_minute: float = Field(default=60, gt=0)
    exa_per_second: float = Field(default=10, gt=0)
    tavily_per_minute: float = Field(default=100, gt=0)
    sheets_reads_per_minute: float = Field(default=60, gt=0)
    sheets_writes_per_minute: float = Field(default=60, gt=0)
    slips: float = Field(default=0.07, ge=0, le=1)

    @model_validator(mode="after")
    def _check_scopes(self) -> SimulatorConfig:
        if any(setting.provider == "sheets" for setting in (*self.limits, *self.batches)):
            raise ValueError("sheets has limits of its own, sheets_reads_per_minute and _writes_")
        for setting in (*self.limits, *self.batches):
            if setting.provider in SEARCH_PROVIDERS:
                raise ValueError(
                    f"{setting.provider} has one limit of its own: ahrefs_per_minute, "
                    "exa_per_second, tavily_per_minute"
                )
        return self

    def batch_for(self, provider: str, model: str, key: str) -> BatchSetting:
        """Return how jobs of one provider+key+model go."""
        return next((x for x in self.batches if x.covers(provider, model, key)), _QUICK)

    def limit_for(self, provider: str, model: str, key: str) -> Limit:
        """Return the limits of one provider+key+model."""
        return next((x for x in self.limits if x.covers(provider, model, key)), _GENEROUS)

    def mark_of(self, key: str) -> KeyMark | None:
        """Return what is wrong with a key's account, if anything."""
        return self.key_marks.get(key) or self.key_marks.get(key[-4:])


_GENEROUS = Limit()
_QUICK = BatchSetting()
