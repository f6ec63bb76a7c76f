"""From profiles and search results to a job package.

What belongs here: which searches tell what is wanted, what an article must hold, and the package of
all of it. What does not: fetching and searching (steps.py), profiles (profiles.py), whether intents
fit (alignment.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.ledger.pages import Page
from batch_pipeline.search.base import SearchAnswer
from batch_pipeline.search.intents import Intent, intent_of, intents_of_results, subject_of
from batch_pipeline.workloads.articles.alignment import Intents, align, overlap_note
from batch_pipeline.workloads.articles.jobs import ArticleJob
from batch_pipeline.workloads.articles.package import (
    AnchorProfile,
    Bridge,
    Confidence,
    DataSource,
    GenerationConstraints,
    InputMinimal,
    IntentAlignment,
    IntentExtension,
    IntentNotes,
    JobMeta,
    JobPackage,
    Language,
    PublisherProfile,
    SerpResearch,
    SerpResult,
    SerpSet,
    Strategy,
    TargetProfile,
)
from batch_pipeline.workloads.articles.phrases import (
    Stems,
    read_words,
    stop_words,
    unique,
    word_lists,
    words_of,
)
from batch_pipeline.workloads.articles.profiles import profile_publisher

_QUERY_WORDS = 6
_SHOWN_RESULTS, _SUBTOPICS, _REQUIRED = 3, 5, 10
# Of ten required subtopics, what searchers find goes first, and the page has its say.
_FROM_SEARCH, _FROM_HEADINGS = 5, 3
_SUBTOPIC_WORDS = 5
_HEADING_WORDS = 8
_COMPOUNDING = frozenset(("sv", "no", "da", "de", "nl", "fi"))
_WITHIN = frozenset(("of", "för", "for", "av", "de", "i", "in"))
_PARTS = re.compile(r"\s+[-–—|•·»]+\s+|\s*[|»?!]\s*|[:;(),\"“”«]\s*")


class Queries(NamedTuple):
    """What is searched for, and why."""

    main: str
    clusters: list[str]
    rationale: str


class Brief(BaseModel):
    """One language of words/briefs.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clusters: tuple[str, ...] = Field(min_length=3, max_length=3)
    rationale: str
    angles: dict[Bridge, str]
    forbidden: dict[str, tuple[str, ...]]


@cache
def briefs() -> Mapping[Language, Brief]:
    """What preflight writes, by language."""
    return {
        language: Brief.model_validate(one) for language, one in read_words("briefs.yaml").items()
    }


def subject_entity(target: TargetProfile) -> str:
    """The name that a page's main query has in it; empty where it is about no one name."""
    query = set(words_of(_candidate(target, "").casefold()))
    named = [(name, words_of(name.casefold())) for name in target.core_entities]
    whole = [name for name, parts in named if parts and set(parts) <= query]
    # of a person, a title has the last name only
    last = [name for name, parts in named if parts and parts[-1] in query]
    return max(whole, key=lambda name: name.count(" "), default=next(iter(last), ""))


def subject_phrase(target: TargetProfile) -> str:
    """What a page is about in few words: its name, else the subject nearest to its main query."""
    if name := subject_entity(target):
        return name
    stems = Stems(target.detected_language)
    query = set(stems.all_of(_candidate(target, "")))
    near = [topic for topic in target.core_topics if set(stems.all_of(topic)) & query]
    # Swedish says in one word what English says in two
    phrases = [topic for topic in near if " " in topic or target.detected_language in _COMPOUNDING]
    return next(iter((*phrases, *target.core_entities, *near, *target.core_topics)), "")


def queries_of(target: TargetProfile, anchor: AnchorProfile, language: Language) -> Queries:
    """What people type who look for a page like the target: a main query and three around it.

    Args:
        target: the page.
        anchor: the link's text: where the page says nothing, it must do.
        language: of the article, and so of the searchers.
    """
    brief = briefs()[language]
    main = _main_query(target, anchor.proposed_text)
    entity = _fewer(subject_phrase(target) or main, _QUERY_WORDS - 1)
    words = {"entity": entity, "query": main, "source": _source_of(target, language)}
    clusters = [shape.format(**words).casefold() for shape in brief.clusters]
    return Queries(main, clusters, " ".join(brief.rationale.format(**words).split()))


