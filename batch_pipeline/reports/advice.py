"""What a user can do: about rows that did not succeed, and for the next run.

What belongs here: the words, and when they are due. What does not: counting (build.py), showing.
"""

from __future__ import annotations

from collections.abc import Mapping

from batch_pipeline.ledger.batches import INPUT_ERROR
from batch_pipeline.providers.base import ErrorKind
from batch_pipeline.reports.fallback import bare_label
from batch_pipeline.reports.model import BatchReport, FallbackCause, Hint
from batch_pipeline.reports.words import (
    ESTIMATE_NAMES,
    duration,
    figure,
    money,
    percent,
    unanswered_line,
)
from batch_pipeline.wording import plural

ENOUGH_TO_CACHE = 1_024
"""Tokens from which providers keep a repeated beginning of prompts."""

_ENOUGH_CALLS = 20
_MUCH_RATE_LIMITED = 0.05
_MUCH_TIMED_OUT = 0.02
_FAR_OFF_PERCENT = 25

_ADVICE = {
    INPUT_ERROR: "Correct these rows in the input and run the corrected file: rows that are done "
    "are not paid again.",
    ErrorKind.CONTENT.value: "Look at one with `batch-pipeline show {batch}:{number}`. If the text "
    "of the row is at fault, correct it in the input; if many rows are, change the prompt. Then "
    "`batch-pipeline retry {batch}`.",
    ErrorKind.TRANSIENT.value: "The provider did not answer although it was asked several times. "
    "Try again later with `batch-pipeline retry {batch}`.",
    ErrorKind.RATE_LIMITED.value: "Lower `rate_limit` or `workers`, then `batch-pipeline retry "
    "{batch}`.",
    ErrorKind.REFUSED.value: "Read one with `batch-pipeline show {batch}:{number}` and decide: "
    "rephrase the row in the input, or ask again with `batch-pipeline retry {batch} "
    "--include-blocked`.",
    ErrorKind.ITEM_PERMANENT.value: "The provider does not take these rows as they are. Shorten or "
    "correct them in the input and run the corrected file.",
    "preflight": "Look at the target page in a browser, and at what was found: `batch-pipeline "
    "review show {batch} {number}`. Correct the address in the input and run the corrected file; "
    "where the page was only down, `batch-pipeline retry {batch}`.",
    "consensus": "Read what the voters say: `batch-pipeline show {batch}:{number}`. Give the topic "
    "a `context` that answers them in the input, or ask again: `batch-pipeline retry {batch}`, for "
    "blocked topics `batch-pipeline retry {batch} --include-blocked`.",
    "incomplete": "Read one with `batch-pipeline show {batch}:{number}`. `batch-pipeline retry "
    "{batch}` asks anew for what does not hold: finished rows cost nothing.",
    "qc": "Read what quality control says: `batch-pipeline review show {batch} {number}`. Then "
    "`batch-pipeline review override` accepts the row, `review regenerate` has it made anew, "
    "`review skip` leaves it out.",
    "route": "Correct the route that these rows name, and run the corrected file.",
}
_OTHERWISE = "Try again with `batch-pipeline retry {batch}`: finished rows cost nothing."


def next_step(kind: str, batch_id: str, number: int) -> str:
    """What to do about a row that ended with an error of class `kind`.

    Args:
        kind: the row's `error_kind`.
        batch_id: its batch.
        number: its number in the input, for commands that name it.
    """
    return _ADVICE.get(kind, _OTHERWISE).format(batch=batch_id, number=number)


def find_hints(report: BatchReport, repeated_tokens: Mapping[str, int]) -> list[Hint]:
    """What would make the next run better.

    Args:
        report: everything but its hints.
        repeated_tokens: for models that never read from a prompt cache: tokens that each of their
            requests repeats.
    """
    return [
        *_lost(report),
        *_timed_out(report),
        *_fallbacks(report),
        *_rate_limited(report),
        *_left_over(report),
        *_estimate_off(report),
        *_cache_cost(report),
        *(_uncached(model, tokens) for model, tokens in repeated_tokens.items()
          if tokens >= ENOUGH_TO_CACHE),
    ]  # fmt: skip


def _lost(report: BatchReport) -> list[Hint]:
    spent = report.money
    if not spent.lost_calls:
        return []
    jobs = report.provider_jobs
    lines = [lost for lost in jobs.unanswered if lost.lost] if jobs is not None else []
    calls = spent.lost_calls - sum(lost.lines for lost in lines)
    said = [f"{unanswered_line(lost)}." for lost in lines]
    if calls:
        said.append(
            f"The reply of {plural(calls, 'call')} never came, and the provider may have billed "
            f"{'it' if calls == 1 else 'them'}."
        )
    return [
        Hint(
            title=f"{plural(spent.lost_calls, 'call')} lost",
            text=f"{' '.join(said)} Budgets count up to {money(spent.lost_usd)} as spent.",
            next_step=f"`batch-pipeline reconcile {report.batch}` replaces the worst case by what "
            "was billed.",
        )
    ]


