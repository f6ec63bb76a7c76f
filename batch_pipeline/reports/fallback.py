"""Which rows a model further down their route answered, and what was wrong with those before it.

What belongs here: reading that from the ledger, and saying it in a sentence. What does not: the
choice itself (engine/upstream.py), sums by model (build.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import Outcome, attempts, items, runs
from batch_pipeline.providers.base import ErrorKind
from batch_pipeline.providers.registry import find_provider
from batch_pipeline.reports.model import Fallback, FallbackCause
from batch_pipeline.wording import plural

_AUTO = "auto"
_MAX_ERROR_CHARS = 300
_PAGE = 500

_Kind = Literal["key", "account", "model", "refused", "rate_limited", "no_answer", "not_called"]

# What makes a route go on; other errors are about rows, and go with them to the next model.
_OF_THE_MODEL = (
    ErrorKind.BATCH_FATAL.value,
    ErrorKind.RATE_LIMITED.value,
    ErrorKind.TRANSIENT.value,
)

_KEY_WORDS = re.compile(
    r"api[ _-]?key|\bkey\b.*\b(?:not work|invalid)|permission|unauthori[sz]ed", re.IGNORECASE
)
_ACCOUNT_WORDS = re.compile(r"\bno credit\b|credit balance|quota", re.IGNORECASE)
_MODEL_WORDS = re.compile(
    r"\bmodels?\b.*\b(?:not|unknown|exist)|no model|no longer available|does not list",
    re.IGNORECASE,
)
# What a run adds to the provider's words.
_OWN_WORDS = re.compile(r"\s*(?:Nothing more is sent|Rows not done stay).*", re.DOTALL)

_PHRASES: Mapping[_Kind, str] = {
    "key": "refused the key",
    "account": "had no credit or quota left",
    "model": "does not know the model",
    "refused": "refused every call",
    "rate_limited": "was limiting the rate",
    "no_answer": "did not answer as it should",
    "not_called": "could not be called",
}


@dataclass(slots=True)
class _Trouble:
    """Errors of one model in the runs at hand."""

    attempts: int = 0
    first_at: float | None = None
    last_at: float | None = None
    error: str = ""

    def add(self, count: int, first_at: float | None, last_at: float | None, error: str) -> None:
        self.attempts += count
        if first_at is not None and (self.first_at is None or first_at < self.first_at):
            self.first_at = first_at
        if last_at is not None and (self.last_at is None or last_at > self.last_at):
            self.last_at = last_at
        self.error = self.error or error


_Answered = Counter[tuple[str, str, str]]
"""Rows by run, answering model, and the route that the row itself names (empty: none)."""


def find_fallbacks(connection: sa.Connection, realm: str, batch: Batch) -> list[Fallback]:
    """Rows that were not answered by the first model of their route; most rows first.

    A row's route is its own, where the table has such a column and the run let rows have one, else
    that of the run which asked.
    """
    answered = _answered(connection, realm, batch)
    told = _settings_of(connection, {run_id for run_id, _, _ in answered})
    if any(settings.get("route_column") in batch.columns for settings, _ in told.values()):
        column = next(iter(told.values()))[0].get("route_column")
        answered = _answered_by_own_route(connection, realm, batch, str(column))
    rows: Counter[tuple[str, tuple[str, ...]]] = Counter()
    asked_in: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for (run_id, model, own), count in answered.items():
        settings = told[run_id][0] if run_id in told else {}
        before = _models_before(model, own if settings.get("row_routes", True) else "", settings)
        if before:
            rows[model, before] += count
            asked_in.setdefault((model, before), set()).add(run_id)
    if not rows:
        return []
    troubles = _troubles(
        connection, realm, batch, {run for ids in asked_in.values() for run in ids}
    )
    found = []
    for (model, before), count in rows.most_common():
        run_ids = asked_in[model, before]
        causes = [
            _cause(name, [(kinds, trouble) for (run_id, label, kinds), trouble in troubles.items()
                          if run_id in run_ids and bare_label(label) == name],
                   _given_up(name, (told[run_id][1] for run_id in run_ids)))
            for name in before
        ]  # fmt: skip
        found.append(
            Fallback(rows=count, model=model, causes=causes, text=_say(count, model, causes))
        )
    return found


def bare_label(label: str) -> str:
    """`provider/model` without the base URL that may stand behind it."""
    return label.partition("@http")[0]


def named_models(settings: Mapping[str, Any], text: str | None = None) -> list[str]:
    """The models of a run's route, or of a route that a row names; `auto` cannot be told later."""
    if text is None and isinstance(settings.get("models"), list):
        return [bare_label(str(label)) for label in settings["models"]]
    route = str(settings.get("route") or "") if text is None else text
    found = []
    for part in (piece.strip() for piece in route.split(",")):
        if part in ("", _AUTO):
            continue
        name, slash, model = part.partition("/")
        try:
            provider = find_provider(name)
        except UsageError:
            return []
        found.append(f"{provider.name}/{model if slash else provider.default_model}")
    return found


