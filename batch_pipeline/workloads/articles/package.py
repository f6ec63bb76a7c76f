"""The job package: all that preflight finds out about a job, and what its article must do.

What belongs here: its models, which are its published schema. What does not: finding it out
(preflight.py), checking articles against it (qc/).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.search.intents import Intent

SPEC_VERSION: Literal["Next-A1-SERP-First-v1"] = "Next-A1-SERP-First-v1"

Language = Literal["sv", "en"]
Alignment = Literal["aligned", "partial", "off"]
Bridge = Literal["strong", "pivot", "wrapper"]
Tone = Literal["academic", "authority_public", "consumer_magazine", "hobby_blog"]
AnchorType = Literal["exact", "partial", "brand", "generic"]
Confidence = Literal["high", "medium"]
DataSource = Literal["ahrefs", "mock"]
Strategy = Literal["multi_stage", "single_shot"]

Ten = Annotated[list[str], Field(max_length=10)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobMeta(_Block):
    """What the job is."""

    job_id: str = Field(
        description="job_<UTC YYYYMMDD_HHMMSS>_<8 hex>", pattern=r"^job_\d{8}_\d{6}_[0-9a-f]{8}$"
    )
    created_at: str = Field(description="When the package was made, ISO 8601 in UTC.")
    spec_version: Literal["Next-A1-SERP-First-v1"] = SPEC_VERSION
    mode: Strategy = Field(description="How the article is written.")
    llm_provider: str = Field(description="What the job asked for; `auto` for the run's route.")
    serp_source: DataSource = Field(description="Where the SERPs come from.")


class InputMinimal(_Block):
    """The job as it was asked for."""

    publisher_domain: str = Field(min_length=1)
    target_url: str = Field(min_length=1)
    anchor_text: str = Field(min_length=1)


class PublisherProfile(_Block):
    """Where the article is to appear."""

    domain: str
    sample_urls: list[str] = Field(max_length=3)
    about_excerpt: str = Field(max_length=300)
    detected_language: Language
    topic_focus: Ten
    tone_class: Tone
    allowed_commerciality: Literal["low", "medium", "high"]
    brand_safety_notes: str = ""


class TargetProfile(_Block):
    """The page that the article links to."""

    url: str
    http_status: int = Field(description="0 where there was no answer.")
    title: str
    meta_description: str
    h1: str
    h2_h3_sample: Ten
    main_content_excerpt: str = Field(max_length=500)
    detected_language: str = Field(description="ISO 639-1, empty where it cannot be told.")
    core_entities: Ten
    core_topics: Ten
    core_offer: str
    candidate_main_queries: list[str] = Field(max_length=5)


class AnchorProfile(_Block):
    """The text of the link."""

    proposed_text: str
    type_hint: AnchorType = Field(description="By rules.")
    llm_classified_type: AnchorType = Field(description="By the model; else the hint.")
    llm_intent_hint: Intent


class SerpResult(_Block):
    """One result of a search."""

    position: int = Field(ge=1)
    title: str
    url: str
    snippet: str
    domain: str
    type: str = Field(description="organic, forum, video, shop ...")


class SerpSet(_Block):
    """What one search says."""

    query: str
    query_type: Literal["main", "cluster"]
    intent_primary: Intent
    intent_secondary: Intent | None
    results_count: int = Field(ge=0)
    top_results: list[SerpResult] = Field(max_length=3)
    subtopics: list[str] = Field(max_length=5)
    keyword_metrics: dict[str, float | int | str | None]
    fetched_at: str
    data_source: DataSource


class SerpResearch(_Block):
    """What people search for, and find, about the target's topic."""

    main_query: str
    cluster_queries: list[str] = Field(max_length=3)
    queries_rationale: str
    serp_sets: list[SerpSet] = Field(max_length=4, description="The main query's first.")
    serp_intent_primary: Intent
    serp_intent_secondary: Intent | None
    data_confidence: Confidence = Field(description="high: real results; medium: heuristic ones.")


class IntentAlignment(_Block):
    """How well the parts fit to what searchers want."""

    anchor_vs_serp: Alignment
    target_vs_serp: Alignment
    publisher_vs_serp: Alignment
    overall: Alignment


class IntentNotes(_Block):
    """Why."""

    rationale: str
    data_confidence: Confidence


class IntentExtension(_Block):
    """What the article must be about to fit all of them."""

    serp_intent_primary: Intent
    target_page_intent: Intent
    anchor_implied_intent: Intent
    publisher_role_intent: Intent
    intent_alignment: IntentAlignment
    recommended_bridge_type: Bridge
    recommended_article_angle: str
    required_subtopics: Ten
    forbidden_angles: list[str]
    notes: IntentNotes


class GenerationConstraints(_Block):
    """What holds for the article."""

    language: Language
    min_word_count: int = Field(default=900, ge=300)
    max_anchor_usages: int = Field(default=2, ge=1)
    anchor_policy: str = "In the middle section, as a Markdown link, never in H1 or H2."
    accepted_issues: list[str] = Field(
        default_factory=list,
        description="QC categories that a reviewer has accepted for this job: they do not block.",
    )


class JobPackage(_Block):
    """All that is known about a job before its article is written: eight blocks."""

    job_meta: JobMeta
    input_minimal: InputMinimal
    publisher_profile: PublisherProfile
    target_profile: TargetProfile
    anchor_profile: AnchorProfile
    serp_research_extension: SerpResearch
    intent_extension: IntentExtension
    generation_constraints: GenerationConstraints


def lsi_terms(package: JobPackage) -> list[str]:
    """Terms that belong near the link: at most 10, none twice.

    Three subtopics of each of the first two SERPs, five required subtopics, three topics of the
    target.
    """
    sets = package.serp_research_extension.serp_sets[:2]
    found = [term for one in sets for term in one.subtopics[:3]]
    found += package.intent_extension.required_subtopics[:5]
    found += package.target_profile.core_topics[:3]
    unique: dict[str, str] = {}
    for term in (one.strip() for one in found):
        if term:
            unique.setdefault(term.casefold(), term)
    return list(unique.values())[:10]
