"""The steps of an article job: which follow which, and what the local ones do.

What belongs here: the step list and its glue. What does not: what the LLM steps are told
(briefs.py), profiles and packages (profiles.py, preflight.py), quality rules (qc/).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from batch_pipeline.engine.searching import SearchUnavailableError
from batch_pipeline.engine.step import (
    AnyStep,
    Done,
    LocalStep,
    LocalWork,
    Row,
    Step,
    in_thread,
    with_tools,
)
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.fetch.async_pages import AsyncPages
from batch_pipeline.fetch.settings import load_fetch_settings
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.providers.base import ProviderError
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.search.heuristic import heuristic_results
from batch_pipeline.workloads.articles.briefs import (
    CLASSIFY_ANCHOR,
    DRAFT,
    OUTLINE,
    POLISH,
    PROFILE_PUBLISHER,
    PROFILE_TARGET,
    SINGLE_SHOT,
    Briefs,
    anchor_content,
    package_of,
    preflight_of,
    publisher_content,
    target_content,
)
from batch_pipeline.workloads.articles.jobs import AUTO, ArticleJob, job_of
from batch_pipeline.workloads.articles.models import (
    AnchorClass,
    Article,
    Outline,
    PublisherTone,
    TargetTopics,
)
from batch_pipeline.workloads.articles.options import ArticleOptions, Choices, choices_of
from batch_pipeline.workloads.articles.package import (
    DataSource,
    Language,
    PublisherProfile,
    SerpSet,
    TargetProfile,
)
from batch_pipeline.workloads.articles.preflight import (
    Queries,
    build_package,
    failed_package,
    queries_of,
    serp_set,
    subject_entity,
)
from batch_pipeline.workloads.articles.profiles import (
    anchor_with_llm,
    profile_anchor,
    profile_publisher,
    profile_target,
    publisher_with_llm,
    target_problem,
    target_with_llm,
)
from batch_pipeline.workloads.articles.qc.autofix import control
from batch_pipeline.workloads.articles.qc.checks import check_package
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.qc.rules import QcRules
from batch_pipeline.workloads.articles.record import (
    PACKAGE,
    PREFLIGHT,
    QC,
    EntryType,
    LogEntry,
    PackageRecord,
    PreflightRecord,
    QcRecord,
    iso,
    job_id,
)
from batch_pipeline.workloads.operator_files import Prompts

_SERP = "ahrefs"
_KEYWORDS = "ahrefs-keywords"
_SEARCHES = {_SERP: 4, _KEYWORDS: 1}
"""Of a job: its main query with three around it, and how often the main one is searched."""

_RESULTS = 10
_AHREFS: DataSource = "ahrefs"
_MOCK: DataSource = "mock"


@dataclass(slots=True)
class _Log:
    """A step's entries in the job's execution log."""

    tools: Tools
    entries: list[LogEntry] = field(default_factory=list)

    def now(self) -> str:
        return iso(self.tools.clock.now())

    def add(self, kind: EntryType, message: str, **details: Any) -> None:
        self.entries.append(LogEntry(at=self.now(), type=kind, message=message, details=details))

    def moves(self, before: str, after: str) -> None:
        """The job changes its state."""
        self.add("state_transition", f"{before} > {after}", before=before, after=after)


class ArticleSteps:
    """Makes the steps of a run.

    Args:
        prompts: what all writing steps are told, and by step its own task.
        rules: quality rules.
        options: the run's.
        timeout_s: seconds until a call counts as timed out.
    """

    def __init__(
        self,
        prompts: Prompts,
        rules: QcRules,
        options: ArticleOptions,
        timeout_s: float,
    ) -> None:
        self._prompts = prompts
        self._rules = rules
        self._options = options
        self._timeout_s = timeout_s
        self._briefs = Briefs(rules)

    def make(self) -> Sequence[AnyStep]:
        """The steps, in order."""
        briefs = self._briefs
        return (
            LocalStep(PREFLIGHT, self._open_preflight, at_once=32),
            self._profile(PROFILE_PUBLISHER, PublisherTone, publisher_content, 400, "publisher"),
            self._profile(PROFILE_TARGET, TargetTopics, target_content, 300, "target"),
            self._profile(CLASSIFY_ANCHOR, AnchorClass, anchor_content, 200, "anchor", "target"),
            LocalStep(
                PACKAGE,
                with_tools(self._package),
                checkpoint=True,
                at_once=32,
                searches=_SEARCHES,
                searching=lambda row: self._choices(row).use_ahrefs,
            ),
            self._writing(SINGLE_SHOT, "single_shot", Article, briefs.job, 4_000, (1_900, 2_000)),
            self._writing(OUTLINE, "multi_stage", Outline, briefs.job, 1_000, (1_900, 350)),
            self._writing(DRAFT, "multi_stage", Article, briefs.draft, 3_000, (2_300, 2_000)),
            self._writing(POLISH, "multi_stage", Article, briefs.polish, 3_500, (4_000, 2_100)),
            LocalStep(QC, in_thread(self._check)),
        )

    # ---- LLM steps ----

    def _profile(
        self, name: str, model: type[Any], content: Any, output_tokens: int, *shared: str
    ) -> Step:
        return Step(
            name=name,
            system_prompt=self._prompts.task(name),
            output_model=model,
            content=content,
            items_name="subjects",
            output_tokens_per_item=output_tokens,
            output_tokens_base=50,
            timeout_s=self._timeout_s,
            temperature=0.3,
            applies=lambda row: self._choices(row).enable_llm_profiling,
            optional=True,
            # A cheap model does, and jobs of one publisher share what it says.
            by_run_route=True,
            typical_tokens=(500, 120),
            shared_by=lambda row: [row.get(column) for column in shared],
        )

    def _writing(
        self,
        name: str,
        strategy: str,
        model: type[Any],
        content: Any,
        output_tokens: int,
        typical: tuple[int, int],
    ) -> Step:
        return Step(
            name=name,
            system_prompt=self._prompts.with_shared(name),
            output_model=model,
            content=content,
            items_name="jobs",
            output_tokens_per_item=output_tokens,
            output_tokens_base=100,
            timeout_s=self._timeout_s,
            temperature=0.7,
            applies=lambda row: self._choices(row).strategy == strategy,
            typical_tokens=typical,
        )

    def _choices(self, row: Row) -> Choices:
        return choices_of(row, self._options)

    # ---- preflight ----

    @asynccontextmanager
    async def _open_preflight(self, tools: Tools) -> AsyncIterator[LocalWork]:
        settings = load_fetch_settings(simulator=tools.simulator)
        async with AsyncPages(tools.ledger, settings, clock=tools.clock) as pages:

            async def work(row: Row, place: Place) -> Done:
                return await self._preflight(row, place, tools, pages)

            yield work

    async def _preflight(self, row: Row, place: Place, tools: Tools, pages: AsyncPages) -> Done:
        """Fetch and profile the publisher and the target."""
        log = _Log(tools)
        log.moves("RECEIVE", "PREFLIGHT")
        choices = self._choices(row)
        target_page, home = await asyncio.gather(
            pages.read(row["target"]),
            pages.read(f"https://{row['publisher']}/", text_required=False),
        )
        log.add("info", "target page", url=target_page.final_url, status=target_page.status)
        if problem := target_problem(target_page):
            log.add("error", problem)
            log.moves("PREFLIGHT", "ABORT")
            package = failed_package(
                _job(row, choices),
                _id(place),
                log.now(),
                target_page,
                reason=problem,
                strategy=choices.strategy,
                provider=row.get("llm_provider") or AUTO,
            )
            record = PackageRecord(package=package, log=log.entries)
            return Done(record.model_dump(mode="json"), Outcome.FAILED, "preflight", problem)
        if home.error is not None:
            log.add(
                "warning",
                f"The publisher's home page could not be read ({home.error}): its profile goes by "
                "its name and country.",
            )
        publisher = await asyncio.to_thread(
            profile_publisher, row["publisher"], [home], choices.country
        )
        target = await asyncio.to_thread(profile_target, row["target"], target_page)
        record_ = PreflightRecord(
            publisher=publisher,
            target=target,
            anchor=profile_anchor(row["anchor"], target),
            log=log.entries,
        )
        return Done(record_.model_dump(mode="json"))

    # ---- package ----

    async def _package(self, row: Row, place: Place, tools: Tools) -> Done:
        """Search, and put all that is known together."""
        log = _Log(tools)
        choices = self._choices(row)
        found = preflight_of(row)
        for name in (PROFILE_PUBLISHER, PROFILE_TARGET, CLASSIFY_ANCHOR):
            if choices.enable_llm_profiling and row.get(name) is None:
                log.add("warning", f"The model gave no {name}: heuristics stand in.")
        publisher = publisher_with_llm(found.publisher, row.get(PROFILE_PUBLISHER))
        target = target_with_llm(found.target, row.get(PROFILE_TARGET))
        anchor = anchor_with_llm(found.anchor, row.get(CLASSIFY_ANCHOR))
        queries = queries_of(target, anchor, publisher.detected_language)
        sets = await self._search(queries, target, choices, publisher, place, tools, log)
        source: DataSource = (
            "ahrefs" if all(one.data_source == "ahrefs" for one in sets) else "mock"
        )
        built = await asyncio.to_thread(
            build_package,
            _job(row, choices),
            _id(place),
            log.now(),
            publisher,
            target,
            anchor,
            sets,
            queries,
            choices.strategy,
            row.get("llm_provider") or AUTO,
            source,
        )
        bounds = self._rules.thresholds
        constraints = built.generation_constraints.model_copy(
            update={
                "min_word_count": bounds.words.minimum,
                "max_anchor_usages": bounds.link.max,
            }
        )
        package = built.model_copy(update={"generation_constraints": constraints})
        now = tools.clock.now()
        report = check_package(package, self._rules, job_id=_id(place), at=now)
        if report.status == "BLOCKED" and self._rules.policies.stop_before_writing:
            log.add("qc_result", "BLOCKED before anything was written", status=report.status)
            log.moves("PREFLIGHT", "BLOCK")
            stopped = PackageRecord(package=package, report=report, log=log.entries)
            return Done(
                stopped.model_dump(mode="json"),
                Outcome.BLOCKED,
                "qc",
                f"{_worst(report)} Nothing was written yet, and no writing paid for. "
                f"{_decide(place)}",
            )
        log.moves("PREFLIGHT", "WRITE")
        return Done(PackageRecord(package=package, log=log.entries).model_dump(mode="json"))

    async def _search(
        self,
        queries: Queries,
        target: TargetProfile,
        choices: Choices,
        publisher: PublisherProfile,
        place: Place,
        tools: Tools,
        log: _Log,
    ) -> list[SerpSet]:
        """The SERPs of the main query and its cluster; heuristic ones where none can be had."""
        texts = [queries.main, *queries.clusters]
        entity, language = subject_entity(target), publisher.detected_language
        answers: list[SearchAnswer | None] = [None] * len(texts)
        metrics: dict[str, Any] = {}
        if choices.use_ahrefs:
            try:
                answers = list(
                    await asyncio.gather(
                        *(_ask(tools, _SERP, text, choices.country, place, log) for text in texts)
                    )
                )
                answers = [
                    _unless_empty(text, answer, log)
                    for text, answer in zip(texts, answers, strict=True)
                ]
                measured = await _ask(tools, _KEYWORDS, queries.main, choices.country, place, log)
                metrics = measured.facts if measured is not None else {}
            except SearchUnavailableError as error:
                log.add("warning", f"No real search results: {error}. Heuristic ones stand in.")
        else:
            log.add("info", "Ahrefs is off for this job: heuristic search results stand in.")
        sets = []
        for rank, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            if answer is None:
                found, source = self._stand_in(text, target, choices, language), _MOCK
            else:
                found, source = answer, _AHREFS
            sets.append(
                serp_set(
                    text,
                    "main" if rank == 0 else "cluster",
                    found,
                    metrics if rank == 0 else {},
                    log.now(),
                    source,
                    entity=entity,
                    language=language,
                )
            )
        return sets

    def _stand_in(
        self, text: str, target: TargetProfile, choices: Choices, language: Language
    ) -> SearchAnswer:
        """Heuristic search results."""
        return heuristic_results(
            text,
            entity=subject_entity(target),
            topics=target.core_topics,
            language=language,
            country=choices.country,
        )

    # ---- QC ----

    def _check(self, row: Row, place: Place, tools: Tools) -> Done:
        """Control the article, with one automatic repair; the verdict is the job's."""
        log = _Log(tools)
        log.moves("WRITE", "QC")
        package = package_of(row)
        written = Article.model_validate(row.get(POLISH) or row[SINGLE_SHOT])
        found = control(written, package, self._rules, job_id=_id(place), at=tools.clock.now())
        if found.first_report is not None:
            log.add("qc_result", found.first_report.status, status=found.first_report.status)
            log.moves("QC", "RESCUE")
            for line in found.report.autofix_logs:
                log.add("autofix", line)
            log.moves("RESCUE", "QC")
        report = found.report
        log.add("qc_result", report.status, status=report.status, issues=len(report.issues))
        blocked = report.status == "BLOCKED" or report.human_signoff_required
        log.moves("QC", "BLOCK" if blocked else "DELIVER")
        record = QcRecord(
            article=found.article,
            report=report,
            first_report=found.first_report,
            # A retry may write otherwise than its package, which it keeps, was made for.
            strategy="multi_stage" if row.get(POLISH) else "single_shot",
            model=place.model,
            log=log.entries,
        ).model_dump(mode="json")
        if not blocked:
            return Done(record)
        why = _worst(report) if report.status == "BLOCKED" else report.signoff_reason
        return Done(record, Outcome.BLOCKED, "qc", f"{why} {_decide(place)}")


