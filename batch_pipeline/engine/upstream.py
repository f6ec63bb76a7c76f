"""The models that a run may call, each with its gate, breaker and price; and which one is next.

What belongs here: what a run knows about each endpoint, and the choice along a route. What does
not: calling (calling.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batch_pipeline.clock import Clock
from batch_pipeline.engine.breaker import Breaker
from batch_pipeline.engine.job import Endpoint, RunSettings, Spending
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.calls import Owner, PauseKey, PauseState
from batch_pipeline.ledger.spend import Account, Budget, Scope
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.limits.adaptive import Change, Concurrency, Pacer
from batch_pipeline.limits.days import day_of, next_day_at
from batch_pipeline.limits.limiter import Gate
from batch_pipeline.pricing.prices import ModelPricer, find_model_pricer
from batch_pipeline.providers.base import Usage

EXPECTED_SHARE_OF_BOUND = 0.6


@dataclass(slots=True)
class Learned:
    """What is known of one step's requests to one model.

    Attributes:
        output_per_item: output tokens of one row, learned from replies.
        least_input: fewest prompt tokens that a reply billed; 0 before the first one.
        fixed_tokens: estimated prompt tokens of a request without any row; None before the first.
    """

    output_per_item: float
    least_input: int = 0
    fixed_tokens: int | None = None

    def take(self, usage: Usage, items: int) -> None:
        """Take note of what a reply to `items` rows used."""
        self.output_per_item += 0.1 * (usage.output_tokens / items - self.output_per_item)
        if usage.input_tokens and (not self.least_input or usage.input_tokens < self.least_input):
            self.least_input = usage.input_tokens


class Upstream:
    """One endpoint of a run.

    Attributes:
        endpoint: what is called.
        gate: where its calls wait for their turn.
        breaker: whether it answers at present.
        dead: why nothing more is sent to it in this run; empty while it may be called.
        quota_until: its daily limit or budget is used up until then (UTC seconds).
        quota_why: how a run ends that cannot wait for that: status and words.
        looked: its key and model were looked at before the first call.
        answered: it has answered at least once.
        concurrency: how many calls may be in flight, where that is adaptive.
        waiting: tasks that wait at the gate.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        clock: Clock,
        owner: Owner,
        settings: RunSettings,
    ) -> None:
        self.endpoint = endpoint
        key = PauseKey(ledger.realm, endpoint.provider, endpoint.label, endpoint.key_id)
        self.gate = Gate(ledger.writer, clock, key, owner.owner_id, endpoint.rates)
        self.breaker = Breaker(settings.breaker)
        self.concurrency = Concurrency(settings.workers) if settings.adaptive else None
        # A rate that somebody gave is kept to; one that nobody knows is found.
        self._pacer = Pacer() if endpoint.rates.requests is None else None
        self.in_flight = 0
        self.waiting: set[asyncio.Task[Any]] = set()
        self.dead = ""
        self.quota_until = 0.0
        self.quota_why = ("daily_limit", "")
        self.looked = not settings.check_keys
        self.answered = False
        self.refused_alone = 0
        self._learned: dict[str, Learned] = {}
        self.pause_s: float | None = None
        self._pricer = find_model_pricer(endpoint.provider, endpoint.model, "realtime")
        self._batch_pricer: ModelPricer | None = None
        self._batch_priced = False
        self._days = ("", "")
        self._days_until = 0.0

    @property
    def label(self) -> str:
        """`provider/model`, as results are stored under."""
        return self.endpoint.label

    def cost_nano(self, usage: Usage, at: float) -> int:
        """What an attempt costs; 0 where no price is known."""
        return 0 if self._pricer is None else self._pricer.cost_nano(usage, at)

    @property
    def batch_pricer(self) -> ModelPricer | None:
        """Prices in the provider's Batch API; None where they are not known."""
        if not self._batch_priced:
            self._batch_priced = True
            endpoint = self.endpoint
            self._batch_pricer = find_model_pricer(endpoint.provider, endpoint.model, "batch")
        return self._batch_pricer

    def of_step(self, step: Step) -> Learned:
        """What is known of a step's requests to this model."""
        learned = self._learned.get(step.name)
        if learned is None:
            expected = EXPECTED_SHARE_OF_BOUND * step.output_tokens_per_item
            learned = self._learned[step.name] = Learned(expected)
        return learned

    def worst_nano(
        self,
        step: Step,
        body_bytes: int,
        user_bytes: int,
        output_bound: int,
        at: float,
        *,
        batch: bool = False,
    ) -> int:
        """What an attempt can cost at most, with the fees of the step's web search.

        No tokenizer makes more tokens of a text than it has bytes. System prompt and schema are the
        same in every request of a step, so together they never take more tokens than the smallest
        prompt that was billed so far.

        Args:
            step: what is asked.
            body_bytes: length of the request's body.
            user_bytes: length of the user message in it.
            output_bound: billable output tokens at most.
            at: when it is sent.
            batch: as a line of a provider job.
        """
        pricer = self.batch_pricer if batch else self._pricer
        if pricer is None:
            return 0
        most = body_bytes
        if least := self.of_step(step).least_input:
            most = min(most, least + user_bytes)
        # no codec asks for the one hour kind of prompt cache
        return pricer.worst_nano(
            most, output_bound, at, web_search=step.web_search, long_cache=False
        )

    def learn(self, step: Step, usage: Usage, items: int) -> None:
        """Take note of what a reply used."""
        self.answered = True
        self.of_step(step).take(usage, items)

    # ---- whether it may be called ----

    @property
    def ready(self) -> bool:
        """Nothing at all stands in the way of a call."""
        return (
            self.looked
            and not self.dead
            and not self.quota_until
            and self.breaker.state == "closed"
            and self.gate.paused_s() <= 0
        )

    @property
    def is_left(self) -> bool:
        """Whether it is not to be called now, so that who waited for it was sent on."""
        return bool(self.dead) or self.breaker.state != "closed"

    def send_on(self) -> None:
        """Whoever waits for this upstream should choose again."""
        for task in self.waiting:
            task.cancel()
        self.waiting.clear()

    # ---- what the server says of its limits ----

    def sending(self, now: float) -> list[Change | None]:
        """A call is being sent."""
        self.in_flight += 1
        changes: list[Change | None] = []
        if self._pacer is not None:
            change = self._pacer.sent(now, self.gate.shared_requests_per_s)
            self._pace(change)
            changes.append(change)
        if self.concurrency is not None:
            self.concurrency.sent(now, self.in_flight)
            changes.append(self.concurrency.follow(now, self.gate.requests_per_s))
        return changes

    def learn_pause(self, pause: PauseState, now: float) -> None:
        """Take note of the pause that an admission told of; another process may have made it."""
        self.gate.learn(pause)
        paused_s = self.gate.paused_s()
        if paused_s and self._pacer is not None:
            self._pacer.paused(now, now + paused_s)

    def served(self, now: float, sent_at: float) -> list[Change | None]:
        """The call was answered."""
        self.in_flight -= 1
        return [] if self.concurrency is None else [self.concurrency.accepted(now, sent_at)]

    def refused(
        self, now: float, sent_at: float, retry_after_s: float | None
    ) -> list[Change | None]:
        """The call met a 429; `pause_s` says how long everybody should pause."""
        self.in_flight -= 1
        self.pause_s = retry_after_s
        changes: list[Change | None] = []
        if self._pacer is not None:
            change = self._pacer.refused(now, sent_at, retry_after_s)
            self.pause_s = self._pacer.pause_s()
            self._pacer.paused(now, now + self.pause_s)
            self._pace(change)
            changes.append(change)
        if self.concurrency is not None:
            changes.append(self.concurrency.refused(now, sent_at))
            changes.append(self.concurrency.follow(now, self.gate.requests_per_s))
        return changes

    def struggled(self, now: float) -> None:
        """The call failed at the server, or never came back."""
        self.in_flight -= 1
        if self.concurrency is not None:
            self.concurrency.failed(now)

    def _pace(self, change: Change | None) -> None:
        if change is not None:
            self.gate.pace(change.after * 60.0)

    def days(self, at: float) -> tuple[str, str]:
        """The day of a workload's budget and the day of this provider's, at `at`."""
        if at >= self._days_until:
            provider = self.endpoint.provider
            self._days = day_of("", at), day_of(provider, at)
            self._days_until = min(next_day_at("", at), next_day_at(provider, at))
        return self._days


