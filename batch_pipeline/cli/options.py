"""Options that several commands share, so that one name means one thing everywhere.

What belongs here: option declarations and turning them into knobs, and into the ledger that is
meant. What does not: defaults (defs.yaml).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Realm
    from batch_pipeline.workloads.config import WorkloadConfig

_ROADMAP = "roadmap:"
_SHEETS = "sheets:"
_MOST_WORKERS = 10_000
_LEAST_USD = 0.000001
_LEAST_RATE = 0.001
# Workloads whose rows may say the same as an option does.
_ROWS_CHOOSE = frozenset({"articles"})


def _workers(text: str) -> str:
    """Refuse what is neither a number of requests nor `auto`, before anything is read."""
    given = text.strip().lower()
    if given != "auto" and not (given.isdecimal() and 1 <= int(given) <= _MOST_WORKERS):
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 to 10,000.")
    return given


Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="More detail, and a traceback after an error.")
]
Simulate = Annotated[
    bool | None,
    typer.Option(
        "--simulate/--live",
        help="Work in the simulated or the live realm; default: what BATCH_PIPELINE_SIMULATE says.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

Workload = Annotated[str, typer.Argument(help="What to do with the table, for example roadmaps.")]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Batch id; `status` lists them.")]

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Table to read: CSV, TSV, JSON, JSONL, Parquet, XLSX, a folder, or "
        "sheets:<id>/<worksheet>.",
    ),
]
Batch = Annotated[
    str | None,
    typer.Option("--batch", help="Name of the batch; alone: a batch that was ingested before."),
]
Roadmap = Annotated[
    str | None, typer.Option("--roadmap", help="A roadmap folder by name (workload roadmaps).")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="The table's encoding, where it is not UTF-8.")
]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="The table's column delimiter.")]
Route = Annotated[
    str | None,
    typer.Option("--route", help="Models to try, in order: provider/model, provider/model."),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        "--parallel",
        "--concurrent",
        metavar="N|auto",
        parser=_workers,
        help="Requests in flight at once; `auto` follows the limits and the servers.",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="USD",
        min=_LEAST_USD,
        help="What all runs of the batch may cost together.",
    ),
]
DailyBudget = Annotated[
    float | None,
    typer.Option(
        "--daily-budget",
        metavar="USD",
        min=_LEAST_USD,
        help="What the workload may cost in a day (UTC).",
    ),
]
ProviderDailyBudget = Annotated[
    float | None,
    typer.Option(
        "--provider-daily-budget",
        metavar="USD",
        min=_LEAST_USD,
        help="What may be spent with each provider in a day, by all workloads.",
    ),
]
Fallback = Annotated[
    bool | None,
    typer.Option(
        "--fallback/--no-fallback",
        help="Whether rows with a model of their own may fall back along the route / whether "
        "nothing may.",
        show_default=False,
    ),
]
RateLimit = Annotated[
    float | None, typer.Option("--rate-limit", help="Requests per minute of the key.")
]
Pack = Annotated[int | None, typer.Option("--pack", min=1, help="Rows per request.")]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        "--chunk-size",
        "--batch-size",
        min=1,
        help="Rows per chunk, which is a Dagster partition.",
    ),
]
BatchDelay = Annotated[
    float | None,
    typer.Option(
        "--batch-delay",
        metavar="SECONDS",
        min=0,
        help="Seconds from the start of one chunk to the start of the next.",
    ),
]
SearchRateLimit = Annotated[
    float | None,
    typer.Option(
        "--search-rate-limit",
        metavar="N",
        min=_LEAST_RATE,
        help="Searches per minute of a search provider's key.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Ask about at most so many rows; the rest stay pending."),
]
Lane = Annotated[
    str | None,
    typer.Option(
        "--lane",
        click_type=click.Choice(["realtime", "batch", "auto"]),
        help="How calls travel: in real time, through the provider's Batch API at its price, or "
        "each by price and by the time left to --deadline.",
        show_default=False,
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        metavar="TIME",
        help="For --lane auto: when every row must have ended, as 8h, 90m or 2026-11-23T06:00.",
    ),
]
ItemsPerDay = Annotated[
    int | None,
    typer.Option(
        "--items-per-day",
        min=1,
        help="Ask about at most so many rows of the batch in a day (UTC); run again each day.",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        help="One provider for all rows, with its default model or --model: wins over the rows' "
        "own.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="One model for all rows: wins over the rows' own.", show_default=False
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        click_type=click.Choice(["multi_stage", "single_shot"]),
        help="Articles: how all jobs are written; wins over their column.",
        show_default=False,
    ),
]
NoAhrefs = Annotated[
    bool,
    typer.Option(
        "--no-ahrefs",
        help="Articles: heuristic search results for all jobs; wins over their column.",
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        click_type=click.Choice(["exa", "web", "unified"]),
        help="Flashcards: where the research comes from; unified also plans and votes.",
        show_default=False,
    ),
]
NumFlashcards = Annotated[
    int | None,
    typer.Option("--num-flashcards", metavar="N", min=1, help="Flashcards: cards per topic."),
]
Category = Annotated[
    str | None,
    typer.Option("--category", help="Flashcards: only topics of this category, by name or folder."),
]
Domain = Annotated[
    str | None, typer.Option("--domain", help="Flashcards: only topics of this domain.")
]
Subdomain = Annotated[
    str | None, typer.Option("--subdomain", help="Flashcards: only topics of this subdomain.")
]
Worksheet = Annotated[
    str | None,
    typer.Option("--worksheet", help="Brands: the worksheet of an XLSX; else its first one."),
]
WriteBack = Annotated[
    bool | None,
    typer.Option(
        "--write-back/--no-write-back",
        help="Google Sheets: whether status and outputs are written back.",
        show_default=False,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="One of the workload's own options, as in defs.yaml; give it again for more.",
        show_default=False,
    ),
]

IncludeBlocked = Annotated[
    bool, typer.Option("--include-blocked", help="Ask blocked rows again as well as failed ones.")
]
OutputFolder = Annotated[
    str | None, typer.Option("--output", help="Folder for the report and the deliverables.")
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: an absent one must not outrank defs.yaml."""
    return {
        name: value for name, value in options.items() if value is not None and value is not False
    }


