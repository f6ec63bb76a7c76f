"""Estimates of a table by several routes: what the arithmetic needs, gathered.

What belongs here: rows from the table or the ledger, earlier calls, prices, the provider's own
token count. What does not: the counting (counting.py), how it is shown (cli/estimate.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import islice
from statistics import fmean
from typing import Any

import sqlalchemy as sa

from batch_pipeline.engine.job import Endpoint
from batch_pipeline.engine.lanes.choice import expected_job_s
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.engine.step import AnyStep, LocalStep, Row, Step, llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, Item, find_batch, read_items, stream_items
from batch_pipeline.ledger.calls import PauseKey, StoredResult, find_results
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.jobs import durations
from batch_pipeline.ledger.overview import (
    PastCall,
    answered_models,
    asked_item_ids,
    call_history,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome, attempts
from batch_pipeline.limits.rates import Rates
from batch_pipeline.limits.reservation import read_terms
from batch_pipeline.pricing.calibration import (
    FROM_CALLS,
    FROM_COUNTS,
    NO_PREFIX,
    CachedPrefix,
    ContentSize,
    InputScale,
    OutputScale,
    content_of_calls,
    content_of_typical,
    input_scale,
    mean_latency_s,
    output_of_calls,
    output_of_schema,
    output_of_typical,
    prefix_of_calls,
    scale_of_calls,
)
from batch_pipeline.pricing.prices import find_model_pricer, find_pricer
from batch_pipeline.pricing.tokens import estimate_body_tokens, estimate_tokens
from batch_pipeline.pricing.web_search import added_by
from batch_pipeline.providers.anthropic import CACHE_FROM_CHARACTERS
from batch_pipeline.providers.base import LlmRequest, Usage
from batch_pipeline.providers.counts import CountUnavailableError, count_tokens
from batch_pipeline.providers.registry import (
    PROVIDERS,
    MissingKeyError,
    ModelRef,
    batch_limits,
    find_provider,
    parse_route,
    resolve_access,
)
from batch_pipeline.search.base import SearchAccess, SearchProvider
from batch_pipeline.search.registry import find_search_provider, resolve_search_access
from batch_pipeline.workloads.base import search_providers
from batch_pipeline.workloads.config import WorkloadConfig
from batch_pipeline.workloads.counting import Question, estimate_routes, known_questions
from batch_pipeline.workloads.estimate import (
    Chain,
    Estimate,
    JobPlan,
    Lookup,
    ModelSearch,
    Pace,
    PlannedRow,
    RoutePlan,
    SearchPlan,
    planned_from_batch,
    planned_from_table,
)
from batch_pipeline.workloads.inputs import Input, SimulatorUrl, no_simulator
from batch_pipeline.workloads.runner import (
    AUTO,
    deadline_at,
    enqueued_tokens_of,
    new_items,
    require_batch,
    resolve_route,
    resolve_steps,
)

MOST_ROWS_AT_INGEST = 20_000
"""A larger table is estimated from rows spread over it, so that ingest stays quick."""

_PAGE = 500
_PAGES_AT_INGEST = 40
_COUNTED_REQUESTS = 10
_CACHE_FROM_TOKENS = 1_024
_BYTES_PER_TOKEN_OF_TEXT = 16
_PAST_SEARCHES = 200
_ROWS_TO_TELL = 10
# Any address does: nothing is called at it, it stands for "the simulated realm's own".
_SOME_SIMULATOR = "http://127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Target:
    """What to estimate.

    Attributes:
        source: the table; None takes the batch.
        batch_id: the batch's id; None makes one of the table's name and content.
        reading: how to read the table: encoding, delimiter and the workload's own.
        force: as with `--force`, stored answers are no hits.
    """

    source: str | None
    batch_id: str | None
    reading: Mapping[str, Any]
    force: bool = False


def compared_routes() -> tuple[str, ...]:
    """The default model of every provider that has one: sensible for batches, and cheap."""
    return tuple(
        f"{provider.name}/{provider.default_model}"
        for provider in PROVIDERS.values()
        if provider.default_model
    )


def estimate_target(
    ledger: Ledger,
    config: WorkloadConfig,
    target: Target,
    routes: Sequence[str],
    *,
    simulator: SimulatorUrl | None,
    locate: SimulatorUrl = no_simulator,
) -> tuple[list[Estimate], Batch | None]:
    """Estimate a table by each route, in one pass over its rows.

    Args:
        ledger: the ledger; nothing is written.
        config: the workload, with the run's options.
        target: the table or batch.
        routes: routes as users write them; each once.
        simulator: gives the simulator's address (None in the live realm) when providers may be
            asked to count tokens; None asks nobody.
        locate: gives it where a worksheet is to be read.

    Returns:
        The estimates in the order of the routes, and the batch if it is in the ledger already.

    Raises:
        UsageError: the table cannot be read, a route is none, or there is no such batch.
    """
    named = None
    if target.source is not None:
        named = Input(config.domain, target.source, target.reading, ledger, locate)
    known = _known_batch(ledger, target, named)
    steps = _as_searched(ledger, config, resolve_steps(config))

    @cache
    def sample(place: int) -> list[list[Question]]:
        return _sample_packs(llm_steps(steps)[place], _rows(ledger, config, target, known, named))

    planner = _Planner(ledger, config, steps, sample, simulator)
    found = estimate_routes(
        _rows(ledger, config, target, known, named),
        steps,
        [planner.chain(route) for route in routes],
        limit=config.limit,
        force=target.force,
        searches=_search_plans(ledger, config, steps),
    )
    return found, known


def estimate_ingested(
    ledger: Ledger, config: WorkloadConfig, batch: Batch, *, force: bool = False
) -> Estimate:
    """Estimate a batch by its own route without asking a provider.

    A batch of more than MOST_ROWS_AT_INGEST rows is estimated from rows spread over it.

    Args:
        ledger: the ledger; nothing is written.
        config: the workload, with the run's options.
        batch: the batch.
        force: finished rows are asked again, and stored answers are no hits.
    """
    steps = _as_searched(ledger, config, resolve_steps(config))
    chain = _Planner(ledger, config, steps).chain(config.route)
    if batch.row_count <= MOST_ROWS_AT_INGEST:
        items: Iterable[Item] = stream_items(ledger, batch.batch_id)
    else:
        items = _spread_items(ledger, batch)
        note = f"Extrapolated from {MOST_ROWS_AT_INGEST:,} rows spread over the table."
        first, *others = chain.plans
        first = replace(first, notes=(*first.notes, note))
        chain = replace(chain, plans=(first, *others))
    rows = _planned(ledger, config, batch, items, force=force)
    searches = _search_plans(ledger, config, steps)
    found = estimate_routes(
        rows, steps, [chain], limit=config.limit, force=force, searches=searches
    )[0]
    return found.scaled_to(batch.row_count)


def largest_pack(config: WorkloadConfig) -> int:
    """Rows of a request, at most, in the step that packs most of them."""
    return max(step.max_items for step in llm_steps(resolve_steps(config)))


def stored_estimate(found: Estimate, made: str, at: float) -> dict[str, Any]:
    """An estimate as `batches.estimate` keeps it.

    Args:
        found: for the whole batch, from its first call on.
        made: `ingest`, or `sample` after a sample run.
        at: when (UTC seconds).
    """
    return {**found.to_dict(), "made": made, "made_at": at}


# ---- rows ----------------------------------------------------------------------------------------


def _known_batch(ledger: Ledger, target: Target, named: Input | None) -> Batch | None:
    """The batch that a run of this would take up, if it was ingested before."""
    if named is None:
        if target.batch_id is None:
            raise UsageError("No table and no batch is named.", "Give --input or --batch.")
        return require_batch(ledger, target.batch_id)
    name = target.batch_id or named.content_id()
    with ledger.read() as connection:
        return find_batch(connection, ledger.realm, name)


def _rows(
    ledger: Ledger,
    config: WorkloadConfig,
    target: Target,
    known: Batch | None,
    named: Input | None,
) -> Iterable[PlannedRow]:
    if known is not None:
        items = stream_items(ledger, known.batch_id)
        return _planned(ledger, config, known, items, force=target.force)
    assert named is not None
    return planned_from_table(
        new_items(
            config.domain,
            named.open(),
            config.route_column,
            ledger=ledger,
            batch_id=target.batch_id or "",
            forced=target.force,
        )
    )


def _planned(
    ledger: Ledger,
    config: WorkloadConfig,
    batch: Batch,
    items: Iterable[Item],
    *,
    force: bool = False,
) -> Iterator[PlannedRow]:
    """Rows of a batch with what their local steps have given so far."""
    local = [step.name for step in resolve_steps(config) if isinstance(step, LocalStep)]
    left = iter(items)
    while page := list(islice(left, _PAGE)):
        documents = _documents(ledger, batch, page, local, force) if local else {}
        yield from planned_from_batch(
            page, include_blocked=config.include_blocked, force=force, documents=documents
        )


def _documents(
    ledger: Ledger, batch: Batch, page: Sequence[Item], local: Sequence[str], force: bool
) -> dict[int, dict[str, Any]]:
    """The documents that a run would go by, by ordinal and step."""
    by_ordinal = {item.ordinal: item for item in page}
    with ledger.read() as connection:
        found = read_documents(
            connection, ledger.realm, batch.batch_id, list(by_ordinal), steps=local
        )
    return {
        ordinal: {
            step: one.content
            for step, one in of_row.items()
            if one.outcome is Outcome.SUCCEEDED
            # What a person edited stays as it is.
            and (one.editor or (one.made_at >= by_ordinal[ordinal].fresh_at(step) and not force))
        }
        for ordinal, of_row in found.items()
    }


def _spread_items(ledger: Ledger, batch: Batch) -> Iterator[Item]:
    size = MOST_ROWS_AT_INGEST // _PAGES_AT_INGEST
    for place in range(_PAGES_AT_INGEST):
        first = place * (batch.row_count - size) // (_PAGES_AT_INGEST - 1)
        with ledger.read() as connection:
            page = read_items(connection, ledger.realm, batch.batch_id, first, size)
        yield from page


def _sample_packs(step: Step, rows: Iterable[PlannedRow]) -> list[list[Question]]:
    """A few packs as they would be sent, spread over the table (its first 20,000 rows).

    None where the step's content depends on earlier answers.
    """
    packer: Packer[Question] = Packer(step.max_items, step.max_input_tokens)
    kept: list[list[Question]] = []
    stride, count = 1, 0
    for question in known_questions(step, islice(rows, MOST_ROWS_AT_INGEST)):
        for pack in packer.add(question):
            if count % stride == 0:
                kept.append(pack)
                if len(kept) >= 2 * _COUNTED_REQUESTS:
                    kept, stride = kept[::2], 2 * stride
            count += 1
    return kept or list(packer.flush())


# ---- searches ------------------------------------------------------------------------------------


def _as_searched(ledger: Ledger, config: WorkloadConfig, steps: Sequence[AnyStep]) -> list[AnyStep]:
    """Steps with the searches that will be made.

    A provider without a key is not asked, unless the workload cannot do without it: then the run
    waits for the key, and its searches are counted by the price list.
    """
    needed = search_providers(config.domain, config.options)

    def is_asked(name: str) -> bool:
        return name in needed or _search_access(ledger, name) is not None

    def searched(step: AnyStep) -> AnyStep:
        if not isinstance(step, LocalStep):
            return step
        made = {name: each for name, each in step.searches.items() if is_asked(name)}
        return replace(step, searches=made)

    return [searched(step) for step in steps]


def _search_access(ledger: Ledger, name: str) -> SearchAccess | None:
    simulator = None if ledger.realm == "live" else _SOME_SIMULATOR
    return resolve_search_access(name, os.environ, simulator)


def _search_plans(
    ledger: Ledger, config: WorkloadConfig, steps: Sequence[AnyStep]
) -> list[SearchPlan]:
    """How the search providers of local steps are asked: prices, limits, and what calls took.

    Raises:
        UsageError: there is no such search provider.
    """
    local = [step for step in steps if isinstance(step, LocalStep)]
    names = dict.fromkeys(name for step in local for name in step.searches)
    return [_search_plan(ledger, config, find_search_provider(name)) for name in names]


def _search_plan(ledger: Ledger, config: WorkloadConfig, provider: SearchProvider) -> SearchPlan:
    per_minute = config.search_rate_limit or provider.requests_per_minute
    access = _search_access(ledger, provider.name)
    with ledger.read() as connection:
        if access is not None:
            limit = provider.limit_name
            key = PauseKey(ledger.realm, limit, limit, access.key_id)
            terms = read_terms(connection, ledger.now(connection), key)
            per_minute = Rates(*terms.limits_of(Rates(per_minute).amounts)).requests
        past = _past_searches(connection, ledger.realm, config.workload, provider.endpoint)
    listed = provider.cost_usd
    plan = SearchPlan(provider.name, listed, listed, provider.limit_name, per_minute)
    if not past:
        return plan
    costs = [cost for cost, _ in past]
    return replace(
        plan,
        usd=fmean(costs),
        worst_usd=max(listed, *costs),
        latency_s=fmean(took for _, took in past),
        basis=f"{FROM_CALLS} ({len(past):,})",
    )


def _past_searches(
    connection: sa.Connection, realm: str, workload: str, endpoint: str
) -> list[tuple[float, float]]:
    """USD and seconds of a workload's latest answered calls to a search endpoint."""
    rows = connection.execute(
        sa.select(attempts.c.cost_nano, attempts.c.latency_s)
        .where(
            attempts.c.realm == realm,
            attempts.c.workload == workload,
            attempts.c.step == SEARCH_STEP,
            attempts.c.model == endpoint,
            attempts.c.state == AttemptState.SETTLED.value,
            attempts.c.error_kind.is_(None),
        )
        .order_by(attempts.c.sent_at.desc())
        .limit(_PAST_SEARCHES)
    )
    return [(int(row.cost_nano) / NANO, float(row.latency_s or 0.0)) for row in rows]