def _id(place: Place) -> str:
    return job_id(place.batch_id, place.batch_created_at, place.item_id)


def _job(row: Row, choices: Choices) -> ArticleJob:
    """The job, with what holds for it in this run."""
    return job_of(row).model_copy(
        update={
            "strategy": choices.strategy,
            "country": choices.country,
            "use_ahrefs": choices.use_ahrefs,
            "enable_llm_profiling": choices.enable_llm_profiling,
        }
    )


def _worst(report: QcReport) -> str:
    """The reasons of a block, the worst first."""
    blocking = [one for one in report.issues if one.severity in ("CRITICAL", "HIGH")]
    return " ".join(f"{one.severity} ({one.category}): {one.message}" for one in blocking)


def _decide(place: Place) -> str:
    return f"`batch-pipeline review show {place.batch_id} {place.number}` shows it for a decision."


async def _ask(
    tools: Tools, provider: str, text: str, country: str, place: Place, log: _Log
) -> SearchAnswer | None:
    """Ask one query; None where just this one has no answer."""
    try:
        return await tools.search(provider, SearchQuery(text, country, _RESULTS), place)
    except ProviderError as error:
        log.add("warning", f"{provider} gave nothing for {text!r}: {error.message}")
        return None


def _unless_empty(text: str, answer: SearchAnswer | None, log: _Log) -> SearchAnswer | None:
    """An answer that has results; one without any tells nothing of what searchers want."""
    if answer is None or answer.results:
        return answer
    log.add("warning", f"Ahrefs knows no results for {text!r}: heuristic ones stand in.")
    return None