def _models_before(model: str, own: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The models of the route that were to answer before `model` did."""
    route = named_models(settings)
    if own:
        mine = named_models(settings, own)
        route = [*mine, *(name for name in route if name not in mine)]
    answered = bare_label(model)
    return tuple(route[: route.index(answered)]) if answered in route else ()


def _own_attempts(realm: str, batch: Batch) -> sa.ColumnElement[bool]:
    return sa.and_(
        items.c.realm == realm,
        items.c.batch_id == batch.batch_id,
        items.c.outcome == Outcome.SUCCEEDED.value,
        attempts.c.realm == realm,
        attempts.c.batch_id == batch.batch_id,
    )


_JOINED = items.join(attempts, attempts.c.attempt_id == items.c.attempt_id)


def _answered(connection: sa.Connection, realm: str, batch: Batch) -> _Answered:
    statement = (
        sa.select(attempts.c.run_id, items.c.model, sa.func.count())
        .select_from(_JOINED)
        .where(_own_attempts(realm, batch))
        .group_by(attempts.c.run_id, items.c.model)
    )
    return Counter(
        {(run_id, model, ""): int(count) for run_id, model, count in connection.execute(statement)}
    )


def _answered_by_own_route(
    connection: sa.Connection, realm: str, batch: Batch, column: str
) -> _Answered:
    """The same where rows may name a route: only the rows themselves say which."""
    statement = (
        sa.select(attempts.c.run_id, items.c.model, items.c.row)
        .select_from(_JOINED)
        .where(_own_attempts(realm, batch))
    )
    found: _Answered = Counter()
    for run_id, model, row in connection.execution_options(yield_per=2_000).execute(statement):
        own = str(orjson.loads(row).get(column) or "").strip()
        found[run_id, model, "" if own == _AUTO else own] += 1
    return found


def _settings_of(
    connection: sa.Connection, run_ids: Iterable[str]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and summary of each run."""
    found = {}
    wanted = sorted(run_ids)
    for start in range(0, len(wanted), _PAGE):
        statement = sa.select(runs.c.run_id, runs.c.settings, runs.c.summary).where(
            runs.c.run_id.in_(wanted[start : start + _PAGE])
        )
        for run_id, settings, summary in connection.execute(statement):
            found[run_id] = (orjson.loads(settings), orjson.loads(summary))
    return found


_TroubleKey = tuple[str, str, tuple[str, int]]
"""Run, model, and class and HTTP status of the error."""


def _troubles(
    connection: sa.Connection, realm: str, batch: Batch, run_ids: set[str]
) -> dict[_TroubleKey, _Trouble]:
    status = sa.func.coalesce(attempts.c.status, 0)
    statement = (
        sa.select(
            attempts.c.run_id,
            attempts.c.model,
            attempts.c.error_kind,
            status.label("status"),
            sa.func.count(),
            sa.func.min(attempts.c.settled_at),
            sa.func.max(attempts.c.settled_at),
            sa.func.min(sa.func.substr(attempts.c.error, 1, _MAX_ERROR_CHARS)),
        )
        .where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
            attempts.c.error_kind.in_(_OF_THE_MODEL),
        )
        .group_by(attempts.c.run_id, attempts.c.model, attempts.c.error_kind, "status")
    )
    found: dict[_TroubleKey, _Trouble] = {}
    for run_id, model, kind, code, count, first, last, error in connection.execute(statement):
        if run_id in run_ids:
            trouble = found.setdefault((run_id, model, (kind, int(code))), _Trouble())
            trouble.add(int(count), first, last, error or "")
    return found