def _past_shares(ledger: Ledger, workload: str, steps: Sequence[Step]) -> dict[str, _Share]:
    """Of the rows that could take a step, how many did, where enough runs tell.

    They are held against the step before that every row takes.
    """
    compared: dict[str, str] = {}
    before = ""
    for step in steps:
        if step.expected_share >= 1:
            before = step.name
        elif before:
            compared[step.name] = before
    if not compared:
        return {}
    asked = sa.func.sum(attempts.c.item_count)
    statement = (
        sa.select(attempts.c.step, asked)
        .where(
            attempts.c.realm == ledger.realm,
            attempts.c.workload == workload,
            attempts.c.step.in_({*compared, *compared.values()}),
            attempts.c.reason == "first",
            attempts.c.state == AttemptState.SETTLED.value,
        )
        .group_by(attempts.c.step)
    )
    with ledger.read() as connection:
        counts = {str(name): int(number or 0) for name, number in connection.execute(statement)}
    return {
        name: _Share(min(counts.get(name, 0), counts[first]), counts[first])
        for name, first in compared.items()
        if counts.get(first, 0) >= _ROWS_TO_TELL
    }


@dataclass(frozen=True, slots=True)
class _Share:
    """So many of so many earlier rows took a step."""

    took: int
    of: int


def _model_search(step: Step, model: ModelRef, scale: InputScale) -> ModelSearch | None:
    """What the web search of a step adds to its calls; None: it has none."""
    search = step.web_search
    if search is None:
        return None
    once = added_by(replace(search, max_uses=1), model.provider)
    told = scale.basis == FROM_CALLS
    # The worst case has a token for each byte, and four bytes for each character.
    each = 1 if search.engine == "native" else _BYTES_PER_TOKEN_OF_TEXT
    return ModelSearch(
        provider=model.provider,
        always=search.plugin,
        usd=once.usd,
        tokens=0.0 if told else once.prompt_tokens / each,
        turns=1 if told else once.turns,
        worst=added_by(search, model.provider),
        most_searches=1 if search.plugin else search.max_uses,
    )


