"""`estimate`: what a table would ask, cost and take, route by route, before anything is spent.

What belongs here: options, the sample run, the tables. What does not: the arithmetic
(workloads/estimate.py) and what it is fed with (workloads/compare.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, duration, grid, usd, usd_of
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from rich.table import Table

    from batch_pipeline.doors import RunRequest, RunResult
    from batch_pipeline.settings import Realm, Settings
    from batch_pipeline.workloads.compare import Target
    from batch_pipeline.workloads.config import WorkloadConfig
    from batch_pipeline.workloads.estimate import Estimate, LaneFigures

_SAMPLE_PARTS = 5

_Routes = Annotated[
    list[str] | None,
    typer.Option("--route", help="Models to try, in order; give it again to compare routes."),
]


def estimate(
    workload: opt.Workload,
    input_: opt.Input = None,
    batch: opt.Batch = None,
    roadmap: opt.Roadmap = None,
    route: _Routes = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also every provider's default model.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=1,
            help="First run so many rows, spread over the table; they are kept and not paid again.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the provider to count tokens.")
    ] = False,
    lane: opt.Lane = None,
    deadline: opt.Deadline = None,
    workers: opt.Workers = None,
    rate_limit: opt.RateLimit = None,
    search_rate_limit: opt.SearchRateLimit = None,
    provider: opt.Provider = None,
    model: opt.Model = None,
    strategy: opt.Strategy = None,
    no_ahrefs: opt.NoAhrefs = False,
    mode: opt.Mode = None,
    num_flashcards: opt.NumFlashcards = None,
    option: opt.Options = None,
    pack: opt.Pack = None,
    limit: opt.Limit = None,
    include_blocked: opt.IncludeBlocked = False,
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    encoding: opt.Encoding = None,
    delimiter: opt.Delimiter = None,
    category: opt.Category = None,
    domain: opt.Domain = None,
    subdomain: opt.Subdomain = None,
    worksheet: opt.Worksheet = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Say what a run would ask, cost and take; spends nothing, unless --sample runs some rows."""
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.compare import Target, compared_routes, largest_pack
    from batch_pipeline.workloads.config import load_workload_config

    voice = Output(json, verbose)
    settings = load_settings()
    config = load_workload_config(workload)
    source = opt.choose_source(config, input_, roadmap, batch)
    knobs = opt.given(
        route=route[0] if route else None,
        lane=lane,
        deadline=deadline,
        workers=workers,
        rate_limit=rate_limit,
        search_rate_limit=search_rate_limit,
        pack=pack,
        limit=limit,
        include_blocked=include_blocked,
    )
    knobs |= opt.overrides(
        provider,
        model,
        strategy,
        no_ahrefs,
        option,
        mode=mode,
        num_flashcards=num_flashcards,
    )
    config = config.with_options(knobs)
    realm = settings.realm(simulate)
    reading = opt.reading_options(
        encoding,
        delimiter,
        category=category,
        domain=domain,
        subdomain=subdomain,
        worksheet=worksheet,
    )
    routes = list(dict.fromkeys([config.route, *(route or ())]))
    if compare:
        routes = list(dict.fromkeys([*routes, *compared_routes()]))
    target = Target(source, batch, reading)
    taken: _Sample | None = None
    if sample is not None:
        if not _may_sample(voice, settings, config, realm, target, sample, yes, offline):
            voice.note("Nothing was done.")
            return OK
        request = RunRequest(
            workload=workload,
            source=source,
            batch_id=batch,
            # It is to teach something now: a provider job may take a day.
            knobs={**knobs, "lane": "realtime"},
            reading=reading,
            simulate=realm == "simulated",
            verbose=verbose,
        )
        pack_size = largest_pack(config)
        taken = _run_sample(voice, settings, realm, request, sample, pack_size)
        target = Target(None, taken.batch_id, reading)
    found, known = _estimate(settings, config, realm, target, routes, offline)
    document: dict[str, Any] = {
        "workload": workload,
        "simulated": realm == "simulated",
        "input": source,
        "batch": known,
        "rate_limit": config.rate_limit,
        "workers": config.workers,
        "lane_asked_for": config.lane,
        **found[0].to_dict(),
        "routes": [one.to_dict() for one in found],
    }
    if taken is not None:
        whole = taken.with_rest(found[0])
        if taken.requests:
            _keep(settings, realm, taken.batch_id, whole)
        document["sample"] = taken.to_dict()
        document["with_sample"] = whole.to_dict()
    voice.emit(document)
    _print(voice, found, realm, known, taken)
    return OK if taken is None else taken.code