def serp_set(
    query: str,
    query_type: Literal["main", "cluster"],
    answer: SearchAnswer,
    metrics: Mapping[str, Any],
    fetched_at: str,
    data_source: DataSource,
    *,
    entity: str = "",
    language: Language = "en",
) -> SerpSet:
    """What one search says.

    Args:
        query: what was searched for.
        query_type: main or cluster.
        answer: what was found.
        metrics: what a provider knows about the query; values that are no numbers or texts are left
            out.
        fetched_at: ISO 8601 in UTC.
        data_source: ahrefs, or mock for made up results.
        entity: the name that the query is about (see `subject_entity`): it says nothing of an
            intent.
        language: of the subtopics.
    """
    results = answer.results
    if results:
        primary, secondary = intents_of_results(results, entity)
    else:
        primary, secondary = intent_of(query, entity), None
    return SerpSet(
        query=query,
        query_type=query_type,
        intent_primary=primary,
        intent_secondary=secondary,
        results_count=len(results),
        top_results=[
            SerpResult(
                position=rank,
                title=str(one.get("title") or ""),
                url=str(one.get("url") or ""),
                snippet=str(one.get("snippet") or ""),
                domain=str(one.get("domain") or ""),
                type=str(one.get("type") or "organic"),
            )
            for rank, one in enumerate(results[:_SHOWN_RESULTS], start=1)
        ],
        subtopics=subtopics_of(query, results, language),
        keyword_metrics={
            name: value
            for name, value in metrics.items()
            if value is None or isinstance(value, int | float | str)
        },
        fetched_at=fetched_at,
        data_source=data_source,
    )


def subtopics_of(
    query: str, results: Sequence[Mapping[str, Any]], language: Language, limit: int = _SUBTOPICS
) -> list[str]:
    """What the titles of results are about besides the query, the most frequent first."""
    stems = Stems(language)
    stop = stop_words(language)
    asked = frozenset(stems.all_of(query))
    counts: Counter[frozenset[str]] = Counter()
    shown: dict[frozenset[str], str] = {}
    for result in results:
        site = "".join(words_of(str(result.get("domain") or ""))).casefold()
        of_title: set[frozenset[str]] = set()
        for part in _PARTS.split(str(result.get("title") or "")):
            if "".join(words_of(part)).casefold() in site:
                continue
            phrase = _phrase(part, stop)
            key = frozenset(stems.all_of(phrase))
            if key and not key <= asked and phrase.count(" ") < _SUBTOPIC_WORDS:
                of_title.add(key)
                shown.setdefault(key, phrase)
        counts.update(of_title)
    places = {key: place for place, key in enumerate(shown)}
    ranked = sorted(shown, key=lambda key: (-counts[key], places[key]))
    return [shown[key] for key in ranked[:limit]]


def build_package(
    job: ArticleJob,
    job_id: str,
    created_at: str,
    publisher: PublisherProfile,
    target: TargetProfile,
    anchor: AnchorProfile,
    serp_sets: Sequence[SerpSet],
    queries: Queries,
    strategy: Strategy,
    provider: str,
    serp_source: DataSource,
) -> JobPackage:
    """Everything that is known about a job, and what its article must be.

    Args:
        job: as it was asked for.
        job_id: see record.job_id.
        created_at: ISO 8601 in UTC.
        publisher: profile, with what models said.
        target: the same.
        anchor: the same.
        serp_sets: the main query's first; empty where no search was made.
        queries: what was searched for.
        strategy: how the article is written; the batch's options may win over the job's.
        provider: the same.
        serp_source: where the results come from.
    """
    language = publisher.detected_language
    confidence: Confidence = (
        "high" if serp_sets and all(one.data_source == "ahrefs" for one in serp_sets) else "medium"
    )
    primary, secondary, around = _search_intents(serp_sets, queries)
    intents = align(publisher, target, anchor, primary, secondary)
    words = {
        "publisher": publisher.domain,
        "target": urlsplit(job.target).hostname or job.target,
        "entity": subject_phrase(target) or queries.main,
        "topic": next(iter((*target.core_topics, *target.core_entities)), queries.main),
        "query": queries.main,
    }
    brief = briefs()[language]
    return JobPackage(
        job_meta=JobMeta(
            job_id=job_id,
            created_at=created_at,
            mode=strategy,
            llm_provider=provider,
            serp_source=serp_source,
        ),
        input_minimal=_input(job),
        publisher_profile=publisher,
        target_profile=target,
        anchor_profile=anchor,
        serp_research_extension=SerpResearch(
            main_query=queries.main,
            cluster_queries=queries.clusters,
            queries_rationale=queries.rationale,
            serp_sets=list(serp_sets),
            serp_intent_primary=primary,
            serp_intent_secondary=secondary or around,
            data_confidence=confidence,
        ),
        intent_extension=IntentExtension(
            serp_intent_primary=primary,
            target_page_intent=intents.target,
            anchor_implied_intent=intents.anchor,
            publisher_role_intent=intents.publisher,
            intent_alignment=intents.alignment,
            recommended_bridge_type=intents.bridge,
            recommended_article_angle=brief.angles[intents.bridge].format(**words),
            required_subtopics=required_subtopics(target, serp_sets, language),
            forbidden_angles=[one.format(**words) for one in _forbidden(brief, intents)],
            notes=IntentNotes(rationale=_why(intents), data_confidence=confidence),
        ),
        generation_constraints=GenerationConstraints(language=language),
    )