# ---- one route -----------------------------------------------------------------------------------


def _nobody_asked(place: int) -> Sequence[Sequence[Question]]:
    return ()


@dataclass(frozen=True)
class _Planner:
    """Makes the plans of routes.

    Attributes:
        ledger: the ledger; nothing is written.
        config: the workload.
        steps: what a row goes through.
        sample: packs of an LLM step, by its place among them, whose tokens a provider may count.
        simulator: as of estimate_target.
    """

    ledger: Ledger
    config: WorkloadConfig
    steps: Sequence[AnyStep]
    sample: Callable[[int], Sequence[Sequence[Question]]] = _nobody_asked
    simulator: Callable[[], str | None] | None = None
    known: dict[tuple[str, str], Chain | None] = field(default_factory=dict)

    @cached_property
    def shares(self) -> Mapping[str, _Share]:
        """What earlier runs say about steps that only some rows take."""
        return _past_shares(self.ledger, self.config.workload, llm_steps(self.steps))

    def chain(self, route: str) -> Chain:
        """The plans of a route, and of the routes that rows name themselves."""
        models = _models(self.config, route, self.ledger)
        plans = self._plans(route, models, self.simulator)
        return Chain(plans, partial(self._own_chain, route, models))

    def _own_chain(self, route: str, models: Sequence[_Model], row: Row) -> Chain | None:
        """The chain of a row's own route; None where it has none, or it is the same.

        Nobody is asked to count its tokens: there may be many such routes.
        """
        text = str(row.get(self.config.route_column) or "").strip()
        if not text or text == AUTO or not self.config.row_routes:
            return None
        if (route, text) not in self.known:
            own = _models(self.config, text, self.ledger)
            if self.config.fallback:
                labels = {model.label for model in own}
                own += [model for model in models if model.label not in labels]
            same = [model.label for model in own] == [model.label for model in models]
            plans = () if same else self._plans(text, own, None)
            self.known[route, text] = Chain(plans) if plans else None
        return self.known[route, text]

    def _plans(
        self,
        route: str,
        models: Sequence[_Model],
        simulator: Callable[[], str | None] | None,
    ) -> tuple[RoutePlan, ...]:
        plans = [
            _plan(
                self.ledger, self.config, step, route, models, partial(self.sample, place),
                simulator, self.shares.get(step.name),
            )
            for place, step in enumerate(llm_steps(self.steps))
        ]  # fmt: skip
        return tuple(plans)