def estimate_request(
    settings: Settings,
    config: WorkloadConfig,
    realm: Realm,
    *,
    source: str | None,
    batch_id: str | None,
    reading: Mapping[str, Any],
    force: bool = False,
) -> tuple[Estimate, str | None]:
    """The estimate by the workload's route, asking nobody, and the batch's id if it is known.

    Raises:
        UsageError: the table cannot be read, or there is no such batch.
    """
    from batch_pipeline.workloads.compare import Target

    target = Target(source, batch_id, reading, force)
    found, known = _estimate(settings, config, realm, target, [config.route], offline=True)
    return found[0], known


def _estimate(
    settings: Settings,
    config: WorkloadConfig,
    realm: Realm,
    target: Target,
    routes: Sequence[str],
    offline: bool,
) -> tuple[list[Estimate], str | None]:
    from functools import partial

    from batch_pipeline.workloads.compare import estimate_target
    from batch_pipeline.workloads.runner import open_ledger, simulator_url

    locate = partial(simulator_url, settings, realm)
    with open_ledger(settings, realm) as ledger:
        found, known = estimate_target(
            ledger,
            config,
            target,
            routes,
            simulator=None if offline else locate,
            locate=locate,
        )
    return found, None if known is None else known.batch_id


# ---- the sample ----------------------------------------------------------------------------------


def _may_sample(
    voice: Output,
    settings: Settings,
    config: WorkloadConfig,
    realm: Realm,
    target: Target,
    rows: int,
    yes: bool,
    offline: bool,
) -> bool:
    if realm == "simulated" or yes:
        return True
    first = config.with_options({"limit": rows, "lane": "realtime"})
    found, _ = _estimate(settings, first, realm, target, [config.route], offline)
    return voice.confirm(
        f"--sample asks {found[0].to_ask:,} rows now: about {usd(found[0].cost_usd)}, at most "
        f"{usd(found[0].worst.cost_usd)}. They are kept and not paid again. Go ahead?",
        yes=yes,
    )


@dataclass
class _Sample:
    """What the sample run did: rows answered, and what they cost."""

    batch_id: str
    rows: int = 0
    parts: int = 0
    requests: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    code: int = OK
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "batch": self.batch_id,
            "rows": self.rows,
            "parts": self.parts,
            "requests": self.requests,
            **self.spent,
        }

    def with_rest(self, rest: Estimate) -> Estimate:
        """The sample and the estimate of the rest together: the whole table."""
        from batch_pipeline.workloads.estimate import Amount

        spent = Amount(
            int(self.spent.get("input_tokens", 0)),
            int(self.spent.get("cached_input_tokens", 0)),
            int(self.spent.get("output_tokens", 0)),
            self.spent.get("cost_usd", 0.0),
        )
        return replace(
            rest,
            done=max(0, rest.done - self.rows),
            to_ask=rest.to_ask + self.rows,
            requests=rest.requests + self.requests,
            lanes=tuple(one.plus(spent) for one in rest.lanes),
        )