def open_ledger(simulate: bool | None) -> tuple[Realm, Ledger]:
    """The installation's ledger in the realm that --simulate means; the caller closes it."""
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings

    settings = load_settings()
    realm = settings.realm(simulate)
    return realm, Ledger(settings.ledger_url, realm)


def reading_options(
    encoding: str | None = None,
    delimiter: str | None = None,
    *,
    category: str | None = None,
    domain: str | None = None,
    subdomain: str | None = None,
    worksheet: str | None = None,
    write_back: bool | None = None,
) -> dict[str, Any]:
    """How to read the table, as far as it was said; a workload refuses what it does not know."""
    found = given(
        encoding=encoding,
        delimiter=delimiter,
        category=category,
        domain=domain,
        subdomain=subdomain,
        worksheet=worksheet,
    )
    # False says something here.
    return found | ({} if write_back is None else {"write_back": write_back})


def overrides(
    provider: str | None,
    model: str | None,
    strategy: str | None = None,
    no_ahrefs: bool = False,
    options: list[str] | None = None,
    *,
    mode: str | None = None,
    num_flashcards: int | None = None,
) -> dict[str, Any]:
    """The knobs behind options that win over what rows say.

    Raises:
        UsageError: no provider has that model, or an --option is no NAME=VALUE.
    """
    found: dict[str, Any] = {}
    if provider or model:
        from batch_pipeline.workloads.runner import route_named

        found = {"route": route_named(provider, model), "row_routes": False}
    own: dict[str, Any] = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--option {text!r} is no NAME=VALUE.", "Write it like country=us.")
        own[name.strip()] = _value(value.strip())
    if strategy:
        own["strategy"] = strategy
    if no_ahrefs:
        own["use_ahrefs"] = False
    own |= given(mode=mode, num_flashcards=num_flashcards)
    return found | ({"options": own} if own else {})


def _value(text: str) -> Any:
    """An option's value: JSON, else text; nothing at all takes an option back."""
    try:
        # Not as YAML, which takes Norway's `no` for false.
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text or None


def overrides_said(workload: str, knobs: Mapping[str, Any]) -> list[str]:
    """What to tell the user of options that win over what rows say."""
    said = []
    if knobs.get("row_routes") is False:
        said.append(f"All rows take the route {knobs['route']}: it wins over their own.")
    options = knobs.get("options", {}) if workload in _ROWS_CHOOSE else {}
    for name, value in options.items():
        if value is not None and not name.startswith("default_"):
            shown = str(value).lower() if isinstance(value, bool) else value
            said.append(f"{name} = {shown} wins over what the rows say of it.")
    return said


def roadmap_folders(config: WorkloadConfig, option: str) -> list[Path]:
    """Where the workload looks for roadmaps.

    Raises:
        UsageError: `option` belongs to another workload.
    """
    from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload

    domain = config.domain
    if not isinstance(domain, RoadmapsWorkload):
        raise UsageError(
            f"{option} belongs to the workload roadmaps, not to {config.workload}.",
            "Name a table with --input.",
        )
    return list(domain.roadmap_folders)


def choose_source(
    config: WorkloadConfig, input_: str | None, roadmap: str | None, batch: str | None
) -> str | None:
    """What to read, or None for a batch that was ingested before."""
    if input_ and roadmap:
        raise UsageError("--input and --roadmap both name a table.", "Give one of them.")
    if roadmap:
        roadmap_folders(config, "--roadmap")
        return f"{_ROADMAP}{roadmap}"
    if not input_ and not batch:
        raise UsageError(
            "There is nothing to run: no table and no batch is named.",
            f"Give --input TABLE.csv, or --batch with an ingested batch, for example "
            f"`batch-pipeline run {config.workload} --input TABLE.csv`.",
        )
    if input_ is None or input_.startswith(_ROADMAP) or input_.lower().startswith(_SHEETS):
        return input_
    return str(Path(input_).expanduser().resolve())