def _plan(
    ledger: Ledger,
    config: WorkloadConfig,
    step: Step,
    route: str,
    models: Sequence[_Model],
    sample: Callable[[], Sequence[Sequence[Question]]],
    simulator: Callable[[], str | None] | None,
    share: _Share | None,
) -> RoutePlan:
    """One step by one route."""
    # The lane `batch` passes over models that have no Batch API.
    in_jobs = [model for model in models if batch_limits(model.ref.provider) is not None]
    asked = in_jobs[0] if config.lane == "batch" and in_jobs else models[0]
    first, label = asked.ref, asked.label
    with ledger.read() as connection:
        calls = call_history(connection, ledger.realm, config.workload, step.name, [label])
        others = (
            []
            if calls
            else call_history(connection, ledger.realm, config.workload, step.name, None)
        )
    notes: list[str] = []
    base_tokens = _body_tokens(first, _request(step, first.model, ()))
    scale = scale_of_calls(calls)
    if not scale.calls and simulator is not None:
        scale, why = _ask_provider(step, first, sample(), simulator)
        notes += [why] if why else []
    pricer = find_pricer(first.provider, first.model)
    if pricer is None:
        notes.append(f"No price is known for {first}: docs/estimate.md says how to add one.")
    jobs = _job_plan(ledger, config, asked)
    if jobs is None:
        notes.append(f"{first.provider} has no Batch API: there is real time only.")
    elif jobs.price is None:
        notes.append(
            f"No batch price is known for {first}, and the standard price is not taken in its "
            "place: docs/estimate.md says how to add one."
        )
    if step.expected_share < 1:
        taken = f"{share.took:,} of {share.of:,} earlier ones" if share else "until runs tell"
        usual = share.took / share.of if share else step.expected_share
        notes.append(f"{step.name} is expected for {usual:.0%} of the rows that may come to it: "
                     f"{taken}.")  # fmt: skip
    now = ledger.clock.now()
    at = deadline_at(config.deadline, now) if config.lane == "auto" else None
    return RoutePlan(
        route=route,
        model=label,
        lookup=_lookup(ledger, config.workload, [model.label for model in models]),
        pace=Pace(
            _present_limits(ledger, asked),
            None if config.workers == "auto" else config.workers,
        ),
        price=None if pricer is None else partial(_price_at, pricer, now),
        base_tokens=base_tokens,
        input=scale,
        output=_output_scale(step, calls, others),
        prefix=prefix_of_calls(calls) or _likely_prefix(first, step, scale),
        # A line of a provider job has no latency of its own.
        latency_s=mean_latency_s([call for call in calls if call.latency_s]),
        notes=tuple(notes),
        lane=config.lane,
        realtime=asked is models[0],
        jobs=jobs,
        deadline_s=None if at is None else at - now,
        content=_content_size(step, [*calls, *others], base_tokens, scale),
        share=None if share is None else share.took / share.of,
        web=_model_search(step, first, scale),
    )


