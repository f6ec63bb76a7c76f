"""Job packages and articles that are right in every respect but those that a test names.

What belongs here: their builders. What does not: what quality control must say of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import batch_pipeline
from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import (
    Alignment,
    AnchorProfile,
    AnchorType,
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
    SerpSet,
    TargetProfile,
)
from batch_pipeline.workloads.articles.qc.rules import QcRules, load_rules
from batch_pipeline.workloads.articles.qc.text import parse

JOB_ID = "job_20251107_140000_0a1b2c3d"
AT = 1762524000.0
FOLDER = Path(batch_pipeline.__file__).parent / "defs" / "articles"

TARGET = "https://hemguiden.example/bostad"
ANCHOR = "Hemguiden"
SWEDISH_SOURCES = ("https://www.skatteverket.se/villa", "https://www.dn.se/ekonomi/bostad")
ENGLISH_SOURCES = ("https://www.who.int/housing", "https://www.reuters.com/markets/homes")
TERMS: dict[Language, list[str]] = {
    "sv": [
        "ränta",
        "amortering",
        "kontantinsats",
        "lånelöfte",
        "bostadsmarknad",
        "skuldkvot",
        "boendekostnad",
        "riskbuffert",
        "bindningstid",
        "energiklass",
    ],
    "en": [
        "interest rate",
        "repayment",
        "deposit",
        "preapproval",
        "housing market",
        "debt ratio",
        "running cost",
        "buffer",
        "fixed term",
        "energy class",
    ],
}
_FILLER: dict[Language, list[str]] = {
    "sv": [
        "Många familjer vill veta hur de ska tänka innan de flyttar.",
        "Det är klokt att ta god tid på sig och jämföra.",
        "Den som läser på i förväg slipper ofta tråkiga överraskningar senare.",
        "Grannar och vänner kan berätta hur det verkligen är att bo där.",
        "På våren är det fler som visar sina hem på söndagarna.",
    ],
    "en": [
        "Many families want to know what to think about before they move.",
        "It is wise to take plenty of time and to compare.",
        "Those who read up in advance often avoid unpleasant surprises later.",
        "Neighbours and friends can tell what it is really like to live there.",
        "In the spring more people show their homes on Sundays.",
    ],
}
_WORD: dict[Language, str] = {"sv": "också", "en": "also"}

Place = Literal["h1", "h2", "h3", "intro", "middle", "last"]


@cache
def rules() -> QcRules:
    """The rules that the project is shipped with."""
    return load_rules(FOLDER)


def with_policies(**changes: object) -> QcRules:
    """The shipped rules with other policies."""
    shipped = rules()
    return shipped.model_copy(update={"policies": shipped.policies.model_copy(update=changes)})


def package(
    *,
    language: Language = "sv",
    anchor: str = ANCHOR,
    anchor_type: AnchorType = "brand",
    target: str = TARGET,
    publisher: str = "tidning.example",
    overall: Alignment = "aligned",
    terms: Sequence[str] | None = None,
    min_words: int = 900,
    max_usages: int = 2,
    accepted: Sequence[str] = (),
) -> JobPackage:
    """A job package; `terms` are at most eight, in the order of `lsi_terms`."""
    words = list(TERMS[language][:8] if terms is None else terms)
    return JobPackage(
        job_meta=JobMeta(
            job_id=JOB_ID,
            created_at="2025-11-07T14:00:00.000+00:00",
            mode="multi_stage",
            llm_provider="auto",
            serp_source="mock",
        ),
        input_minimal=InputMinimal(
            publisher_domain=publisher, target_url=target, anchor_text=anchor
        ),
        publisher_profile=PublisherProfile(
            domain=publisher,
            sample_urls=[],
            about_excerpt="",
            detected_language=language,
            topic_focus=[],
            tone_class="consumer_magazine",
            allowed_commerciality="medium",
        ),
        target_profile=TargetProfile(
            url=target,
            http_status=200,
            title="Bostad",
            meta_description="",
            h1="Bostad",
            h2_h3_sample=[],
            main_content_excerpt="",
            detected_language=language,
            core_entities=[],
            core_topics=[],
            core_offer="",
            candidate_main_queries=[],
        ),
        anchor_profile=AnchorProfile(
            proposed_text=anchor,
            type_hint=anchor_type,
            llm_classified_type=anchor_type,
            llm_intent_hint="info_primary",
        ),
        serp_research_extension=SerpResearch(
            main_query="bostad",
            cluster_queries=[],
            queries_rationale="",
            serp_sets=[
                SerpSet(
                    query="bostad",
                    query_type="main",
                    intent_primary="info_primary",
                    intent_secondary=None,
                    results_count=10,
                    top_results=[],
                    subtopics=words[:3],
                    keyword_metrics={},
                    fetched_at="2025-11-07T14:00:00.000+00:00",
                    data_source="mock",
                )
            ],
            serp_intent_primary="info_primary",
            serp_intent_secondary=None,
            data_confidence="medium",
        ),
        intent_extension=IntentExtension(
            serp_intent_primary="info_primary",
            target_page_intent="info_primary",
            anchor_implied_intent="info_primary",
            publisher_role_intent="info_primary",
            intent_alignment=IntentAlignment(
                anchor_vs_serp="aligned",
                target_vs_serp=overall,
                publisher_vs_serp="aligned",
                overall=overall,
            ),
            recommended_bridge_type="strong",
            recommended_article_angle="",
            required_subtopics=words[3:8],
            forbidden_angles=[],
            notes=IntentNotes(rationale="", data_confidence="medium"),
        ),
        generation_constraints=GenerationConstraints(
            language=language,
            min_word_count=min_words,
            max_anchor_usages=max_usages,
            accepted_issues=list(accepted),
        ),
    )


def article(
    *,
    words: int = 1250,
    language: Language = "sv",
    near: Sequence[str] | int = 6,
    far: Sequence[str] = (),
    link: str = f"[{ANCHOR}]({TARGET})",
    places: Sequence[Place] = ("middle",),
    sources: Sequence[str] | None = None,
    end: str = "",
) -> Article:
    """An article of four sections and exactly so many words.

    Args:
        words: as quality control counts them; the text is filled up to them.
        language: of all sentences.
        near: what stands two sentences behind the link of the middle; a number takes so many of
            the usual terms.
        far: what stands three sentences behind it.
        link: the link as it is written.
        places: where it stands, once for each.
        sources: addresses that the second section links to.
        end: what is put behind everything.
    """
    terms = TERMS[language][:near] if isinstance(near, int) else list(near)
    usual = SWEDISH_SOURCES if language == "sv" else ENGLISH_SOURCES
    cited = ", ".join(f"[källa]({url})" for url in (usual if sources is None else sources))
    linked = {place: link if place in places else "" for place in get_args(Place)}
    more = [link for place in places if place == "middle"][1:]

    def build(padding: list[str]) -> str:
        half = len(padding) // 2
        parts = [
            f"# Bostad {linked['h1']}",
            f"Start. {_about(linked['intro'])}",
            "## Ett",
            f"{' '.join(padding[:half])} Ok. ({cited})",
            f"## Två {linked['h2']}",
            f"### Tre {linked['h3']}" if linked["h3"] else "",
            f"Ja. {_about(linked['middle'])} Så. {_listed(terms)} {_listed(list(far))}"
            f" {' '.join(_about(one) for one in more)}",
            "## Fyra",
            f"{' '.join(padding[half:])} Slut. {_about(linked['last'])}",
            end,
        ]
        return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"

    return Article(title="Bostad", markdown=build(_padding(words - _count(build([])), language)))


def short(text: str) -> Article:
    """An article of just this text."""
    return Article(title="Bostad", markdown=text)


def _count(markdown: str) -> int:
    return parse(markdown).words


def _padding(words: int, language: Language) -> list[str]:
    if words < 0:
        raise AssertionError(f"{-words} words too many")
    sentences: list[str] = []
    while words:
        sentence = _FILLER[language][len(sentences) % len(_FILLER[language])]
        size = len(sentence.split())
        if size > words:
            sentence = " ".join([_WORD[language].capitalize(), *[_WORD[language]] * (words - 1)])
            sentence, size = f"{sentence}.", words
        sentences.append(sentence)
        words -= size
    return sentences


def _about(link: str) -> str:
    return f"Se {link}." if link else ""


def _listed(terms: list[str]) -> str:
    return f"Om {', '.join(terms)}." if terms else ""