def _given_up(name: str, summaries: Iterable[Mapping[str, Any]]) -> str:
    """Why a run sent this model nothing more, if it said so."""
    for summary in summaries:
        for label, why in summary.get("given_up", {}).items():
            if bare_label(label) == name:
                return _OWN_WORDS.sub("", str(why))
    return ""


def _cause(
    name: str, troubles: Sequence[tuple[tuple[str, int], _Trouble]], given_up: str
) -> FallbackCause:
    if not troubles:
        kind: _Kind = _fatal_kind(0, given_up) if given_up else "not_called"
        return FallbackCause(
            model=name, kind=kind, attempts=0, first_at=None, last_at=None,
            error=given_up[:_MAX_ERROR_CHARS],
        )  # fmt: skip

    def weight(entry: tuple[tuple[str, int], _Trouble]) -> tuple[bool, int]:
        # One fatal answer ends it all, however many passing failures there were.
        return entry[0][0] == ErrorKind.BATCH_FATAL.value, entry[1].attempts

    (error_kind, status), _ = max(troubles, key=weight)
    whole = _Trouble()
    for (of_kind, _), trouble in troubles:
        if of_kind == error_kind:
            whole.add(trouble.attempts, trouble.first_at, trouble.last_at, trouble.error)
    kinds: dict[str, _Kind] = {
        ErrorKind.RATE_LIMITED.value: "rate_limited",
        ErrorKind.TRANSIENT.value: "no_answer",
    }
    return FallbackCause(
        model=name,
        kind=kinds.get(error_kind) or _fatal_kind(status, whole.error),
        attempts=whole.attempts,
        first_at=_moment(whole.first_at),
        last_at=_moment(whole.last_at),
        error=whole.error,
    )


def _fatal_kind(status: int, error: str) -> _Kind:
    if status in (402, 429) or _ACCOUNT_WORDS.search(error):
        return "account"
    if status == 404 or _MODEL_WORDS.search(error):
        return "model"
    if status in (401, 403) or _KEY_WORDS.search(error):
        return "key"
    return "refused"


def _say(rows: int, model: str, causes: Sequence[FallbackCause]) -> str:
    were = "was" if rows == 1 else "were"
    reasons = " and ".join(_reason(cause) for cause in causes)
    return f"{plural(rows, 'row')} {were} answered by {model} because {reasons}."


def _reason(cause: FallbackCause) -> str:
    phrase = f"{cause.model} {_PHRASES[cause.kind]}"
    if cause.kind == "not_called":
        return f"{phrase} (paused, out of budget or over a limit: the run's log says which)"
    if cause.first_at is None or cause.last_at is None:
        return f"{phrase} before the first call ({cause.error.rstrip('. ')})"
    calls = plural(cause.attempts, "call")
    first = f"{cause.first_at:%Y-%m-%d %H:%M} UTC"
    if cause.kind in ("rate_limited", "no_answer"):
        last = f"{cause.last_at:%H:%M} UTC"
        if cause.last_at.date() != cause.first_at.date():
            last = f"{cause.last_at:%Y-%m-%d} {last}"
        span = f"at {first}" if f"{cause.last_at:%Y-%m-%d %H:%M} UTC" == first else (
            f"from {first} to {last}"
        )  # fmt: skip
        return f"{phrase} {span} ({calls}; {cause.error.rstrip('. ')})"
    return f"{phrase} from {first} on ({calls}; {cause.error.rstrip('. ')})"


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