def failed_package(
    job: ArticleJob,
    job_id: str,
    created_at: str,
    page: Page | None,
    *,
    reason: str,
    strategy: Strategy,
    provider: str,
    serp_source: DataSource = "mock",
    publisher: PublisherProfile | None = None,
) -> JobPackage:
    """The package of a job that ended at preflight: valid, and empty but for why.

    Args:
        job: as it was asked for.
        job_id: see record.job_id.
        created_at: ISO 8601 in UTC.
        page: the target, as far as it was read; None where it was not asked for.
        reason: why nothing is written.
        strategy: how it would have been written.
        provider: the same.
        serp_source: where results would have come from.
        publisher: its profile, where it is known.
    """
    publisher = publisher or profile_publisher(job.publisher, [], job.country)
    unknown: Intent = "mixed"
    return JobPackage(
        job_meta=JobMeta(
            job_id=job_id,
            created_at=created_at,
            mode=strategy,
            llm_provider=provider,
            serp_source=serp_source,
        ),
        input_minimal=_input(job),
        publisher_profile=publisher,
        target_profile=TargetProfile(
            url=job.target,
            http_status=page.status if page else 0,
            title="",
            meta_description="",
            h1="",
            h2_h3_sample=[],
            main_content_excerpt="",
            detected_language="",
            core_entities=[],
            core_topics=[],
            core_offer="",
            candidate_main_queries=[],
        ),
        anchor_profile=AnchorProfile(
            proposed_text=job.anchor,
            type_hint="partial",
            llm_classified_type="partial",
            llm_intent_hint=unknown,
        ),
        serp_research_extension=SerpResearch(
            main_query="",
            cluster_queries=[],
            queries_rationale=f"No search was made: {reason}",
            serp_sets=[],
            serp_intent_primary=unknown,
            serp_intent_secondary=None,
            data_confidence="medium",
        ),
        intent_extension=IntentExtension(
            serp_intent_primary=unknown,
            target_page_intent=unknown,
            anchor_implied_intent=unknown,
            publisher_role_intent=unknown,
            intent_alignment=IntentAlignment(
                anchor_vs_serp="off", target_vs_serp="off", publisher_vs_serp="off", overall="off"
            ),
            recommended_bridge_type="wrapper",
            recommended_article_angle="",
            required_subtopics=[],
            forbidden_angles=[],
            notes=IntentNotes(
                rationale=f"Nothing is known, and nothing is written: {reason}",
                data_confidence="medium",
            ),
        ),
        generation_constraints=GenerationConstraints(language=publisher.detected_language),
    )


