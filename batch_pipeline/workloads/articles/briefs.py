"""What each LLM step of an article is told: a row's content for the prompt, and for the cache key.

What belongs here: which parts of the package a step sees. What does not: the words around it
(defs/articles/*.md), finding the parts out (preflight.py).

Nothing here holds a time or an id: two jobs with the same brief are the same question.
"""

from __future__ import annotations

from typing import Any

from batch_pipeline.engine.step import Row
from batch_pipeline.workloads.articles.package import JobPackage, lsi_terms
from batch_pipeline.workloads.articles.qc.checks import disclaimer_of, verticals_of
from batch_pipeline.workloads.articles.qc.rules import QcRules
from batch_pipeline.workloads.articles.record import PACKAGE, PREFLIGHT, PreflightRecord

OUTLINE = "outline"
DRAFT = "draft"
POLISH = "polish"
SINGLE_SHOT = "single_shot"
PROFILE_PUBLISHER = "profile_publisher"
PROFILE_TARGET = "profile_target"
CLASSIFY_ANCHOR = "classify_anchor"
"""Names of the LLM steps: later ones see their answers under these."""


def preflight_of(row: Row) -> PreflightRecord:
    """What the pages of a job say."""
    return PreflightRecord.model_validate(row[PREFLIGHT])


def package_of(row: Row) -> JobPackage:
    """The job package of a row that is through the step `package`."""
    return JobPackage.model_validate(row[PACKAGE]["package"])


def publisher_content(row: Row) -> dict[str, Any]:
    """The publisher as the step `profile_publisher` sees it."""
    profile = preflight_of(row).publisher
    return {
        "site": profile.domain,
        "about": profile.about_excerpt,
        "subjects_found": profile.topic_focus,
        "language": profile.detected_language,
        "tone_by_rules": profile.tone_class,
    }


def target_content(row: Row) -> dict[str, Any]:
    """The target as the step `profile_target` sees it."""
    profile = preflight_of(row).target
    return {
        "title": profile.title,
        "description": profile.meta_description,
        "headings": [text for text in (profile.h1, *profile.h2_h3_sample) if text],
        "text": profile.main_content_excerpt,
    }


def anchor_content(row: Row) -> dict[str, Any]:
    """The link as the step `classify_anchor` sees it."""
    found = preflight_of(row)
    return {
        "link_text": found.anchor.proposed_text,
        "page": found.target.title,
        "subjects": found.target.core_topics[:5],
        "names": found.target.core_entities[:5],
        "type_by_rules": found.anchor.type_hint,
        "intent_by_rules": found.anchor.llm_intent_hint,
    }


class Briefs:
    """Contents of the writing steps.

    Args:
        rules: the bounds that the article is checked against later.
    """

    def __init__(self, rules: QcRules) -> None:
        self._rules = rules

    def job(self, row: Row) -> dict[str, Any]:
        """The brief: what the steps `outline` and `single_shot` see."""
        package = package_of(row)
        intent, limits = package.intent_extension, package.generation_constraints
        target, publisher = package.target_profile, package.publisher_profile
        words, trust = self._rules.thresholds.words, self._rules.thresholds.trust
        tiers = self._rules.policies.tiers(limits.language)
        return {
            "language": limits.language,
            "min_words": limits.min_word_count,
            "recommended_words": words.recommended,
            "max_words": words.maximum,
            "link": {
                "anchor": package.anchor_profile.proposed_text,
                "url": package.input_minimal.target_url,
            },
            "angle": intent.recommended_article_angle,
            "bridge": intent.recommended_bridge_type,
            "intent": intent.serp_intent_primary,
            "required_subtopics": intent.required_subtopics[:5],
            "forbidden_angles": intent.forbidden_angles[:3],
            "lsi_terms": lsi_terms(package),
            "trusted_sources": {"tier_1": tiers.tier_1, "tier_2": tiers.tier_2},
            "sources_wanted": {"tier_1": trust.min_tier_1, "total": trust.min_total},
            "required_texts": [
                disclaimer_of(vertical, package, self._rules)
                for vertical in verticals_of(package, self._rules)
            ],
            "publisher": {
                "site": publisher.domain,
                "tone": publisher.tone_class,
                "subjects": publisher.topic_focus[:5],
            },
            "target": {
                "title": target.title,
                "topics": target.core_topics,
                "entities": target.core_entities,
                "excerpt": target.main_content_excerpt,
            },
        }

    def draft(self, row: Row) -> dict[str, Any]:
        """What the step `draft` sees."""
        return {**self.job(row), "outline": row[OUTLINE]}

    def polish(self, row: Row) -> dict[str, Any]:
        """What the step `polish` sees."""
        return {**self.job(row), "article": row[DRAFT]}