def _job_plan(ledger: Ledger, config: WorkloadConfig, model: _Model) -> JobPlan | None:
    """How provider jobs of a model go, by the last ones; None where it has no Batch API."""
    ref = model.ref
    if batch_limits(ref.provider) is None:
        return None
    with ledger.read() as connection:
        took = durations(connection, ledger.realm, ref.provider, model.label)
    job_s = expected_job_s(took)
    pricer = find_model_pricer(ref.provider, ref.model, "batch")
    now = ledger.clock.now()
    return JobPlan(
        price=None if pricer is None else partial(_price_at, pricer.cost_nano, now),
        job_s=job_s,
        # Too few jobs tell nothing, and what providers promise stands in for them.
        jobs_known=len(took) if job_s in took else 0,
        window=enqueued_tokens_of(config, ref),
        max_jobs=config.max_jobs,
        job_items=config.job_items,
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """A model of a route; `key_id` is empty where it has no key."""

    ref: ModelRef
    label: str
    rates: Rates
    key_id: str = ""


def _models(config: WorkloadConfig, route: str, ledger: Ledger) -> list[_Model]:
    """The models of a route; a missing key does not stop an estimate.

    Raises:
        UsageError: the text is no route.
    """
    simulator = None if ledger.realm == "live" else _SOME_SIMULATOR
    try:
        endpoints: Sequence[Endpoint] = resolve_route(config, simulator, route)
    except MissingKeyError:
        if route.strip() == "auto":
            raise
        parts = [part.strip() for part in route.split(",")]
        named = [
            part if "/" in part else f"{part}/{find_provider(part).default_model}" for part in parts
        ]
        rates = Rates(config.rate_limit, config.input_tokens_per_min, config.output_tokens_per_min)
        return [_Model(ref, str(ref), rates) for ref in parse_route(", ".join(named))]
    return [
        _Model(ModelRef(one.provider, one.model), one.label, one.rates, one.key_id)
        for one in endpoints
    ]


def _present_limits(ledger: Ledger, model: _Model) -> Rates:
    """The limits of a run that starts now: other runs' and those set by hand count as well."""
    if not model.key_id:
        return model.rates
    key = PauseKey(ledger.realm, model.ref.provider, model.label, model.key_id)
    with ledger.read() as connection:
        terms = read_terms(connection, ledger.now(connection), key)
    return Rates(*terms.limits_of(model.rates.amounts))


def _price_at(pricer: Callable[[Usage, float], int], at: float, usage: Usage) -> int:
    return pricer(usage, at)


def _request(step: Step, model: str, pack: Sequence[Question]) -> LlmRequest:
    return LlmRequest(
        model=model,
        system=step.system_prompt,
        user=step.user_message([question.content for question in pack]),
        schema=step.request_schema,
        schema_name=step.name,
        max_output_tokens=step.output_tokens_base + step.output_tokens_per_item * len(pack),
        temperature=step.temperature,
    )


def _body_tokens(model: ModelRef, request: LlmRequest) -> int:
    codec = PROVIDERS[model.provider].codec
    return estimate_body_tokens(codec.build(request, key="", base_url="").body)


def _ask_provider(
    step: Step,
    model: ModelRef,
    sample: Sequence[Sequence[Question]],
    simulator: Callable[[], str | None],
) -> tuple[InputScale, str]:
    """The scale by the provider's own count; where it gives none, a guess and the reason."""
    requests = [_request(step, model.model, pack) for pack in sample]
    if not requests:
        return InputScale(), ""
    try:
        access = resolve_access(model, os.environ, simulator())
        counts = asyncio.run(count_tokens(access, requests))
    except CountUnavailableError as error:
        return InputScale(), str(error)
    except MissingKeyError as error:
        return InputScale(), f"{error.message} Its tokens are estimated from the text alone."
    local = [_body_tokens(model, request) for request in requests]
    return input_scale(zip(local, counts, strict=True), FROM_COUNTS), ""


def _output_scale(step: Step, calls: Sequence[PastCall], others: Sequence[PastCall]) -> OutputScale:
    return (
        output_of_calls(calls, step.items_name, same_model=True)
        or output_of_calls(others, step.items_name, same_model=False)
        or _output_unseen(step)
    )


def _output_unseen(step: Step) -> OutputScale:
    if step.typical_tokens is None:
        return output_of_schema(step.item_schema, step.output_tokens_per_item)
    # Alone in its request, a row may use all of the bound.
    alone = step.output_tokens_base if step.max_items == 1 else 0
    return output_of_typical(step.typical_tokens[1], step.output_tokens_per_item + alone)


def _content_size(
    step: Step, calls: Sequence[PastCall], base_tokens: int, scale: InputScale
) -> ContentSize | None:
    """What a row's content comes to where earlier steps have not answered yet."""
    found = content_of_calls(calls, step.items_name)
    if found is None and step.typical_tokens is not None:
        found = content_of_typical(step.typical_tokens[0], base_tokens, scale)
    return found


def _likely_prefix(model: ModelRef, step: Step, scale: InputScale) -> CachedPrefix:
    """What a provider keeps of the system prompt, as far as that is known beforehand."""
    tokens = round(estimate_tokens(step.system_prompt) * scale.ratio)
    if tokens < _CACHE_FROM_TOKENS:
        return NO_PREFIX
    if model.provider == "anthropic":
        marked = len(step.system_prompt) >= CACHE_FROM_CHARACTERS
        return CachedPrefix(tokens, billed_write=True, certain=True) if marked else NO_PREFIX
    # The others keep prefixes on their own accord: seen in earlier calls, it is relied on.
    return CachedPrefix(tokens)


def _lookup(ledger: Ledger, workload: str, labels: Sequence[str]) -> Lookup:
    def cached(keys: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return find_results(connection, ledger.realm, keys, labels)

    def otherwise(keys: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return answered_models(connection, ledger.realm, keys)

    def before(item_ids: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return asked_item_ids(connection, ledger.realm, workload, item_ids)

    def answers(
        keys: Sequence[str], fresh_after: Mapping[str, float]
    ) -> Mapping[str, StoredResult]:
        with ledger.read() as connection:
            return find_results(connection, ledger.realm, keys, labels, fresh_after)

    return Lookup(cached, otherwise, before, answers)