def required_subtopics(
    target: TargetProfile, serp_sets: Sequence[SerpSet], language: Language
) -> list[str]:
    """What an article has to speak of: what searchers find, then what the page itself says.

    Words of a page in another language than the article's are left out; its names stay.
    """
    searched = unique((one for found in serp_sets for one in found.subtopics), _REQUIRED, language)
    same = target.detected_language in (language, "")
    stop = stop_words(language)
    headings = [
        heading.strip(" .:?")
        for heading in (target.h2_h3_sample if same else [])
        # exclamations are addressed to the page's own reader
        if len(words_of(heading)) <= _HEADING_WORDS
        and "!" not in heading
        and any(word.casefold() not in stop for word in words_of(heading))
    ]
    own = [*target.core_topics, *target.core_entities] if same else target.core_entities
    return unique(
        (*searched[:_FROM_SEARCH], *headings[:_FROM_HEADINGS], *own, *searched, *headings),
        _REQUIRED,
        language,
    )


def _candidate(target: TargetProfile, anchor: str) -> str:
    known = (*target.candidate_main_queries, *target.core_topics, *target.core_entities, anchor)
    return next((one for one in known if one.strip()), target.title)


def _main_query(target: TargetProfile, anchor: str) -> str:
    query = _candidate(target, anchor)
    name = subject_entity(target)
    if name and intent_of(query, name) == "navigational_brand":
        # who types a name alone looks for its home page, and for no article
        stems = Stems(target.detected_language)
        known = set(stems.all_of(query))
        more = [one for one in target.core_topics if not set(stems.all_of(one)) & known]
        query = f"{query} {more[0]}" if more else query
    return _fewer(query, _QUERY_WORDS)


def _source_of(target: TargetProfile, language: Language) -> str:
    if target.candidate_main_queries:
        return "titel" if language == "sv" else "title"
    return "länktext" if language == "sv" else "link text"


def _fewer(text: str, words: int) -> str:
    return " ".join(text.split()[:words]).strip(" ,;:-–—?!").casefold()


def _phrase(text: str, stop: frozenset[str]) -> str:
    """What a part of a title speaks of, without the words that only say what kind of page it is."""
    told = set(subject_of(text).split())
    kinds = word_lists().kinds_of_pages
    runs: list[list[str]] = [[]]
    for word in words_of(text):
        low = word.casefold()
        if low in _WITHIN and runs[-1]:
            runs[-1].append(low)
        elif low in stop or low in kinds or not set(re.split(r"\W+", low)) & told:
            runs.append([])
        else:
            runs[-1].append(low)
    for run in runs:
        while run and run[-1] in _WITHIN:
            run.pop()
    # the first of the longest: "experiences with data structures"
    longest: list[str] = max(runs, key=len)
    phrase = " ".join(longest)
    return phrase if any(len(word) > 2 and not word.isdigit() for word in phrase.split()) else ""


def _search_intents(
    serp_sets: Sequence[SerpSet], queries: Queries
) -> tuple[Intent, Intent | None, Intent | None]:
    """What the main search serves first and second, and what those around it serve besides.

    Only the main search decides what fits: the others ask for comparisons, and find them.
    """
    if not serp_sets:
        return intent_of(queries.main), None, None
    main, *others = serp_sets
    around: Counter[Intent] = Counter(
        one.intent_primary
        for one in others
        if one.intent_primary not in (main.intent_primary, "mixed")
    )
    besides = next((intent for intent, _ in around.most_common(1)), None)
    return main.intent_primary, main.intent_secondary, besides


def _forbidden(brief: Brief, intents: Intents) -> Iterator[str]:
    # writers are told the first three
    if intents.alignment.overall == "off":
        yield from brief.forbidden["off"]
    yield from brief.forbidden.get(intents.serp_primary, ())
    yield from brief.forbidden["always"]


def _why(intents: Intents) -> str:
    second = f", then {intents.serp_secondary}" if intents.serp_secondary else ""
    found = intents.alignment
    return (
        f"The search serves {intents.serp_primary}{second}. The link text promises "
        f"{intents.anchor} ({found.anchor_vs_serp}), the target is for "
        f"{intents.target} ({found.target_vs_serp}), "
        f"readers of the publisher come for {intents.publisher} ({found.publisher_vs_serp}): "
        f"{found.overall} as a whole, so the bridge is {intents.bridge}. "
        f"{overlap_note(intents.overlap)}"
    )


def _input(job: ArticleJob) -> InputMinimal:
    return InputMinimal(
        publisher_domain=job.publisher, target_url=job.target, anchor_text=job.anchor
    )