def budgets_of(
    spending: Spending, realm: str, workload: str, batch_id: str, upstream: Upstream, at: float
) -> tuple[Budget, ...]:
    """The budgets that an attempt at `upstream` must fit into."""
    provider = upstream.endpoint.provider
    return budgets_at(spending, realm, workload, batch_id, provider, upstream.days(at))


def budgets_at(
    spending: Spending,
    realm: str,
    workload: str,
    batch_id: str,
    provider: str,
    days: tuple[str, str],
) -> tuple[Budget, ...]:
    """The budgets that an attempt at a provider must fit into.

    Args:
        spending: what may be spent.
        realm: the realm.
        workload: the workload.
        batch_id: the batch.
        provider: the provider.
        days: the day of the workload's budget, and that of the provider's.
    """
    workload_day, provider_day = days
    found = []
    if spending.batch_nano is not None:
        found.append(Budget(Account(realm, Scope.BATCH, batch_id), spending.batch_nano))
    if spending.workload_day_nano is not None:
        account = Account(realm, Scope.WORKLOAD, workload, workload_day)
        found.append(Budget(account, spending.workload_day_nano))
    if spending.provider_day_nano is not None:
        account = Account(realm, Scope.PROVIDER, provider, provider_day)
        found.append(Budget(account, spending.provider_day_nano))
    return tuple(found)


Route = tuple[Upstream, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which upstream to call next.

    Attributes:
        upstream: it may be called now; None where none may.
        wait_s: seconds after which to choose again; infinite where no upstream is left.
    """

    upstream: Upstream | None
    wait_s: float = 0.0


def choose(route: Route, exhausted: Sequence[Upstream], now: float, patience_s: float) -> Choice:
    """The first upstream of the route that can answer soon.

    A pause (429) of more than `patience_s` is not waited for while another upstream can answer.

    Args:
        route: in order of preference.
        exhausted: those that had their tries for this request.
        now: UTC seconds.
        patience_s: see above.
    """
    left = [one for one in route if not one.dead and one not in exhausted]
    waits = []
    for upstream in left:
        wait_s = upstream.breaker.wait_s(now)
        if upstream.quota_until > now:
            wait_s = max(wait_s, upstream.quota_until - now)
        if wait_s <= 0:
            pause_s = upstream.gate.paused_s()
            if pause_s <= patience_s:
                return Choice(upstream)
            # The gate itself waits for the pause, should it come to that.
            wait_s = pause_s
        waits.append((wait_s, upstream))
    if not waits:
        return Choice(None, float("inf"))
    wait_s, upstream = min(waits, key=lambda pair: pair[0])
    if upstream.breaker.wait_s(now) <= 0 and upstream.quota_until <= now:
        return Choice(upstream)
    return Choice(None, wait_s)