def _run_sample(
    voice: Output,
    settings: Settings,
    realm: Realm,
    request: RunRequest,
    rows: int,
    pack: int,
) -> _Sample:
    """Run `rows` rows the usual way, in up to five parts spread over the batch's chunks."""
    from batch_pipeline.cli.output import exit_code
    from batch_pipeline.doors import run_batch

    voice.realm_notice(realm)
    voice.note(f"Running a sample of {rows:,} rows in real time …")
    sample = _Sample("")
    # Whole packs, as in the run to come; the last part has the remainder.
    size = rows // max(1, min(_SAMPLE_PARTS, rows // pack)) // pack * pack or rows
    result = run_batch(replace(request, knobs={**request.knobs, "limit": min(size, rows)}))
    _add(sample, result)
    left = rows - size
    keys = _open_chunks(settings, realm, result.batch_id) if left > 0 else []
    slices = _spread(keys, -(-left // size), whole=2 * left >= result.row_count)
    for place, chunk_keys in enumerate(slices):
        if result.status != "done":
            break
        count = left if place == len(slices) - 1 else size
        result = run_batch(
            replace(
                request,
                source=None,
                batch_id=result.batch_id,
                knobs={**request.knobs, "limit": count},
                chunk_keys=chunk_keys,
            )
        )
        _add(sample, result)
        left -= count
    sample.code = exit_code(result.status, result.outcomes)
    if sample.message:
        voice.note(sample.message)
    return sample


def _spread(keys: list[str], parts: int, *, whole: bool) -> list[list[str]]:
    """Where the further parts of a sample come from: slices of the chunks still open.

    Args:
        keys: these chunks, in order; the first part came from before them.
        parts: so many slices at most.
        whole: one slice of all, for a sample of most of the table.
    """
    if whole:
        return [keys] if keys else []
    parts = min(parts, len(keys), _SAMPLE_PARTS - 1)
    ends = [len(keys) * (part + 1) // (parts + 1) for part in range(parts + 1)]
    return [keys[first:end] for first, end in pairwise(ends)]


def _open_chunks(settings: Settings, realm: Realm, batch_id: str) -> list[str]:
    from batch_pipeline.ledger.batches import unfinished_chunks
    from batch_pipeline.workloads.runner import open_ledger

    with open_ledger(settings, realm) as ledger, ledger.read() as connection:
        return [chunk.chunk_key for chunk in unfinished_chunks(connection, realm, batch_id)]


def _add(sample: _Sample, result: RunResult) -> None:
    summary = result.summary
    sample.batch_id = result.batch_id
    sample.parts += 1
    sample.rows += int(summary.get("outcomes", {}).get("succeeded", 0)) - int(
        summary.get("cache_hits", 0)
    )
    sample.requests += int(summary.get("attempts", 0))
    for name in ("input_tokens", "cached_input_tokens", "output_tokens"):
        sample.spent[name] = sample.spent.get(name, 0) + int(summary.get(name, 0))
    sample.spent["cost_usd"] = sample.spent.get("cost_usd", 0.0) + usd_of(summary.get("cost_nano"))
    sample.message = result.message


def _keep(settings: Settings, realm: Realm, batch_id: str, whole: Estimate) -> None:
    """A sample tells more than the estimate that was made at ingest: the report compares to it."""
    from batch_pipeline.ledger.batches import set_estimate
    from batch_pipeline.workloads.compare import stored_estimate
    from batch_pipeline.workloads.runner import open_ledger

    with open_ledger(settings, realm) as ledger:
        set_estimate(ledger, batch_id, stored_estimate(whole, "sample", ledger.clock.now()))


# ---- the tables ----------------------------------------------------------------------------------


def _print(
    voice: Output,
    found: Sequence[Estimate],
    realm: Realm,
    known: str | None,
    sample: _Sample | None,
) -> None:
    from batch_pipeline.workloads.estimate import basis_line, search_line

    if realm == "simulated":
        voice.out.print("SIMULATED realm: costs are what the provider would charge.")
    first = found[0]
    rows = grid("what", "figure", right=("figure",))
    rows.show_header = False
    for label, value in _row_lines(first):
        rows.add_row(label, value)
    voice.out.print(rows)
    voice.out.print(_routes_table(found))
    if first.steps:
        voice.out.print(f"Steps by {first.route}, {_LANES[first.lane]}:", markup=False)
        voice.out.print(_steps_table(first))
    for searched in first.searches:
        voice.out.print(f"{search_line(searched, usd)}.", markup=False)
    for one in found:
        voice.out.print(basis_line(one), markup=False)
        for note in one.basis.notes:
            voice.out.print(f"  {note}", markup=False)
    if first.bound_by:
        voice.out.print(
            f"A run of {first.route} takes {_LANES[first.lane]}; its time rests on "
            f"{first.bound_by}.",
            markup=False,
        )
    if sample is not None and not sample.requests:
        voice.out.print("The sample brought no new answer: the figures rest on what was known.")
    elif sample is not None:
        whole = sample.with_rest(first)
        spent = usd(sample.spent.get("cost_usd", 0.0))
        voice.out.print(
            f"The sample: {plural(sample.rows, 'row')} from {plural(sample.parts, 'place')} of the "
            f"table in {plural(sample.requests, 'request')} for {spent}, which are kept. With it: "
            f"{usd(whole.low.cost_usd)} to {usd(whole.worst.cost_usd)}, expected "
            f"{usd(whole.expected.cost_usd)}.",
            markup=False,
        )
    if known is not None:
        voice.out.print(f"This table is batch {known} already.", markup=False)
    if not first.to_ask and first.rows and not first.worst.cost_usd:
        voice.out.print("Nothing would be asked: a run costs nothing.")


_LANES = {"realtime": "real time", "batch": "the batch lane"}


def _routes_table(found: Sequence[Estimate]) -> Table:
    """The routes side by side, each with a line for every lane that it could take."""
    figures = ("Requests", "Tokens in", "Tokens out", "Low", "Expected", "Worst")
    right = ("Cached", "To ask", *figures)
    table = grid("Route", "Cached", "To ask", "Lane", *figures, "Time", right=right)
    for one in found:
        counts = [one.route, f"{one.cached + one.done:,}", f"{one.to_ask:,}"]
        for figure in one.lanes:
            table.add_row(
                *counts,
                "batch" if figure.lane == "batch" else "real time",
                f"{one.requests:,}",
                f"{figure.expected.input_tokens:,}",
                f"{figure.expected.output_tokens:,}",
                usd(figure.low.cost_usd),
                usd(figure.expected.cost_usd),
                usd(figure.worst.cost_usd),
                lane_time(figure),
            )
            counts = [""] * 3
    return table


def _steps_table(found: Estimate) -> Table:
    from batch_pipeline.workloads.estimate import STEP_HEADS, step_rows

    table = grid(*STEP_HEADS, right=STEP_HEADS[1:])
    for cells in step_rows(found, usd):
        table.add_row(*cells)
    return table


def lane_time(figures: LaneFigures) -> str:
    """`3 min 20 s`; `within 24 h` where it is no more than what providers promise."""
    if figures.seconds_known:
        return duration(figures.seconds)
    return f"within {figures.seconds / 3_600:,.0f} h"


def _row_lines(found: Estimate) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = [("Rows", f"{found.rows:,}")]
    if found.done:
        lines.append(("  finished in this batch", f"{found.done:,}"))
    lines.append(("  cached, cost nothing", f"{found.cached:,}"))
    lines.append(("  to ask", f"{found.to_ask:,}"))
    if found.questions != found.to_ask:
        lines.append(("    distinct questions", f"{found.questions:,}"))
    lines.extend((f"    {reason}", f"{count:,}") for reason, count in found.misses.items())
    for label, count in (
        ("  left pending by --limit", found.left_pending),
        ("  blocked, not asked again", found.blocked),
        ("  skipped, nothing to ask", found.skipped),
        ("  unusable, see their errors after a run", found.unusable),
    ):
        if count:
            lines.append((label, f"{count:,}"))
    return lines