def _timed_out(report: BatchReport) -> list[Hint]:
    count = sum(use.attempts_timed_out for use in report.models)
    if count < 3 or count / report.attempts < _MUCH_TIMED_OUT:
        return []
    p95 = report.latency.p95_s
    usual = f", while 95 % of the others took at most {duration(p95)}" if p95 is not None else ""
    return [
        Hint(
            title=f"{plural(count, 'call')} timed out",
            text=f"{percent(count / report.attempts)} of all attempts had no reply in time{usual}.",
            next_step="Where the provider is merely slow, raise `timeout_s` or lower `pack`; a "
            "call that times out may be billed all the same.",
        )
    ]


def _fallbacks(report: BatchReport) -> list[Hint]:
    steps = {
        "key": ("refuses the key", "Correct the key: `batch-pipeline keys check`."),
        "account": (
            "has no credit or quota left",
            "Top the account up, or raise its quota with the provider.",
        ),
        "model": ("is not known to its provider", "Correct the model's name in `route`."),
        "refused": (
            "refuses every call",
            "Look at the account and the route: `batch-pipeline keys check`.",
        ),
    }
    found: dict[str, FallbackCause] = {}
    for fallback in report.fallbacks:
        for cause in fallback.causes:
            if cause.kind in steps:
                found.setdefault(cause.model, cause)
    return [
        Hint(
            title=f"{model} {steps[cause.kind][0]}",
            text=f"Its own words: {cause.error.rstrip('. ')}.",
            next_step=f"{steps[cause.kind][1]} Until then rows go down the route, at other "
            "models' prices.",
        )
        for model, cause in found.items()
    ]


def _rate_limited(report: BatchReport) -> list[Hint]:
    known = {limit.model: limit for limit in report.limits if limit.dimension == "requests"}
    unknown = (
        "Name the key's tier (`tier: tier-1`) or its limit (`rate_limit`, requests per minute) in "
        "defs.yaml: a limit that is known draws hardly any 429."
    )

    def step(model: str) -> str:
        limit = known.get(bare_label(model))
        if limit is None:
            return unknown
        where = "`rate_limit`" if limit.source == "user" else "`tier`"
        return (
            f"The run was set to {limit.amount:,.0f} requests a minute, which is more than the "
            f"provider grants, or its tokens per minute are the bound: lower {where}, or set "
            "`input_tokens_per_min`."
        )

    return [
        Hint(
            title=f"{use.model} refused {percent(use.attempts_rate_limited / use.attempts)} of its "
            "calls for their rate",
            text=f"{plural(use.attempts_rate_limited, 'attempt')} of {use.attempts:,} met a 429.",
            next_step=step(use.model),
        )
        for use in report.models
        if use.attempts >= _ENOUGH_CALLS
        and use.attempts_rate_limited / use.attempts > _MUCH_RATE_LIMITED
    ]


def _left_over_calls(report: BatchReport) -> int:
    """Real-time calls about rows that provider jobs did not answer."""
    jobs = report.provider_jobs
    if jobs is None or report.settings.get("lane") != "batch":
        return 0
    unanswered = jobs.unanswered or any(job.lines_failed for job in jobs.jobs)
    found = {lane.lane: lane.attempts for lane in report.lanes}
    return found.get("realtime", 0) if unanswered else 0


def _left_over(report: BatchReport) -> list[Hint]:
    calls = _left_over_calls(report)
    if not calls:
        return []
    spent = sum(lane.cost_usd for lane in report.lanes if lane.lane == "realtime")
    return [
        Hint(
            title=f"{plural(calls, 'call')} in real time",
            text="Provider jobs did not answer all rows, so these were asked in real time at last, "
            f"at the standard price: {money(spent)}.",
            next_step="See what the jobs said. `lane_tries` is how often jobs are tried; with "
            "`realtime_fallback: false` such rows fail instead, and a retry puts them into jobs.",
        )
    ]


def _estimate_off(report: BatchReport) -> list[Hint]:
    check = report.estimate
    if check is None or report.fallbacks or _left_over_calls(report):
        # Another model or lane answered, at its prices: that is no fault of the estimate.
        return []
    for line in check.lines:
        off = line.deviation_percent
        if line.name == "cost_usd" and off is not None and abs(off) > _FAR_OFF_PERCENT:
            return [
                Hint(
                    title=f"The estimate was off by {off:+.0f} %",
                    text=f"{ESTIMATE_NAMES[line.name]}: {figure(line.name, line.expected)} "
                    f"expected, {figure(line.name, line.actual)} spent.",
                    next_step="`batch-pipeline estimate ... --sample 100` runs some rows first and "
                    "extrapolates from them. Later estimates learn from this run by themselves.",
                )
            ]
    return []


def _cache_cost(report: BatchReport) -> list[Hint]:
    saved = report.prompt_cache.saved_usd
    if saved is None or saved >= 0:
        return []
    return [
        Hint(
            title=f"The prompt cache cost {money(-saved)} more than it saved",
            text="What was written to it was read too seldom before it ran out.",
            next_step="Run more rows at a time: a cached prompt lives for five minutes.",
        )
    ]


def _uncached(model: str, tokens: int) -> Hint:
    return Hint(
        title=f"{model} read nothing from its prompt cache",
        text=f"Each of its requests repeats about {tokens:,} tokens of prompt and schema.",
        next_step="Caches last for minutes and begin at 1,024 tokens, on Claude at a system prompt "
        "of 4,000 characters: send calls closer together (`workers`, `rate_limit`), and keep the "
        "prompt the same from run to run.",
    )
